"""Annotation formats: what a record of each looks like, and how it becomes a record of ``clipvis_jax.data.records``."""

from clipvis_jax.data.formats.burst import BURST
from clipvis_jax.data.formats.coco import COCO
from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.recognition import recognize_format
from clipvis_jax.data.formats.youtube_vis import YOUTUBE_VIS

__all__ = ["BURST", "COCO", "YOUTUBE_VIS", "Format", "recognize_format"]
