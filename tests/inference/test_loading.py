"""Model folders as segmenters, and the cache of class embeddings that they share."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_model_folder

import clipvis_jax
from clipvis_jax.inference.results import VideoResult
from clipvis_jax.weights.model_folder import load_model, save_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPVIS_CACHE", str(tmp_path / "cache"))


def embeddings(folder):
    with clipvis_jax.load(folder).start(["dog, puppy", "kettle"]) as state:
        return np.asarray(state.classifier.embeddings)


def test_models_that_differ_in_activation_alone_do_not_share_embeddings(tmp_path):
    first = tiny_model_folder(tmp_path / "first", "rn")
    model = load_model(first)
    text = dataclasses.replace(model.config.text, activation="gelu")
    config = dataclasses.replace(model.config, text=text)
    save_model(tmp_path / "second", config, model.clip_vars, model.params, model.tokenizer, source=model.source)
    quick, exact = embeddings(first), embeddings(tmp_path / "second")
    assert not np.allclose(quick, exact, atol=1e-4)


def test_embeddings_are_read_from_the_cache(tmp_path, monkeypatch):
    folder = tiny_model_folder(tmp_path / "model", "rn")
    computed = embeddings(folder)
    monkeypatch.setattr("clipvis_jax.text.vocabulary._encode_prompts", None)  # to be called no more
    np.testing.assert_array_equal(embeddings(folder), computed)


def test_public_names():
    assert clipvis_jax.VideoResult is VideoResult
    for name in clipvis_jax.__all__:
        assert getattr(clipvis_jax, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = clipvis_jax.no_such_name
