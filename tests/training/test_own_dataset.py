"""A data set of one's own, as docs/own_dataset.md shows it: trains and evaluates, no file of the package changes."""

import json
from pathlib import Path

import pytest
from tiny import tiny_model_folder

from clipvis_jax.cli import main
from clipvis_jax.config import config_to_json, load_config
from clipvis_jax.training.task import ClipVisTask

PAGE = Path(__file__).parents[2] / "docs" / "own_dataset.md"
TINY = """
import dataclasses
from pathlib import Path
from clipvis_jax.data.transforms import LargeScaleJitter
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.task import LoopConfig, OptimizerConfig, PipelineConfig, TrainingConfig
from clipvis_jax.weights.model_folder import load_model

sizes = load_model(Path({clip!r})).config
config = dataclasses.replace(
    config,
    backbone=None,
    pixel_decoder=sizes.pixel_decoder,
    query_decoder=sizes.query_decoder,
    data=PipelineConfig(batch_size=8, image_size=(64, 64), max_instances=2, num_workers=0,
                        augmentation=LargeScaleJitter(min_scale=0.8), repeat_threshold=0.0),
    step=TrainingConfig(losses=LossConfig(num_points=64)),
    optimizer=OptimizerConfig(num_steps=1, drop_steps=(), warmup_steps=0),
    evaluation=dataclasses.replace(config.evaluation, inference=InferenceConfig(size=64, window=3)),
    loop=LoopConfig(log_every=1, checkpoint_every=1, evaluate_every=1),
)
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", "rn")


@pytest.fixture(scope="module")
def config(tmp_path_factory, clip):
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    path = tmp_path_factory.mktemp("config") / "squares.py"
    path.write_text(code + TINY.format(clip=str(clip)), encoding="utf-8")
    return path


@pytest.mark.slow
def test_it_trains(config, clip, tmp_path):
    """Its batches go into the step, and its scores are computed meanwhile; the step itself knows no data set."""
    experiment = load_config(config)
    task = ClipVisTask(experiment, clip=clip)
    with task.open_data() as batches:
        batch = next(batches)
    assert batch.image.shape == (8, 64, 64, 3)
    assert batch.valid.sum() == 8
    assert task.notes()["dataset"] == {"name": "squares", "digest": "squares"}
    settings = config_to_json(experiment)
    assert settings["dataset"] == settings["evaluation"]["dataset"] == "squares"
    scores = task.evaluate(task.init_state(), tmp_path / "evaluation")
    assert set(scores) == {"AP", "AP50", "AP75", "AP_class_agnostic"}
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert {record["video_id"] for record in results} == {1, 2, 3, 4}


def test_it_evaluates(config, clip, tmp_path, capsys):
    command = ["eval", str(config), "--model", str(clip), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert main(command) == 0
    assert "squares, 1 of 4 videos" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["size"], settings["window"]) == (64, 3)  # the configuration's
    assert main([*command, "--window", "2"]) == 2  # another setting than the folder's
    assert "other settings" in capsys.readouterr().err


def test_a_name_on_the_command_line_takes_its_place(config, clip, tmp_path, capsys):
    options = ["--workdir", str(tmp_path / "run"), "--clip", str(clip), "--dataset", "shapes_val"]
    assert main(["train", str(config), *options]) == 2
    assert "'shapes_val': is for evaluation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(config), "--help"])
    assert "(default: squares)" in capsys.readouterr().out
    assert load_config(config).dataset.name == "squares"
