"""CLIP-VIS in JAX: segment, track and name every instance of a video, with any vocabulary.

>>> import clipvis_jax
>>> segmenter = clipvis_jax.load("model")
>>> result = segmenter.predict("clip.mp4", classes=["dog, puppy", "kettle"])
"""

import importlib
from typing import TYPE_CHECKING

from clipvis_jax.errors import InputError
from clipvis_jax.version import __version__

if TYPE_CHECKING:
    from clipvis_jax.inference.association import AssociationConfig
    from clipvis_jax.inference.loading import load
    from clipvis_jax.inference.results import LiveTrack, Track, VideoResult
    from clipvis_jax.inference.scores import ScoreConfig
    from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter

__all__ = [
    "AssociationConfig",
    "InferenceConfig",
    "InputError",
    "LiveTrack",
    "ScoreConfig",
    "Segmenter",
    "Track",
    "VideoResult",
    "__version__",
    "load",
]

# Imported when asked for: JAX takes seconds, and `clipvis --help` should not.
_HOMES = {
    "AssociationConfig": "inference.association",
    "InferenceConfig": "inference.segmenter",
    "LiveTrack": "inference.results",
    "ScoreConfig": "inference.scores",
    "Segmenter": "inference.segmenter",
    "Track": "inference.results",
    "VideoResult": "inference.results",
    "load": "inference.loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipvis_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clipvis_jax.{_HOMES[name]}"), name)
