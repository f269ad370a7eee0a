"""Figures that the authors publish, to compare with.

They are of the authors' released models, evaluated with a track history of 9 frames, the 5 best of which are matched.
Sources: the results table of https://github.com/zwq456/CLIP-VIS, and for novel classes the abstract of
https://arxiv.org/abs/2403.12455.
"""

import dataclasses

SOURCE = "https://github.com/zwq456/CLIP-VIS"
"""Where the figures come from."""


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedRow:
    """Scores of one of the authors' models on one data set, times 100 as papers write them.

    Attributes:
        dataset: ``lvvis_val``, ``lvvis_test``, ``ovis``, ``ytvis19``, ``ytvis21`` or ``burst``.
        trained_on: Names of the data sets that the model was trained on.
        backbone: ``RN50`` or ``ConvNeXt-B``.
        ap: AP over all classes.
        ap_novel: AP over novel classes, None where it is not published.
    """

    dataset: str
    trained_on: str
    backbone: str
    ap: float
    ap_novel: float | None = None


_DATASETS = ("lvvis_val", "lvvis_test", "ovis", "ytvis19", "ytvis21", "burst")
_AP = {
    ("LVIS", "RN50"): (19.5, 14.6, 14.1, 32.2, 30.1, 5.2),
    ("LVIS", "ConvNeXt-B"): (32.2, 25.3, 18.5, 42.1, 37.9, 8.3),
    ("COCO, YTVIS19", "RN50"): (9.4, 6.7, 15.8, 39.7, 35.7, 4.2),
    ("COCO, YTVIS19", "ConvNeXt-B"): (15.9, 12.0, 18.6, 50.0, 44.2, 5.0),
}
_PAPER_NAMES = {"convnext_base_w": "ConvNeXt-B"}
_AP_NOVEL = {("LVIS", "ConvNeXt-B", "lvvis_val"): 40.2}

PUBLISHED = tuple(
    PublishedRow(dataset, *model, ap, _AP_NOVEL.get((*model, dataset)))
    for model, scores in _AP.items()
    for dataset, ap in zip(_DATASETS, scores, strict=True)
)
"""All published rows."""


def published_rows(dataset: str | None, backbone: str | None = None) -> list[PublishedRow]:
    """Return what is published for a data set.

    Args:
        dataset: The data set, as `PublishedRow` and ``DatasetInfo.published_as`` name it; None: nothing is.
        backbone: Only rows of this backbone, by open_clip's name or the one of `PublishedRow`. None: all.
    """
    wanted = _PAPER_NAMES.get(backbone or "", backbone)
    return [row for row in PUBLISHED if row.dataset == dataset and wanted in (None, row.backbone)]
