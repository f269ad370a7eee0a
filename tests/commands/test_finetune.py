"""clipvis finetune on a tiny model: one short run, what it writes and says, and bad input."""

import dataclasses
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_dataset import make_dataset
from small_videos import write_videos
from tiny import tiny_model_folder
from training_processes import assert_same_bits

from clipvis_jax.cli import main
from clipvis_jax.commands.finetune import verdict
from clipvis_jax.commands.predict import Predict
from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.part import hold_out
from clipvis_jax.errors import InputError
from clipvis_jax.loop.log import read_log
from clipvis_jax.training import task
from clipvis_jax.training.finetuning import finetuning
from clipvis_jax.training.optimizer import make_schedule
from clipvis_jax.training.run_checkpoint import load_checkpoint
from clipvis_jax.training.structs import StepMetrics
from clipvis_jax.training.task import ClipVisExperiment, ClipVisTask, EvaluationConfig, LoopConfig
from clipvis_jax.weights.model_folder import RunDefaults, config_to_json, hash_variables, load_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # Of test_eval_command.py, whose compiled programs it shares.
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", "rn")


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    write_videos(folder)
    return folder


def finetune(model, footage, out, *more):
    options = ("--model", model, "--dataset", footage, "--out", out, "--steps", 2, "--size", 64, "--workers", 0, *more)
    return main(["finetune", *map(str, options)])


def small_step(self, state, batch):
    """Stands in for the training step, which takes a minute to compile: changes all parameters a little."""
    count, height, width, _ = batch.images_u8.shape
    assert (count, min(height, width)) == (8, 64)
    assert batch.targets.masks_packed.shape == (8, 2, height, width // 8)
    params = jax.tree.map(lambda x: x * 1.01, state.params)
    zero = jnp.zeros(())
    return state.replace(step=state.step + 1, params=params), StepMetrics(zero, {}, jnp.zeros(2), zero)


def small_results(segmenter, dataset, run, count):
    """Stands in for the network, which takes as long: it finds all objects after step 1, else the first."""
    for index in range(count):
        video = dataset[index]
        found = video.instances if run.folder.name == "step_0000001" else video.instances[:1]
        run.write(
            index,
            [
                {
                    "video_id": video.id,
                    "category_id": instance.category_id,
                    "score": 0.75,
                    "segmentations": [
                        None if mask is None else {"size": [video.height, video.width], "counts": mask}
                        for mask in instance.masks
                    ],
                }
                for instance in found
            ],
        )


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, model, footage):
    """The folder of a run of two steps, the first of which helps, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    with (
        redirect_stdout(io.StringIO()) as said,
        patch.object(ClipVisTask, "step", small_step),
        patch.object(task, "predict_dataset", small_results),
        patch.object(task, "make_segmenter", lambda *_, **__: SimpleNamespace()),
    ):
        assert finetune(model, footage, out) == 0
    return out, said.getvalue().replace("\n", " ")


@pytest.mark.slow
def test_the_best_state_becomes_the_model(finetuned, model):
    out, said = finetuned
    scores = {record["step"]: record["evaluation/AP"] for record in read_log(out) if "evaluation/AP" in record}
    assert scores == pytest.approx({0: 1 / 3, 1: 1, 2: 1 / 3})
    content = json.loads((out / "finetune.json").read_text())
    assert content["best_step"] == 1
    notes = json.loads((out / "run.json").read_text())
    assert notes["evaluation_dataset"]["digest"] != notes["dataset"]["digest"]
    assert (content["before"]["AP"], content["after"]["AP"]) == pytest.approx((1 / 3, 1))
    before, after = load_model(model), load_model(out / "model")
    assert_same_bits(after.clip_vars, before.clip_vars)
    assert_same_bits(after.params, jax.tree.map(lambda x: x * np.float32(1.01), before.params))
    assert after.run_defaults == RunDefaults(64, 1333, (), 0.75, ("cat", "dog"))  # the video with a bird is held out
    assert "AP rose from 33.3 to 100.0 at step 1" in said


@pytest.mark.slow
def test_what_it_says(finetuned):
    out, said = finetuned
    assert "trains on 2 videos; scores are those of 1 of the 3 videos, held out" in said
    assert "class names are not learned: CLIP stays frozen" in said
    # The tiny tokenizer has merges for "dog" and "cat" alone.
    assert "CLIP may not know these names; more common words may be found better: bird (bird)" in said
    assert "AP50 before" in said
    content = json.loads((out / "finetune.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["cat", "dog", "bird"]
    assert [row["before"]["AP"] for row in content["categories"]] == pytest.approx([1, 0, 0])
    assert [row["after"]["AP"] for row in content["categories"]] == pytest.approx([1, 1, 1])


def test_a_model_that_did_not_get_better_is_told():
    """That it is the one before the first step then, tests/loop/test_training_loop.py shows."""
    assert verdict(0.664, 0.7, 40, Path("m")) == "AP rose from 66.4 to 70.0 at step 40"
    assert verdict(0.664, 0.664, 0, Path("m")) == "it did not get better than AP 66.4; m is the model as it was"
    assert verdict(0.0, 0.0, 9, Path("m")) == "it did not get better than AP 0.0; m is that of step 9, which is as good"


@pytest.mark.slow
def test_the_same_command_again_goes_on(finetuned, model, footage, capsys):
    out, _ = finetuned
    before = (out / "finetune.json").read_text()
    assert finetune(model, footage, out) == 0
    assert f"goes on from {out / 'checkpoints' / '2'}" in capsys.readouterr().out
    assert (out / "finetune.json").read_text() == before


def test_every_fifth_annotated_video_is_held_out():
    dataset = make_dataset(num_videos=12)
    dataset.records[0] = dataclasses.replace(dataset.records[0], instances=())
    dataset.info = DatasetInfo(purpose="training")
    trained, held = hold_out(dataset)
    assert [video.id for video in held] == [6, 11]
    assert [video.id for video in trained] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 12]
    assert held.read_frame(1, 0) == dataset.read_frame(10, 0)
    assert (held.info.purpose, trained.info.purpose) == (None, "training")
    assert len({held.digest, trained.digest, dataset.digest}) == 3
    assert len(hold_out(make_dataset(num_videos=300, num_frames=1))[1]) == 50
    with pytest.raises(InputError, match=r"^memory: 1 videos have instances, too few to hold some out for scores$"):
        hold_out(make_dataset(num_videos=1))


def test_settings_follow_from_model_data_and_steps(model):
    folder = dataclasses.replace(load_model(model), run_defaults=RunDefaults(size=320, max_size=640))
    dataset = make_dataset()  # of 48x64 pixels
    experiment = finetuning(folder, dataset, dataset, num_steps=200)
    assert experiment.pixel_decoder == folder.config.pixel_decoder
    assert experiment.query_decoder == folder.config.query_decoder
    assert experiment.data.image_size == (320, 448)  # 320x427, padded
    assert max(experiment.data.augmentation.short_sides) == experiment.evaluation.inference.size == 320
    assert experiment.data.max_instances == 3
    assert experiment.loop.evaluate_every == 40
    rates = np.array([make_schedule(experiment.optimizer)(step) for step in (0, 10, 20, 120, 170)])
    np.testing.assert_allclose(rates / rates[2], [0, 0.5, 1, 0.3, 0.09], rtol=1e-5)
    assert rates[2] < 1e-4
    assert finetuning(folder, dataset, dataset, num_steps=1).optimizer.drop_steps == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 0), "--steps 0: give at least 1"),
        (("--val-images", "x"), "--val-images: is for --val, which is not given"),
        (("--val", "nowhere.json"), "nowhere.json: is neither a known data set nor an existing file"),
        (("--model", "nowhere"), "nowhere: no such folder; make a model folder with"),
        (("--size", 5), "--size 5: must be between 32"),
        (("--batch-size", 0), "--batch-size 0: give at least 1"),
        (("--learning-rate", 0), "--learning-rate 0.0: give more than 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(model, footage, tmp_path, capsys, more, message):  # noqa: PLR0917
    assert finetune(model, footage, tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_checkpoints_are_exported(finetuned, model, tmp_path, capsys):
    """Those of the finished run, and of the same one before it has a model."""
    out, _ = finetuned
    best = json.loads((out / "finetune.json").read_text())["best_step"]
    exported = load_model(out / "model")
    export = ["export", str(out), "--out"]
    assert main([*export, str(tmp_path / "best"), "--best"]) == 0
    again = load_model(tmp_path / "best")
    assert_same_bits((again.clip_vars, again.params), (exported.clip_vars, exported.params))
    assert again.run_defaults == dataclasses.replace(exported.run_defaults, min_score=None)
    assert again.source["step"] == best
    steps = sorted(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdecimal())
    other = next(step for step in steps if step != best)
    assert main([*export, str(tmp_path / "other"), "--step", str(other)]) == 0
    assert not jax.tree.all(jax.tree.map(np.array_equal, load_model(tmp_path / "other").params, exported.params))
    assert main([*export, str(tmp_path / "best.safetensors"), "--best"]) == 0
    assert (tmp_path / "best.safetensors").stat().st_size > 0

    (out / "model").rename(tmp_path / "model")
    try:
        capsys.readouterr()
        assert main([*export, str(tmp_path / "new"), "--best"]) == 2
        assert "is not finished, so it has no model yet; give clip" in capsys.readouterr().err
        assert main([*export, str(tmp_path / "new"), "--best", "--clip", str(model)]) == 0
        assert_same_bits(load_model(tmp_path / "new").params, exported.params)
        assert load_model(tmp_path / "new").run_defaults == RunDefaults(64, 1333, ())
    finally:
        (tmp_path / "model").rename(out / "model")
    for options, message in [
        (["--step", "77"], "77: is no whole checkpoint; the steps that have one:"),
        (["--step", "1", "--best"], "--best, --step: exclude each other"),
        (["--clip", str(model)], "--clip: is for the checkpoint of a training"),
    ]:
        assert main([*export, str(tmp_path / "bad"), *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(model), "--best", "--out", str(tmp_path / "bad")]) == 2
    assert "is not the folder of a training run" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_odd_notes_of_runs_are_one_line(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    parts = load_model(model)
    config = config_to_json(parts.config) | {"evaluation": {"inference": {"size": 64, "max_size": "x"}}}
    for odd in ({}, [], config | {"query_decoder": {"a": []}}, config):
        note = {"config": odd, "clip_sha256": hash_variables(parts.clip_vars)}
        (tmp_path / "run.json").write_text(json.dumps(note))
        with pytest.raises(InputError, match=r"is no training of decoders, or its run\.json is damaged \(") as error:
            load_checkpoint(tmp_path, clip=model)
    assert "max_size x: give numbers" in str(error.value)


def test_a_limit_of_scores_is_told(model, footage):
    config = load_model(model).config
    experiment = ClipVisExperiment(
        None,
        config.pixel_decoder,
        config.query_decoder,
        dataset=str(footage),
        evaluation=EvaluationConfig(str(footage), limit=1),
        loop=LoopConfig(evaluate_every=5),
    )
    assert ClipVisTask(experiment, clip=model).scores_of == "the first 1 of the 3 videos of instances"


def test_predict_takes_the_models_classes_and_threshold(model, tmp_path, capsys):
    parts = load_model(model)
    defaults = RunDefaults(background=("sky",), min_score=0.43, classes=("cat", "dog"))
    folder = tmp_path / "model"
    save_model(folder, parts.config, parts.clip_vars, parts.params, parts.tokenizer, source={}, run_defaults=defaults)
    given = {"source": (tmp_path,), "model": folder}
    assert Predict(**given).classes_for(folder) == ["cat", "dog"]
    assert "looks for the 2 classes that the model was trained on" in capsys.readouterr().err
    assert Predict(**given, classes=("bird",)).classes_for(folder) == ["bird"]
    assert Predict(**given).lowest_score(folder, ["cat"], ()) == 0.43
    assert Predict(**given, min_score=0.1).lowest_score(folder, ["cat"], ()) == 0.1
    assert Predict(**given).lowest_score(model, ["cat"], ()) == 0.2
    # It was found without background names; of many classes "auto" adds none.
    assert Predict(**given).lowest_score(folder, ["cat"], "auto") == 0.2
    assert Predict(**given).lowest_score(folder, ["cat"] * 50, "auto") == 0.43
