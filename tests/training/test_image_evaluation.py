"""Evaluation while training: sets of images go through the image model and are scored as images."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from memory_dataset import make_dataset

from clipvis_jax import bundled
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.inference.segmenter import IMAGE_TOP_K, InferenceConfig, Segmenter
from clipvis_jax.loop.train_state import TrainState
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.training.task import ClipVisExperiment, ClipVisTask, EvaluationConfig
from clipvis_jax.weights.model_folder import RunDefaults, config_from_json

CASE = Path(__file__).parents[1] / "cases" / "image_sets"


def test_images_go_through_the_image_model(tmp_path, monkeypatch):
    """The network itself is tested elsewhere; here it finds the case's only object, a square of 10 by 10 pixels."""
    calls = []

    def predict_image(self, image, classes, *, top_k, background=(), min_score=0.0, keep_raw=False):
        assert (background, keep_raw) == ((), False)
        calls.append((image.shape, tuple(classes), top_k, self.config.shorter_side(is_image=True)))
        mask = np.zeros(image.shape[:2], bool)
        mask[1:11, 1:11] = True
        masks = TrackMasks(mask.shape, [encode_rle(mask)["counts"]])
        return VideoResult([Track(0, 0, classes[0], 1.5, masks)], tuple(classes), *mask.shape, 1)

    monkeypatch.setattr(Segmenter, "predict_image", predict_image)
    monkeypatch.setattr(Segmenter, "predict_video", lambda *_, **__: pytest.fail("an image is no video"))
    sizes = config_from_json(json.loads((bundled.MODEL / "config.json").read_text())["config"])
    evaluation = EvaluationConfig(open_dataset(CASE / "coco.json", images=CASE / "img"), inference=InferenceConfig())
    experiment = ClipVisExperiment(
        None, sizes.pixel_decoder, sizes.query_decoder, dataset=make_dataset(), evaluation=evaluation
    )
    task = ClipVisTask(experiment, clip=bundled.MODEL)
    task._folder = dataclasses.replace(task._folder, run_defaults=RunDefaults())  # the bundled model has a size
    state = TrainState(jnp.int32(7), jnp.uint32(0), task._folder.params, opt_state=())
    scores = task.evaluate(state, tmp_path / "evaluation")
    names = ("plain red star", "plain blue heart", "striped green arrow")
    assert calls == [((480, 480, 3), names, IMAGE_TOP_K, 800)]
    assert scores == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "AP_class_agnostic": 1})
