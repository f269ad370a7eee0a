"""The switches of the method, one by one: the paper's ablations."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES

SINGLE_TEMPLATE = ("a photo of a {}.",)
NAME_ALONE = ("{}",)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table: what is switched, and how.

    ``table`` is the table that the row belongs to, ``label`` what the row is called there.
    """

    table: str
    label: str
    association: AssociationConfig = AssociationConfig()
    scores: ScoreConfig = ScoreConfig()
    templates: tuple[str, ...] = PROMPT_TEMPLATES


def fingerprint(setting: Setting) -> str:
    """Digest what a setting switches, whatever it is called."""
    what = [dataclasses.asdict(setting.association), dataclasses.asdict(setting.scores), setting.templates]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def paper_settings(
    k_values: Sequence[int] = (1, 3, 5, 7, 9), t_values: Sequence[int] = (1, 5, 9, 13)
) -> tuple[Setting, ...]:
    """Return the paper's ablations: components, K, T, matching modes and prompt templates.

    Source: CLIP-VIS (arXiv 2403.12455), section IV-C. Rows that say the same in different tables are computed once.
    """
    previous = AssociationConfig(mode="previous")
    plain = ScoreConfig(use_objectness=False, use_iou=False)
    return (
        Setting("components", "baseline: previous frame, no weights", previous, plain),
        Setting("components", "+ top-K matching", scores=plain),
        Setting("components", "+ objectness", scores=ScoreConfig(use_iou=False)),
        Setting("components", "+ mask IoU (the method)"),
        Setting("weights", "neither", scores=plain),
        Setting("weights", "objectness", scores=ScoreConfig(use_iou=False)),
        Setting("weights", "mask IoU", scores=ScoreConfig(use_objectness=False)),
        Setting("weights", "both"),
        Setting("matching", "previous frame", previous),
        Setting("matching", "all of the history", AssociationConfig(mode="all")),
        Setting("matching", "top-K of the history"),
        *(Setting("K", str(k), AssociationConfig(top_k=k)) for k in k_values),
        *(Setting("T", str(t), AssociationConfig(memory_length=t)) for t in t_values),
        Setting("templates", "name alone", templates=NAME_ALONE),
        Setting("templates", "a photo of a", templates=SINGLE_TEMPLATE),
        Setting("templates", f"{len(PROMPT_TEMPLATES)} templates"),
    )
