"""Average precision and recall of image sets by COCO's and LVIS's rules, as faster-coco-eval computes them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float

from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import Annotation, GroundTruth, Result
from clipvis_jax.evaluation.protocols import Protocol
from clipvis_jax.masks.rle import empty_mask

_LVIS_RESULTS_PER_IMAGE = 300
_AREAS = ("s", "m", "l")


def score_images(
    ground_truth: GroundTruth, results: Sequence[Result], protocol: Protocol
) -> tuple[dict[str, Float[np.ndarray, " c"]], Float[np.ndarray, "c thresholds recalls"]]:
    """Score every class, in the order of ids, by the rules of ``protocol.image_rules``.

    Returns:
        Scores by name, -1 where a class has no ground truth, and the precision behind AP.

    Raises:
        InputError: The data set has videos of more than one frame.
    """
    for video in ground_truth.videos.values():
        if video.length != 1:
            raise InputError(
                f"{ground_truth.source}: video {video.id} has {video.length} frames, but the protocol "
                f"'{protocol.name}' scores images; choose another protocol"
            )
    is_lvis = protocol.image_rules == "lvis"
    truth = COCO(_dataset(ground_truth))
    found = COCO(_dataset(ground_truth, _federated(ground_truth, results) if is_lvis else results))
    evaluation = COCOeval_faster(truth, found, iouType="segm", lvis_style=is_lvis)
    max_results = [1, 10, 100, _LVIS_RESULTS_PER_IMAGE] if is_lvis else [1, 10, 100]
    evaluation.params.maxDets = max_results
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # threshold, recall, class, area range
    recall = evaluation.eval["recall"]  # threshold, class, area range, number of results
    ap = precision.mean(axis=(0, 1))
    ar = recall.mean(axis=0)
    scores = {"AP": ap[:, 0], "AP50": precision[0, :, :, 0].mean(axis=0), "AP75": precision[5, :, :, 0].mean(axis=0)}
    scores |= {f"AP{area}": ap[:, i] for i, area in enumerate(_AREAS, 1)}
    scores |= {f"AR{count}": ar[:, 0, i] for i, count in enumerate(max_results)}
    scores |= {f"AR{area}": ar[:, i, -1] for i, area in enumerate(_AREAS, 1)}
    return scores, precision[..., 0].transpose(2, 0, 1)


def _federated(ground_truth: GroundTruth, results: Sequence[Result]) -> list[Result]:
    """Keep what counts for LVIS: the best results of each image, and of them those of classes that were looked for.

    The library leaves the first to its caller, and fails where an image without annotations has results of other
    classes.
    """
    looked_for = {(x.id, number) for x in ground_truth.videos.values() for number in x.neg_category_ids}
    looked_for |= {(annotation.video_id, annotation.category_id) for annotation in ground_truth.annotations}
    counts: Counter[int] = Counter()
    kept = set()
    for index in sorted(range(len(results)), key=lambda i: -results[i].score):
        result = results[index]
        counts[result.video_id] += 1
        if counts[result.video_id] <= _LVIS_RESULTS_PER_IMAGE and (result.video_id, result.category_id) in looked_for:
            kept.add(index)
    return [result for index, result in enumerate(results) if index in kept]


def _dataset(ground_truth: GroundTruth, results: Sequence[Result] | None = None) -> dict[str, Any]:
    """Write annotations, or results in their place, as COCO has them."""
    records: list[dict[str, Any]] = []
    source: Sequence[Annotation | Result] = ground_truth.annotations if results is None else results
    # Not the files' ids: the library takes no negative image, and an annotation of id 0 for "unmatched".
    image_ids = {video_id: number for number, video_id in enumerate(sorted(ground_truth.videos), 1)}
    for number, record in enumerate(source, 1):
        size = ground_truth.videos[record.video_id].size
        fields: dict[str, Any] = {
            "id": number,
            "image_id": image_ids[record.video_id],
            "category_id": record.category_id,
            "segmentation": {"size": size, "counts": record.track.counts[0] or empty_mask(size)},
        }
        if isinstance(record, Result):
            fields |= {"score": record.score, "area": record.track.mean_area, "iscrowd": 0}
        else:
            area = record.track.mean_area if record.areas is None else record.areas[0] or 0.0
            fields |= {"area": area, "iscrowd": int(record.is_crowd)}
        records.append(fields)
    images = [
        {
            "id": image_ids[video.id],
            "height": video.height,
            "width": video.width,
            "neg_category_ids": list(video.neg_category_ids),
            "not_exhaustive_category_ids": list(video.not_exhaustive_category_ids),
        }
        for video in ground_truth.videos.values()
    ]
    # The library takes no frequency but LVIS's three letters; its groups are not used.
    categories = [{"id": number, "name": str(number), "frequency": "f"} for number in ground_truth.categories]
    return {"images": images, "annotations": records, "categories": categories}
