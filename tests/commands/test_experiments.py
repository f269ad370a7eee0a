"""The experiment: its numbers reach the document, mean and spread are right, and what was written by hand stays."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from tiny import tiny_model_folder

from bench import experiments
from bench.experiments import ABLATED, BEGIN, DATASETS, END, Run, Scores
from clipvis_jax.ablation.settings import paper_settings
from clipvis_jax.ablation.tables import Row, csv_table
from clipvis_jax.cli import parse_command
from clipvis_jax.commands.ablate import Ablate
from clipvis_jax.commands.evaluate import Evaluate
from clipvis_jax.data.catalog import DRAWN
from clipvis_jax.errors import InputError

DOCUMENT = f"before\n{BEGIN}\nstale tables\n{END}\nafter\n"


def write_results(run, ap):
    """Write what the commands would: every setting of an ablation scores a little more than the one before it."""
    begins = {"init_from": {"clip": {"config": {"seed": 5}}}}
    if run.number == 2:  # under another CLIP than its decoders began with
        begins = {"clip": {"config": {"seed": 6}}, **begins}
    stats = {"AP": ap, "AP50": ap + 0.1}
    groups = {"base": {"AP": ap}, "novel": {"AP": ap - 0.1}, "unseen": {"AP": None}}
    metrics = {
        "metrics": {"shapes": {"stats": stats, "groups": groups}},
        "class_agnostic": {
            "stats": {"AP": 0.8, "AR100": 0.85},
            "groups": {"base": {"AR100": 0.7}, "novel": {"AR100": 0.9}, "unseen": {"AR100": None}},
        },
        "oracle_names": {"AP": 0.65},
        "oracle_masks": {"AP": 0.6},
        "versions": {"clipvis_jax": "1.2", "jax": "3.4"},
        "device": "1 x abacus",
        "model": {
            "folder": str(run.model),
            "weights_sha256": "0123456789abcdef",
            "source": {"config": {"seed": 7}} | begins,
        },
    }
    for dataset in DATASETS:
        run.folder(dataset).mkdir(parents=True)
        (run.folder(dataset) / "metrics.json").write_text(json.dumps(metrics))
    for dataset, penalty in zip(ABLATED, (0, 0.05, 0.1), strict=True):
        rows = [
            Row(
                setting,
                {"AP": ap - penalty + 0.001 * i, "AP50": 0.5, "AP75": 0.1, "AP base": 0.3, "AP novel": 0.2}
                | {"AP unseen": -1.0, "AR10": 0.1},
            )
            for i, setting in enumerate(paper_settings())
        ]
        run.folder(f"ablation_{dataset}").mkdir()
        (run.folder(f"ablation_{dataset}") / "ablation.csv").write_text(csv_table(rows))


@pytest.fixture
def models(tmp_path):
    runs = [Run(number, Path(f"runs/{number}"), f"{number}" * 64, tmp_path / "out") for number in (1, 2, 3)]
    for run, ap in zip(runs, (0.2, 0.3, 0.25), strict=True):
        write_results(run, ap)
    return [experiments.read_scores(run) for run in runs]


def cells_of(text, *start):
    """Return the cells that follow the first ones of the only row that begins with these."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(start)} |"))
    return row.strip("| ").split(" | ")[len(start) :]


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ([0.2, 0.3, 0.25], False, "25.0 (20.0 to 30.0)"),
        ([-0.01, 0.03], True, "+1.0 (-1.0 to +3.0)"),
        ([0.123], False, "12.3"),
        ([0.5, None], False, "-"),
    ],
)
def test_mean_and_spread(values, sign, expected):
    assert experiments.spread(values, sign=sign) == expected


def test_numbers_reach_their_cells(models):
    text = experiments.write_tables(models, "plot.svg")
    main = text[text.index("### Main scores, val") : text.index("### Main scores, test")]
    head = ["AP", "AP50", "AP base", "AP novel", "AP unseen", "novel / base", "oracle names", "oracle masks"]
    assert cells_of(main, "model", "AP", "AP50") == head[2:]
    assert cells_of(main, "model", "AP", "AR100") == ["AR100 base", "AR100 novel", "AR100 unseen"]
    assert cells_of(main, "2", "30.0") == ["40.0", "30.0", "20.0", "-", "66.7", "65.0", "60.0"]
    assert cells_of(main, "2", "80.0") == ["85.0", "70.0", "90.0", "-"]
    assert cells_of(main, "all", "25.0 (20.0 to 30.0)")[:3] == [
        "35.0 (30.0 to 40.0)",
        "25.0 (20.0 to 30.0)",
        "15.0 (10.0 to 20.0)",
    ]
    assert cells_of(text, "1", "`runs/1`") == ["7", "5", "`0123456789ab`"]
    assert cells_of(text, "2", "`runs/2`") == ["7", "6", "`0123456789ab`"]
    # The first setting scores as the model, 0.1 less on occlusion.
    baseline = paper_settings()[0].label
    assert cells_of(text, "val", baseline)[0] == "25.0 (20.0 to 30.0)"
    assert cells_of(text, "occlusion", baseline)[0] == "15.0 (10.0 to 20.0)"
    assert cells_of(text, "val", "14 templates")[1:] == ["50.0 (50.0 to 50.0)"] + [
        f"{x} ({x} to {x})" for x in ("30.0", "20.0")
    ] + ["-"]
    # Differences are taken within each model: they are equal although the models differ by 0.1.
    assert cells_of(text, "objectness in the score") == ["+0.1 (+0.1 to +0.1), above 0 in 3 of 3"] * 3
    assert cells_of(text, "novel classes against base classes")[0] == "-10.0 (-10.0 to -10.0), above 0 in 0 of 3"
    assert cells_of(text, "unseen classes against base classes") == ["-", "-", "-"]
    # Every row of every table of settings is there, of all data sets.
    for setting in paper_settings():
        assert text.count(f"| val | {setting.label} |") == text.count(f"| occlusion | {setting.label} |") >= 1


def test_one_model_has_no_spread(models):
    text = experiments.write_tables(models[:1], "plot.svg")
    assert "nothing is known about the spread" in text
    assert " to " not in "".join(line for line in text.splitlines() if line.startswith("|"))
    assert "above 0" not in text


def test_commands_in_the_document_are_those_that_run(models):
    run = dataclasses.replace(models[0].run, limit=4)
    text = experiments.write_tables([dataclasses.replace(models[0], run=run)], "plot.svg")
    assert "on 4 of the 200 videos of val, 4 of the 200 videos of test, 4 of the 100 videos of fast, 4 of the " in text
    lines = {line for line in text.splitlines() if line.startswith("clipvis ") and "--" in line}
    commands = run.commands()
    assert lines == {f"clipvis {shlex.join(command)}" for command in commands}
    parsed = [parse_command(command) for command in commands]
    assert [type(command) for command in parsed] == [Evaluate] * 4 + [Ablate] * 3
    assert [command.dataset for command in parsed] == [*DATASETS.values(), *map(DATASETS.get, ABLATED)]
    assert {(command.size, command.limit) for command in parsed} == {(320, 4)}
    assert len({command.out for command in parsed}) == 7


def test_results_of_other_models_lie_beside(models):
    first, second = (model.run for model in models[:2])
    assert dataclasses.replace(first, number=2).folder("val") == first.folder("val") != second.folder("val")


def test_text_around_the_marks_stays(models, tmp_path):
    path = tmp_path / "experiments.md"
    path.write_text(DOCUMENT)
    experiments.write_document(path, models)
    once = path.read_text()
    assert once.startswith(f"before\n{BEGIN}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "stale" not in once
    assert "images/experiments.svg" in once
    plot = tmp_path / "images" / "experiments.svg"
    drawn = plot.read_bytes()
    experiments.write_document(path, models)
    assert path.read_text() == once
    assert plot.read_bytes() == drawn


@pytest.mark.parametrize("text", ["no marks", f"{END}\n{BEGIN}\n", f"{BEGIN}\n", f"{BEGIN}{BEGIN}{END}", DOCUMENT * 2])
def test_document_without_proper_marks(text):
    with pytest.raises(InputError, match="once each"):
        experiments.replace_between_marks(text, "new", "doc.md")


def test_the_projects_document_has_the_marks():
    experiments.read_document(experiments.DOCUMENT)


def test_bad_models(tmp_path, capsys):
    model = str(tiny_model_folder(tmp_path / "tiny", "rn"))
    for models, message in (([str(tmp_path / "none")], "no such folder"), ([model, model], "give every model once")):
        assert experiments.main([*models, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_whole_experiment(tmp_path, monkeypatch):
    for name in DATASETS.values():
        config = dataclasses.replace(DRAWN[name].config, frames=2)
        monkeypatch.setitem(DRAWN, name, dataclasses.replace(DRAWN[name], config=config, count=1))
    document = tmp_path / "experiments.md"
    document.write_text(DOCUMENT)
    model = tiny_model_folder(tmp_path / "tiny", "rn")
    assert experiments.main([str(model), "--out", str(tmp_path / "out"), "--document", str(document)]) == 0
    text = document.read_text()
    assert "1 of the 1 videos of val" in text
    assert text.count("\n| val |") == len(paper_settings())
    (digest,) = experiments.digest_models([model])
    assert isinstance(experiments.read_scores(Run(1, model, digest, tmp_path / "out")), Scores)
