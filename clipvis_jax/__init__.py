"""CLIP-VIS in JAX: segment, track and name every instance of a video, with any vocabulary.

>>> import clipvis_jax
>>> segmenter = clipvis_jax.load("model")
>>> result = segmenter.predict("clip.mp4", classes=["dog, puppy", "kettle"])
"""

from clipvis_jax.errors import InputError
from clipvis_jax.loading import load
from clipvis_jax.version import __version__

__all__ = ["InputError", "__version__", "load"]
