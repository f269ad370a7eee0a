"""The official ways to score instance segmentation of videos and images, and where they differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from clipvis_jax.data.records import Dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import category_fields


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What an official evaluator does in its own way.

    ``ignores_crowd``: crowd annotations are left out of the count, results on them cost nothing. ``shared``: which
    annotations many results may match; each of these results is then a true positive. ``areas``: how a track's mean
    area comes from the areas in the file: as they are, each cut to a whole number, or not at all (every track is
    then small). ``image_rules``: whose code scores images, None for videos, and then nothing before this applies.
    ``groups``: names of sets of classes; a class belongs if its field has one of the values.
    """

    name: str
    ignores_crowd: bool
    shared: Literal["crowd", "all"]
    areas: Literal["as_given", "whole", "none"]
    image_rules: Literal["coco", "lvis"] | None = None
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

SHAPES = dataclasses.replace(
    YTVIS,
    name="shapes",
    groups={"base": ("partition", (0,)), "novel": ("partition", (2,)), "unseen": ("partition", (3,))},
)
"""The Shapes world: YouTube-VIS, with its three parts of the classes."""

COCO = dataclasses.replace(YTVIS, name="coco", image_rules="coco")
"""COCO (``COCOeval``): smaller area ranges than for videos, and IoU with a crowd is over the result's area."""

LVIS = dataclasses.replace(
    YTVIS,
    name="lvis",
    image_rules="lvis",
    groups={name: ("frequency", (name[0],)) for name in ("rare", "common", "frequent")},
)
"""LVIS (``LVISEval``): of an image, only classes known to be there or not to be there count; 300 results per image.

AP of the groups is what LVIS calls APr, APc and APf.
"""

PROTOCOLS = {protocol.name: protocol for protocol in (YTVIS, LVVIS, BURST_CLIPVIS, SHAPES, COCO, LVIS)}
"""All protocols by name."""


def group_members(categories: Mapping[int, Mapping[str, Any]], protocol: Protocol, source: str) -> dict[str, set[int]]:
    """Return the ids of the categories in each of a protocol's groups.

    Args:
        categories: Fields of the categories by id, as in `GroundTruth`.
        protocol: The protocol.
        source: Where the categories are from, for messages.

    Raises:
        InputError: A category lacks the field by which the protocol groups.
    """
    members: dict[str, set[int]] = {}
    for name, (field, values) in protocol.groups.items():
        for category_id, record in categories.items():
            if field not in record:
                raise InputError(
                    f"{source}: category {category_id} has no '{field}', by which the protocol '{protocol.name}' "
                    "tells its groups; choose another protocol"
                )
        members[name] = {i for i, record in categories.items() if record[field] in values}
    return members


def scoring_rules(dataset: Dataset, name: str | None = None) -> tuple[list[Protocol], dict[str, set[int]]]:
    """Say how a data set is scored.

    Args:
        dataset: The data set.
        name: Name of a protocol to use instead of the data set's own. A data set without one is scored as YouTube-VIS,
            images as COCO.

    Returns:
        The protocols, the main one first, and further groups of category ids to report, by name.

    Raises:
        InputError: A category lacks the field by which a protocol groups, or the protocol is for images.
    """
    info = dataset.info
    main = PROTOCOLS[name or info.protocol or (COCO if info.is_images else YTVIS).name]
    if main.image_rules is not None and not info.is_images:
        raise InputError(f"protocol '{main.name}': scores images, and {dataset.name} has videos; choose another one")
    # The authors' way of scoring BURST takes surplus results for right, so the ordinary one stands beside it.
    protocols = [main, YTVIS] if main is BURST_CLIPVIS else [main]
    categories = {category.id: category_fields(category) for category in dataset.categories}
    for protocol in protocols:
        group_members(categories, protocol, dataset.name)
    if not info.novel_names:
        return protocols, {}
    novel = {category.id for category in dataset.categories if category.name in info.novel_names}
    return protocols, {"base": {category.id for category in dataset.categories} - novel, "novel": novel}


def rule_note(dataset: Dataset, protocol: Protocol) -> str | None:
    """Say whose rules were used where that is not the data set's own official protocol; None if it is."""
    if dataset.info.protocol == protocol.name:
        return None
    own = "has no official protocol" if dataset.info.protocol is None else f"has its own, '{dataset.info.protocol}'"
    return f"scored by the rules of '{protocol.name}'; {dataset.name} {own}"
