"""train.py on a tiny model: what it writes, exact resuming, bad input."""

import ast
import dataclasses
import json
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_videos import write_videos
from tiny import one_layer_model_folder, tiny_model_folder
from training_processes import TRAIN, assert_same_bits, finish, losses_of, pictures_of, start, write_config

import clipvis_jax
from clipvis_jax.cli import main
from clipvis_jax.commands.train import Train, profiled_steps
from clipvis_jax.config import load_config
from clipvis_jax.errors import InputError
from clipvis_jax.loop.log import read_log
from clipvis_jax.training.task import ClipVisTask
from clipvis_jax.weights.model_folder import hash_variables, load_model, save_model

NO_DROP = ["--optimizer.drop-steps"]
CONFIGS = sorted(path.stem for path in (TRAIN.parent / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return one_layer_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def config(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("training")
    return write_config(folder / "tiny.py", clip, write_videos(folder))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs compiled by the processes of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache, config, clip):
    """The folder of a run of 6 steps that nothing stopped."""
    workdir = tmp_path_factory.mktemp("run")
    finish(start(cache, config, "--workdir", workdir, "--clip", clip, "--loop.picture-every", 3))
    return workdir


def variables_of(workdir):
    return load_model(workdir / "model").params


@pytest.mark.slow
def test_what_is_written(whole, clip):
    records = read_log(whole)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert {"loss/total", "loss/mask/1", "loss/dice/0", "matched_iou/1", "gradient_norm"} <= records[0].keys()
    assert records[0]["learning_rate"] == pytest.approx(1e-4)
    assert records[4]["learning_rate"] == pytest.approx(1e-5)
    note = json.loads((whole / "run.json").read_text())
    assert note["config"]["optimizer"]["num_steps"] == 6
    assert len(note["clip_sha256"]) == len(note["dataset"]["digest"]) == 64
    model, before = load_model(whole / "model"), load_model(clip)
    assert_same_bits(model.clip_vars, before.clip_vars)
    assert model.source["clip_sha256"] == note["clip_sha256"]
    assert pictures_of(whole) == ["predictions_0000003.png", "predictions_0000006.png"]
    for name in pictures_of(whole):
        with Image.open(whole / "pictures" / name) as picture:
            assert picture.size == (2 * 64, 64)  # targets, and predictions beside them
    segmenter = clipvis_jax.load(whole / "model")
    assert segmenter.start(["cat"]).num_frames == 0


@pytest.mark.slow
def test_two_runs_are_the_same_to_the_bit(whole, cache, config, clip, tmp_path):
    """Worker processes change nothing either."""
    finish(start(cache, config, "--workdir", tmp_path, "--clip", clip, "--data.num-workers", 2))
    assert_same_bits(variables_of(tmp_path), variables_of(whole))


@pytest.mark.slow
def test_killed_and_resumed_equals_whole(whole, cache, config, clip, tmp_path):
    """kill -9 after the checkpoint of step 3, with worker processes running; the rest as if nothing had happened."""
    options = ["--workdir", tmp_path, "--clip", clip, "--data.num-workers", 2, "--loop.keep-last", 1000]
    # Many more steps than it can do before it is killed; the schedule is the same up to there.
    process = start(cache, config, *options, "--optimizer.num-steps", 100000)
    while not (tmp_path / "checkpoints" / "3").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # What it did beyond step 3 is forgotten.
    for folder in (tmp_path / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > 3:
            folder.rename(tmp_path / f"beyond_{folder.name}")
    _, error = finish(start(cache, config, *options))
    assert "goes on with other settings than before: config.optimizer.num_steps" in error
    assert_same_bits(variables_of(tmp_path), variables_of(whole))
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_preemption_saves_and_goes_on(whole, cache, config, clip, tmp_path):
    options = ["--workdir", tmp_path, "--clip", clip]
    process = start(cache, config, *options, "--optimizer.num-steps", 100000, "--loop.checkpoint-every", 0)
    while len(read_log(tmp_path)) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = finish(process)
    assert "stopped; the same command goes on from here" in output
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    stopped_at = int(checkpoint.name)
    assert read_log(tmp_path)[-1]["step"] == stopped_at
    finish(start(cache, config, *options, "--optimizer.num-steps", stopped_at + 1, *NO_DROP))
    assert read_log(tmp_path)[-1]["step"] == stopped_at + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["auto", "True", "coordinator", "a:1", "num-processes", "1", "process-id", "0"],
            "--distributed.auto True: finds",
        ),
        (["coordinator", "a:1"], "distributed: coordinator, num_processes and process_id belong together"),
        (["coordinator", "a:1", "num-processes", "0", "process-id", "0"], "--distributed.num-processes 0: must be 1"),
        (["coordinator", "a:1", "num-processes", "2", "process-id", "2"], "--distributed.process-id 2: must be betw"),
    ],
)
def test_processes_that_cannot_work_together(cache, config, clip, tmp_path, options, message):  # noqa: PLR0917
    named = [f"--distributed.{word}" if place % 2 == 0 else word for place, word in enumerate(options)]
    _, error = finish(start(cache, config, "--workdir", tmp_path, "--clip", clip, *named), expected_code=2)
    (line,) = error.splitlines()
    assert line.startswith("clipvis: error: ")
    assert message in line


@pytest.mark.slow
def test_fine_tuning_starts_from_a_models_decoders(cache, config, clip, tmp_path):
    """AdamW's first step moves no parameter by more than the learning rate, decay apart; random ones lie far off."""
    finish(start(cache, config, "--workdir", tmp_path, "--init-from", clip, "--optimizer.num-steps", 1, *NO_DROP))
    (record,) = read_log(tmp_path)
    rate = record["learning_rate"]
    assert rate == pytest.approx(1e-4)
    model, before = load_model(tmp_path / "model"), load_model(clip)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05 * rate, atol=1.01 * rate), model.params, before.params
    )
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (model.params, before.params)), strict=True))
    assert_same_bits(model.clip_vars, before.clip_vars)


def test_decoders_of_one_model_under_the_clip_of_another(config, clip, tmp_path):
    ours = load_model(clip)
    others = jax.tree.map(lambda x: 2 * x, (ours.clip_vars, ours.params))
    save_model(tmp_path / "other", ours.config, *others, ours.tokenizer, source={"from": "elsewhere"})
    task = ClipVisTask(load_config(config), clip=tmp_path / "other", init_from=clip)
    assert task.beginning == f"the decoders of {clip} and the CLIP of {tmp_path / 'other'}"
    task.export(task.init_state(), tmp_path / "model", {})
    model = load_model(tmp_path / "model")
    assert_same_bits((model.clip_vars, model.params), (others[0], ours.params))
    assert model.source == {"clip": {"from": "elsewhere"}, "init_from": ours.source}
    # A run that was stopped goes on only with the same beginning.
    assert task.notes()["decoders_sha256"] == hash_variables(ours.params)
    assert "decoders_sha256" not in ClipVisTask(load_config(config), clip=clip).notes()


def test_decoders_do_not_fit_under_a_clip_of_other_sizes(config, clip, tmp_path, capsys):
    other = tiny_model_folder(tmp_path / "other", "convnext")
    command = ["train", config, "--workdir", tmp_path / "run", "--clip", other, "--init-from", clip]
    assert main([str(word) for word in command]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"clipvis: error: {other}: its CLIP (ConvNextConfig(")
    assert f"has other sizes than that of {clip} (ResNetConfig(" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pixel-decoder.num-heads", 0, "--pixel-decoder.num-heads 0: give a whole number from 1 to 256"),
        ("query-decoder.num-heads", 0, "--query-decoder.num-heads 0: give a whole number from 1 to 256"),
        ("query-decoder.num-queries", 0, "--query-decoder.num-queries 0: give a whole number from 1 to 10000"),
        ("query-decoder.dim", 32, "--query-decoder.dim 32: give that of the pixel decoder, 64"),
        ("query-decoder.mask-dim", 32, "--query-decoder.mask-dim 32: give that of the pixel decoder, 64"),
        ("optimizer.learning-rate", -1, "--optimizer.learning-rate -1.0: give more than 0"),
        ("data.image-size", (60, 60), "--data.image-size (60, 60): give a height and a width"),
        ("loop.keep-last", 0, "--loop.keep-last 0: must be 1 or more"),
        ("step.losses.no-object-weight", -3, "--step.losses.no-object-weight -3.0: give 0 or more"),
    ],
)
def test_settings_that_cannot_be(config, clip, tmp_path, capsys, option, value, message):  # noqa: PLR0917
    command = ["train", config, "--workdir", tmp_path / "run", "--clip", clip, f"--{option}"]
    command += value if isinstance(value, tuple) else [value]
    assert main([str(word) for word in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipvis: error: {message}")


def test_queries_are_added_behind_a_models_own(config, clip):
    experiment = load_config(config)
    num_queries = experiment.query_decoder.num_queries
    more = dataclasses.replace(experiment.query_decoder, num_queries=num_queries + 2)
    task = ClipVisTask(dataclasses.replace(experiment, query_decoder=more), init_from=clip)
    params = jax.device_get(task.init_state().params)
    for name in ("query_feature", "query_position"):
        table = params["query_decoder"][name]
        params["query_decoder"][name], added = table[:num_queries], table[num_queries:]
        # From a normal distribution: none like another, none zero.
        assert len(np.unique(added)) == added.size == 2 * more.dim
        assert 0.7 < added.std() < 1.3
    assert_same_bits(params, load_model(clip).params)


@pytest.mark.slow
def test_another_runs_checkpoint_goes_on_in_a_new_folder(whole, cache, config, clip, tmp_path):
    other, workdir = tmp_path / "other", tmp_path / "run"
    shutil.copytree(whole, other)
    shutil.rmtree(other / "checkpoints" / "6")  # as if it had been stopped after step 3
    before = sorted(other.rglob("*"))
    output, _ = finish(start(cache, config, "--workdir", workdir, "--clip", clip, "--resume", other))
    assert f"goes on from {other / 'checkpoints' / '3'}" in output
    assert [record["step"] for record in read_log(workdir)] == [4, 5, 6]
    np.testing.assert_array_equal(losses_of(workdir), losses_of(whole)[3:])
    assert_same_bits(variables_of(workdir), variables_of(whole))
    assert sorted(other.rglob("*")) == before


def test_help_lists_settings(config, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(config), "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in ("--workdir", "--optimizer.learning-rate", "--data.batch-size", "--loop.stop-after", "--step.remat"):
        assert name in text


def test_optimizer_for_another_batch_size():
    path = str(TRAIN.parent / "configs" / "lvis_r50.py")
    optimizer = Train.parse([path, "--workdir", "x", "--data.batch-size", "64"]).experiment.optimizer
    assert (optimizer.learning_rate, optimizer.num_steps) == (1e-4, 368_750)
    options = ["--workdir", "x", "--data.batch-size", "64", "--scale-optimizer"]
    optimizer = Train.parse([path, *options, "linear"]).experiment.optimizer
    assert optimizer.learning_rate == pytest.approx(4e-4)
    assert (optimizer.num_steps, optimizer.drop_steps) == (92_188, (81_944, 88_773))
    assert Train.parse([path, *options, "sqrt"]).experiment.optimizer.learning_rate == pytest.approx(2e-4)
    with pytest.raises(InputError, match="for trainings of the decoders"):
        Train.parse([str(TRAIN.parent / "configs" / "shapes_clip.py"), *options, "sqrt"])


def test_a_missing_configuration_is_told(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--workdir", "x"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("clipvis train: error: no configuration given; it comes first\n")


def test_steps_to_profile():
    assert profiled_steps("10:13") == range(10, 13)
    for wrong in ("10", "13:10", "5:5", "0:3", "a:b", "1:2:3"):
        with pytest.raises(InputError, match=f"--profile {wrong}: give the first step"):
            profiled_steps(wrong)


def test_help_without_a_configuration(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CONFIGS)


def test_unknown_override_names_the_closest(config, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(config), "--workdir", "x", "--optimizer.learning-rat", "1"])
    assert exit_.value.code == 2
    assert "--optimizer.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.learning-rate", "fast"], "optimizer.learning-rate"),
        (["--data.batch-size", "1.5"], "data.batch-size"),
    ],
)
def test_values_of_another_type(config, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(config), "--workdir", "x", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --clip, for new decoders, or --init-from"),
        (["--clip", "CLIP", "--init-from", "missing"], "missing: no such folder"),
        (["--clip", "missing"], "missing: no such folder"),
        (["--clip", "CLIP", "--dataset", "lvis_trian"], "closest names are lvis_train"),
        (["--clip", "CLIP", "--dataset", "lvis_train"], "give data_root"),
        (["--clip", "CLIP", "--backbone", "RN50"], "its CLIP is not RN50"),
        (
            ["--init-from", "CLIP", "--query-decoder.num-layers", "2"],
            "have other sizes than those of the configuration",
        ),
        (["--init-from", "CLIP", "--query-decoder.num-queries", "1"], "of these, only num_queries may be larger"),
        (["--clip", "CLIP", "--optimizer.num-steps", "3"], "optimizer.drop_steps (4,): lie beyond the 3 steps"),
        (["--clip", "CLIP", "--images", "missing"], "missing: is not a folder"),
        (["--clip", "CLIP", "--fsdp", "3"], "fsdp 3: must divide the number of devices, which is 8"),
        (["--clip", "CLIP", "--data.batch-size", "3"], "must be a multiple of"),
        (
            ["--clip", "CLIP", "--step.losses.matching.method", "host"],
            "--step.losses.matching.method host: the 8 CPU devices of a process may wait for each other for ever",
        ),
    ],
)
def test_unusable_options(config, clip, tmp_path, capsys, options, message):  # noqa: PLR0917
    options = [str(clip) if option == "CLIP" else option for option in options]
    assert main(["train", str(config), "--workdir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("clipvis: error:")
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("config = 1 / 0", "fails (ZeroDivisionError"),
        ("other = 1", "does not define 'config'"),
    ],
)
def test_unusable_configuration(tmp_path, capsys, content, message):
    path = tmp_path / "config.py"
    if content is not None:
        path.write_text(content)
    assert main(["train", str(path), "--workdir", "x"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_workdir_of_another_run(whole, config, clip, tmp_path, capsys):
    other = tiny_model_folder(tmp_path / "other", "convnext")
    assert main(["train", str(config), "--workdir", str(whole), "--clip", str(other)]) == 2
    assert "is a run with another CLIP" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lvis_r50", "lvis_r50.py", "configs/lvis_r50.py"])
def test_configurations_of_the_package_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path(name)) == load_config(TRAIN.parent / "configs" / "lvis_r50.py")
    with pytest.raises(InputError, match=f"^elsewhere/{Path(name).name}: no such file; .* lvis_r50, "):
        load_config(Path("elsewhere", Path(name).name))
    # A file of one's own comes first.
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("config = 1", encoding="utf-8")
    with pytest.raises(InputError, match="does not define 'config'"):
        load_config(Path(name))


def test_configurations_ship_with_the_package():
    setuptools = pytest.importorskip("setuptools")
    assert "clipvis_jax.configs" in setuptools.find_namespace_packages(str(TRAIN.parent), include=["clipvis_jax*"])


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_of_the_repository_load(name, capsys):
    path = TRAIN.parent / "configs" / f"{name}.py"
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(path), "--help"])
    assert exit_.value.code == 0
    text = path.read_text()
    assert "Command:" in text
    assert "Cost:" in text
    assert "Hardware:" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_commands_in_the_configurations_are_understood(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = TRAIN.parent / "configs" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())).replace("\\\n", " ")
    (command,) = re.findall(rf"python train.py configs/{name}.py (.*)", text)
    assert Train.parse([str(path), *command.split()]).options.workdir == Path("runs", name)
    for options in re.findall(r"^TPU: add ([^;]*);", text, re.MULTILINE):
        assert Train.parse([str(path), *command.split(), *options.split()]).experiment.step.dtype == "bfloat16"
    for evaluation in re.findall(r"clipvis (eval .*)", text):
        assert main(evaluation.split()) == 2
        assert "error: data: is not a folder" in capsys.readouterr().err
