"""Windows of any number of frames: never many times the video's, never more than memory holds."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from tiny import clip_frames, tiny_segmenter

from clipvis_jax.errors import InputError
from clipvis_jax.inference.segmenter import affordable_window
from clipvis_jax.models.structs import FramePredictions
from clipvis_jax.models.text_classifier import TextClassifier


@pytest.mark.parametrize(
    ("window", "num_frames", "expected"),
    [
        (10**6, 12, [(12, 16)]),
        (10**6, 1, [(1, 1)]),
        (8, 12, [(8, 8), (4, 8)]),
        (8, 3, [(3, 4)]),
        (8, 5, [(5, 8)]),
        (8, 0, []),
    ],
)
def test_a_window_is_not_many_times_its_video(window, num_frames, expected, monkeypatch):
    segmenter = tiny_segmenter("rn", window=window)
    classifier = TextClassifier(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), jnp.int32(1))
    windows = []

    def start(classifier, window, size):
        windows.append((len(window), size))
        shapes = (2,), (), (4,), (4,), (1,), (2, 2), (), ()  # of a query
        return FramePredictions(*(np.zeros((size, 3, *shape), np.float32) for shape in shapes)), window

    monkeypatch.setattr(segmenter, "_start_window", start)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**45))
    assert len(list(segmenter.run_network(classifier, clip_frames()[:num_frames]))) == num_frames
    assert windows == expected


def test_memory_bounds_a_window(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    assert affordable_window(4, (480, 864)) == 4
    with pytest.warns(UserWarning, match="^window 100000: memory allows 4 frames of 864x480 at a time$"):
        assert affordable_window(100_000, (480, 864)) == 4
    with pytest.raises(InputError, match=r"^frames of 4000x4000 pixels need some 8.9 GiB each .*and 1.0 are free"):
        affordable_window(1, (4000, 4000))
