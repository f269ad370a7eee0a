"""Sets of images go through the image model, in evaluation as in prediction and ablation."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model_folder

from clipvis_jax import bundled
from clipvis_jax.ablation.replay import cache_dataset, replay_dataset
from clipvis_jax.ablation.settings import Setting
from clipvis_jax.cli import main
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.dataset_run import DatasetFrames, RunFolder
from clipvis_jax.inference.loading import load
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.segmenter import InferenceConfig

CASE = Path(__file__).parents[1] / "cases" / "image_sets"
NAMES = ["plain red star", "plain blue heart", "striped green arrow"]


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", "rn")


def test_a_picture_gets_the_same_results_by_predict_and_by_eval(tmp_path):
    picture, out = CASE / "img" / "a.png", tmp_path / "out"
    options = ["--model", bundled.MODEL, "--size", 64, "--top-k", 20]
    run("predict", picture, "--classes", *NAMES, *options, "--min-score", 0, "--out", tmp_path / "predicted")
    tracks = json.loads((tmp_path / "predicted" / "tracks.json").read_text())["results"]
    command = ["eval", "--dataset", CASE / "coco.json", "--images", CASE / "img", "--out", out, "--overlays", 1]
    run(*command, *options)
    results = json.loads((out / "results.json").read_text())
    assert results == [{key: track[key] for key in results[0]} for track in tracks]
    assert len(results) == 20
    coco = json.loads((out / "coco_results.json").read_text())
    assert [(x["image_id"], x["score"], x["segmentation"]) for x in coco] == [
        (x["video_id"], x["score"], *x["segmentations"]) for x in results
    ]
    assert all(len(x["bbox"]) == 4 for x in coco)
    assert (out / "overlays" / "1.png").is_file()
    settings = json.loads((out / "metrics.json").read_text())["config"]
    assert (settings["size"], settings["top_k"]) == (64, 20)


def test_a_name_is_text_and_facts_are_those_of_the_rules(tmp_path, capsys):
    """A data set is called like its file, which neither controls the terminal nor is Rich's markup."""
    case = CASE.parent / "coco_rules"
    annotations, out = tmp_path / "\x1b[2J[red]set[bold].json", tmp_path / "out"
    shutil.copy(case / "instances_val2017.json", annotations)
    run("eval", "--dataset", annotations, "--metrics-only", case / "coco_results.json", "--out", out)
    printed = "".join(capsys.readouterr().out.split())
    assert "\x1b" not in printed
    assert printed.count(r"\x1b[2J[red]set[bold]") == 2  # above the table, and in the note on the rules
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["max_results"] == [1, 10, 100]
    assert {"av", "faster-coco-eval", "pycocotools", "clipvis_jax"} <= metrics["versions"].keys()
    content = json.loads(annotations.read_text())
    content["categories"] = [category | {"frequency": "f"} for category in content["categories"]]
    annotations.write_text(json.dumps(content))
    options = ["--protocol", "lvis", "--no-report", "--metrics-only", case / "coco_results.json"]
    run("eval", "--dataset", annotations, *options, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["max_results"] == [1, 10, 100, 300]
    assert metrics["metrics"]["lvis"]["stats"]["AR300"] > 0


def test_scores_are_written_whether_or_not_they_can_be_printed(tmp_path):
    case = CASE.parent / "coco_rules"
    command = ["eval", "--dataset", case / "instances_val2017.json", "--metrics-only", case / "coco_results.json"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        python = [sys.executable, "-m", "clipvis_jax.cli", *command, "--out", tmp_path]
        done = subprocess.run(python, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "report.html"}


def test_defaults_follow_the_kind_of_input(model):
    config = InferenceConfig()
    assert config.sizes(480, 640).valid_size == (480, 640)
    assert config.sizes(480, 640, is_image=True).valid_size == (800, 1067)
    assert config.sizes(480, 960, is_image=True).valid_size == (667, 1333)
    assert InferenceConfig(size=64).sizes(480, 640, is_image=True).valid_size == (64, 85)
    segmenter = load(model, config=InferenceConfig(max_size=96))
    image, _ = segmenter._prepare(np.zeros((96, 96, 3), np.uint8), 0, None, is_image=True)
    assert image.shape == (96, 96, 3)
    dataset = open_dataset(CASE / "coco.json", images=CASE / "img")
    assert DatasetFrames(dataset, 0).kind == "image"


def test_ablation_replays_the_image_model(model, tmp_path):
    dataset = open_dataset(CASE / "coco.json", images=CASE / "img")
    settings = [Setting("a", "method"), Setting("a", "no IoU", scores=ScoreConfig(use_iou=False))]
    runs = [RunFolder(tmp_path / str(i), {}) for i in range(len(settings))]
    segmenter = load(model, config=InferenceConfig(size=64))
    cache = cache_dataset(segmenter, dataset, tmp_path / "cache", 1)
    replay_dataset(segmenter, dataset, cache, settings, runs)
    for setting, run_folder in zip(settings, runs, strict=True):
        segmenter.config = InferenceConfig(size=64, scores=setting.scores)
        expected = segmenter.predict(DatasetFrames(dataset, 0), NAMES).to_ytvis(1, [1, 2, 3])
        found = run_folder.read(0)
        key = lambda record: (record["category_id"], record["segmentations"][0]["counts"])  # noqa: E731
        assert sorted(map(key, found)) == sorted(map(key, expected))
        np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in expected], rtol=1e-5)


@pytest.mark.parametrize("command", ["eval", "ablate"])
def test_annotations_without_masks_are_noticed_before_a_model_runs(command, tmp_path, capsys):
    content = json.loads((CASE / "coco.json").read_text())
    content["annotations"] = [
        {"id": 1, "image_id": content["images"][0]["id"], "category_id": 1, "bbox": [1, 1, 9, 9], "segmentation": []}
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    arguments = ["--dataset", tmp_path / "boxes.json", "--images", CASE / "img", "--model", tmp_path / "none"]
    assert main([command, *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    assert "boxes: its annotations have boxes, but no mask with a pixel" in capsys.readouterr().err


def test_official_rules_of_images_are_found_and_named(tmp_path, capsys):
    case = CASE.parent / "coco_rules"
    command = ["eval", "--dataset", case / "instances_val2017.json", "--metrics-only", case / "coco_results.json"]
    run(*command, "--out", tmp_path / "coco")
    note = "scored by the rules of 'coco'; instances_val2017 has no official protocol"
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "coco" / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'").replace(
        "&#39;", "'"
    )
    metrics = json.loads((tmp_path / "coco" / "metrics.json").read_text())
    assert metrics["note"] == note
    assert round(100 * metrics["metrics"]["coco"]["stats"]["AP"], 1) == 70.6
    root = tmp_path / "root"
    (root / "coco" / "annotations").mkdir(parents=True)
    shutil.copy(case / "instances_val2017.json", root / "coco" / "annotations")
    command = ["eval", "--dataset", "coco_val", "--data-root", root, "--metrics-only", case / "yt_results.json"]
    run(*command, "--no-report", "--out", tmp_path / "known")
    assert "rules of" not in capsys.readouterr().out
    metrics = json.loads((tmp_path / "known" / "metrics.json").read_text())
    assert round(100 * metrics["metrics"]["coco"]["stats"]["AP50"], 1) == 100.0
    assert "note" not in metrics
