"""The official ways to score video instance segmentation, and where they differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What an official evaluator does in its own way.

    ``ignores_crowd``: crowd annotations are left out of the count, results on them cost nothing. ``shared``: which
    annotations many results may match; each of these results is then a true positive. ``areas``: how a track's mean
    area comes from the areas in the file: as they are, each cut to a whole number, or not at all (every track is
    then small). ``groups``: names of sets of classes; a class belongs if its field has one of the values.
    """

    name: str
    ignores_crowd: bool
    shared: Literal["crowd", "all"]
    areas: Literal["as_given", "whole", "none"]
    groups: Mapping[str, tuple[str, tuple[Any, ...]]] = dataclasses.field(default_factory=dict)


YTVIS = Protocol("ytvis", ignores_crowd=True, shared="crowd", areas="as_given")
"""YouTube-VIS and OVIS (youtubevos/cocoapi, ``YTVOSeval``)."""

# Matches the official code: crowd annotations count as ordinary ones, although many results may match one of them.
LVVIS = Protocol(
    "lvvis",
    ignores_crowd=False,
    shared="crowd",
    areas="whole",
    groups={"base": ("partition", (0, 1)), "novel": ("partition", (2, 3))},
)
"""LV-VIS (haochenheheda/LVVIS, ``LVVISeval``)."""

# Matches the official code: the test for an annotation that is taken already is commented out, and areas are zero.
BURST_CLIPVIS = Protocol(
    "burst_clipvis",
    ignores_crowd=False,
    shared="all",
    areas="none",
    groups={
        "base": ("frequency", ("c", "f")),
        "novel": ("frequency", ("r",)),
        "common": ("split", ("common",)),
        "uncommon": ("split", ("uncommon",)),
    },
)
"""BURST in YouTube-VIS format as CLIP-VIS scores it (``BURSTeval``); not BURST's own metric.

Surplus results on an annotation are true positives, so recall may exceed 1.
"""

PROTOCOLS = {protocol.name: protocol for protocol in (YTVIS, LVVIS, BURST_CLIPVIS)}
"""All protocols by name."""
