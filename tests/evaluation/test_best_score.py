"""The score with the best F1, against all that can be tried."""

import dataclasses

import numpy as np
import pytest
from plain_evaluation import HEIGHT, WIDTH, random_case, read_truth, track

from clipvis_jax.evaluation.best_score import SCORES, find_best_scores
from clipvis_jax.evaluation.inputs import parse_results
from clipvis_jax.evaluation.protocols import PROTOCOLS
from clipvis_jax.evaluation.video_ap import track_overlaps


def right_and_kept(truth, results, min_score):
    """Count by definition: result after result, best first, each takes the free object with the largest IoU."""
    right = kept = 0
    for category in truth.categories:
        objects = [x for x in truth.annotations if x.category_id == category and not x.is_crowd]
        free = {annotation.id for annotation in objects}
        if not free:
            continue
        found = [x for x in results if x.category_id == category and x.score >= min_score]
        for result in sorted(found, key=lambda x: -x.score):
            near = [x for x in objects if x.video_id == result.video_id and x.id in free]
            kept += 1
            if near:
                overlap = track_overlaps([result], near, truth.videos[result.video_id])[0]
                if overlap.max() >= 0.5:
                    right += 1
                    free.discard([x.id for x, value in zip(near, overlap, strict=True) if value == overlap.max()][-1])
    return right, kept


@pytest.mark.parametrize("seed", range(5))
def test_no_other_score_has_a_better_f1(seed):
    ground_truth, records = random_case(seed)
    for annotation in ground_truth["annotations"]:
        annotation |= {"iscrowd": 0, "id": annotation["id"] + 1}  # the official code never finds annotation 0
    truth = read_truth(ground_truth)
    results = parse_results(records, truth)
    best = find_best_scores(truth, results, PROTOCOLS["ytvis"])
    number = len(truth.annotations)

    def f1(min_score):
        right, kept = right_and_kept(truth, results, min_score)
        return 2 * right / (kept + number)

    assert best.overall.f1 == pytest.approx(f1(best.overall.min_score))
    assert best.overall.f1 == pytest.approx(max(f1(result.score) for result in results))
    right, kept = right_and_kept(truth, results, best.overall.min_score)
    assert (best.overall.precision, best.overall.recall) == pytest.approx((right / kept, right / number))
    np.testing.assert_allclose(best.curves.f1, [f1(score) for score in SCORES])


def test_nothing_right():
    ground_truth, _ = random_case(0)
    assert find_best_scores(read_truth(ground_truth), [], PROTOCOLS["ytvis"]) is None


def test_images():
    """A result within a crowd is neither right nor wrong; where not all classes were looked for, none is wrong."""
    square, crowd, part, elsewhere = (track(box) for box in ((0, 0, 8, 8), (8, 8, 8, 8), (9, 9, 3, 3), (0, 9, 4, 4)))
    truth = read_truth(
        {
            "videos": [{"id": 1, "height": HEIGHT, "width": WIDTH, "length": 1}],
            "categories": [{"id": 1, "name": "a", "frequency": "f"}],
            "annotations": [
                {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": square},
                {"id": 2, "video_id": 1, "category_id": 1, "iscrowd": 1, "segmentations": crowd},
            ],
        }
    )
    records = [
        {"video_id": 1, "category_id": 1, "score": score, "segmentations": masks}
        for score, masks in ((0.3, square), (0.9, part), (0.5, elsewhere))
    ]
    results = parse_results(records, truth)
    best = find_best_scores(truth, results, PROTOCOLS["coco"])
    assert dataclasses.astuple(best.overall) == pytest.approx((0.3, 2 / 3, 0.5, 1.0))
    assert find_best_scores(truth, results, PROTOCOLS["lvis"]) is None
