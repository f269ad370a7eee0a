"""Cached predictions replay to what the network's run gives, and tables say what was computed."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from small_videos import write_videos
from tiny import tiny_model_folder

from clipvis_jax.ablation.replay import cache_dataset, replay_dataset
from clipvis_jax.ablation.settings import SINGLE_TEMPLATE, Setting, fingerprint, paper_settings
from clipvis_jax.ablation.tables import Row, csv_table, markdown_tables, plot_table
from clipvis_jax.cli import main
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.dataset_run import DatasetFrames, RunFolder
from clipvis_jax.inference.loading import load
from clipvis_jax.inference.raw_video import RawRecorder, load_video
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.segmenter import InferenceConfig

NAMES = ["cat", "dog", "bird"]


@pytest.fixture(scope="module", params=["rn", "convnext"])
def model(request, tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", request.param)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_videos(tmp_path_factory.mktemp("videos"), lengths=(8, 3)))


@pytest.fixture(scope="module")
def cache(model, dataset, tmp_path_factory):
    segmenter = load(model, config=InferenceConfig(size=64))
    return cache_dataset(segmenter, dataset, tmp_path_factory.mktemp("cache"), 2)


SETTINGS = [
    Setting("a", "method"),
    Setting("a", "previous", AssociationConfig(mode="previous"), ScoreConfig(use_iou=False)),
    Setting("a", "all", AssociationConfig(mode="all", memory_length=3), ScoreConfig(use_objectness=False)),
    Setting("a", "short", AssociationConfig(memory_length=4, top_k=2), templates=SINGLE_TEMPLATE),
]


def test_replay_equals_the_networks_run(model, dataset, cache, tmp_path):
    runs = [RunFolder(tmp_path / str(i), {}) for i in range(len(SETTINGS))]
    replay_dataset(load(model, config=InferenceConfig(size=64)), dataset, cache, SETTINGS, runs)
    for setting, run in zip(SETTINGS, runs, strict=True):
        config = InferenceConfig(size=64, association=setting.association, scores=setting.scores)
        segmenter = load(model, config=config)
        classifier = segmenter.encode_classes(NAMES, templates=setting.templates)
        segmenter.encode_classes = lambda *_, classifier=classifier, **__: classifier
        for index in range(2):
            frames = [image for _, image in DatasetFrames(dataset, index)]
            expected = segmenter.predict_video(frames, NAMES).to_ytvis(dataset[index].id, [3, 5, 9])
            found = run.read(index)
            key = lambda record: (record["category_id"], record["segmentations"][0]["counts"])  # noqa: E731
            assert len(found) == len(expected)
            np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in expected], rtol=1e-5)
            for a, b in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
                assert a["segmentations"] == b["segmentations"]
                assert a["category_id"] == b["category_id"]


def test_settings_give_different_results(model, dataset, cache, tmp_path):
    """Otherwise the test above would show nothing."""
    runs = [RunFolder(tmp_path / str(i), {}) for i in range(len(SETTINGS))]
    replay_dataset(load(model, config=InferenceConfig(size=64)), dataset, cache, SETTINGS, runs)
    scores = [tuple(record["score"] for record in run.read(0)) for run in runs]
    assert len(set(scores)) == len(SETTINGS)


def test_cached_and_replayed_videos_are_left(model, dataset, cache, tmp_path):
    segmenter = load(model, config=InferenceConfig(size=64))
    before = [path.stat().st_mtime_ns for path in cache]
    assert cache_dataset(segmenter, dataset, cache[0].parent, 2) == cache
    assert [path.stat().st_mtime_ns for path in cache] == before
    run = RunFolder(tmp_path, {})
    run.write(0, [])
    replay_dataset(segmenter, dataset, cache, SETTINGS[:1], [run])
    assert run.read(0) == []
    assert run.read(1) != []


def test_damaged_cache(cache, tmp_path):
    damaged = tmp_path / "video.npz"
    damaged.write_bytes(cache[0].read_bytes()[:-100])
    with pytest.raises(InputError, match=r"video\.npz: damaged .* delete it"):
        load_video(damaged)


def test_papers_settings():
    settings = paper_settings()
    assert len({fingerprint(setting) for setting in settings}) == 16  # the method itself stands in six tables
    assert [s.label for s in settings if s.table == "K"] == ["1", "3", "5", "7", "9"]
    assert [s.label for s in settings if s.table == "T"] == ["1", "5", "9", "13"]
    method = fingerprint(Setting("", ""))
    assert sum(fingerprint(setting) == method for setting in settings) == 6
    renamed = dataclasses.replace(settings[0], label="x", table="y")
    assert fingerprint(renamed) == fingerprint(settings[0])


def test_tables():
    rows = [
        Row(Setting("K", "1"), {"AP": 0.25, "AP novel": -1.0}),
        Row(Setting("K", "3"), {"AP": 1.0, "AP novel": 0.5}),
        Row(Setting("T", "1"), {"AP": 0.0, "AP novel": 0.0}),
    ]
    text = markdown_tables(rows)
    assert "| K | AP | AP novel |\n|---|---:|---:|\n| 1 | 25.0 | — |\n| 3 | 100.0 | 50.0 |\n" in text
    assert "## T" in text
    table = list(csv.DictReader(csv_table(rows).splitlines()))
    assert table[0] == {"table": "K", "setting": "1", "AP": "0.25", "AP novel": ""}
    assert len(table) == 3


def test_a_video_without_frames_is_bad_input():
    with pytest.raises(InputError, match="no frame"):
        RawRecorder().video()


def test_plot(tmp_path):
    rows = [Row(Setting("K", str(k)), {"AP": 0.1 * k}) for k in (1, 3)]
    plot_table(tmp_path / "a.svg", rows, "K")
    plot_table(tmp_path / "b.svg", rows, "K")
    first = (tmp_path / "a.svg").read_text()
    assert "<svg" in first
    assert (tmp_path / "b.svg").read_text() == first


def test_command(model, dataset, tmp_path, capsys):
    command = ["ablate", "--model", str(model), "--dataset", str(dataset.path), "--out", str(tmp_path), "--size", "64"]
    assert main([*command, "--k", "1", "2", "--t", "1", "--protocol", "lvvis"]) == 0
    assert "| + mask IoU (the method) |" in capsys.readouterr().out
    assert {"ablation.md", "ablation.csv", "K.svg", "T.svg"} <= {path.name for path in tmp_path.iterdir()}
    rows = list(csv.DictReader((tmp_path / "ablation.csv").read_text().splitlines()))
    assert [row["setting"] for row in rows if row["table"] == "K"] == ["1", "2"]
    assert main([*command, "--limit", "0"]) == 2
    assert "--limit 0" in capsys.readouterr().err
    assert main([*command, "--k", "5", "0"]) == 2
    assert "--k 0: must be between 1 and 1000000" in capsys.readouterr().err


def test_protocol_is_checked_before_the_work(dataset, tmp_path, capsys):
    content = json.loads(dataset.path.read_text())
    del content["categories"][0]["partition"]
    path = dataset.path.parent / "plain.json"
    path.write_text(json.dumps(content))
    command = ["ablate", "--model", "missing", "--dataset", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--protocol", "lvvis"]) == 2
    assert "plain: category 3 has no 'partition', by which the protocol 'lvvis'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
