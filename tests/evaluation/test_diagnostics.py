"""What became of every instance, confusions, and scores of single videos, on cases worked out by hand."""

import dataclasses

import numpy as np
import pytest
from plain_evaluation import (
    HEIGHT,
    LENGTH,
    VIDEO_PROTOCOLS,
    WIDTH,
    pixels,
    random_case,
    read_truth,
    score,
    small_case,
    track,
)

from clipvis_jax.evaluation import PROTOCOLS, evaluate, evaluate_classification, parse_results
from clipvis_jax.evaluation.diagnostics import video_scores
from clipvis_jax.evaluation.outcomes import Confusion, confusions, instance_outcomes, track_outcomes

BOX = (4, 4, 10, 10)
HALVES = (4, 4, 10, 5), (4, 9, 10, 5)


def case(annotations, results, categories=4):
    """Read annotations and results of one video: (class, boxes) and (class, score, boxes)."""
    truth = read_truth(
        {
            "videos": [{"id": 1, "height": HEIGHT, "width": WIDTH, "length": LENGTH}],
            "categories": [{"id": i, "name": f"class {i}"} for i in range(1, categories + 1)],
            "annotations": [
                {"id": i, "video_id": 1, "category_id": c, "segmentations": track(*boxes), "iscrowd": len(crowd)}
                for i, (c, boxes, *crowd) in enumerate(annotations, 1)
            ],
        }
    )
    found = [{"video_id": 1, "category_id": c, "score": s, "segmentations": track(*boxes)} for c, s, boxes in results]
    return truth, parse_results(found, truth)


def test_track_is_found_and_named_by_its_best_score():
    results = [(2, 0.3, [BOX] * 3), (3, 0.9, [BOX] * 3), (1, 0.95, [(0, 20, 4, 4)] * 3)]
    (outcome,) = instance_outcomes(*case([(2, [BOX] * 3)], results))
    assert (outcome.mask_overlap, outcome.track_overlap, outcome.named) == (1, 1, 3)


def test_equal_scores_count_in_their_order():
    results = [(3, 0.5, [BOX] * 3), (2, 0.5, [BOX] * 3)]
    (outcome,) = instance_outcomes(*case([(2, [BOX] * 3)], results))
    assert outcome.named == 3


def test_identity_switch_is_segmented_but_not_tracked():
    # The first track has the instance in one frame, the second in the other two, where the first has a wrong place.
    away = (15, 22, 9, 10)
    results = [(1, 0.9, [BOX, away, away]), (1, 0.8, [None, BOX, None]), (1, 0.7, [None, None, BOX])]
    (outcome,) = instance_outcomes(*case([(1, [BOX] * 3)], results), 0.5)
    assert outcome.mask_overlap == 1
    assert outcome.track_overlap == pytest.approx(1 / 3)
    assert outcome.named is None


def test_masks_where_the_instance_is_absent_do_not_count_against_the_best_masks():
    (outcome,) = instance_outcomes(*case([(1, [BOX, None, None])], [(1, 0.9, [BOX, BOX, BOX])]))
    assert (outcome.mask_overlap, outcome.track_overlap) == (1, pytest.approx(1 / 3))


def test_frames_without_a_mask_count_against_the_best_masks():
    (outcome,) = instance_outcomes(*case([(1, [BOX] * 3)], [(1, 0.9, [BOX, None, HALVES[0]])]))
    assert outcome.mask_overlap == outcome.track_overlap == pytest.approx((100 + 0 + 50) / 300)


@pytest.mark.parametrize(("min_overlap", "named"), [(0.5, 1), (0.51, None)])
def test_overlap_at_the_bound_is_enough(min_overlap, named):
    (outcome,) = instance_outcomes(*case([(1, [BOX] * 3)], [(1, 0.9, [HALVES[0]] * 3)]), min_overlap)
    assert outcome.named == named


def test_confusions_come_with_the_biggest_mistake_first():
    boxes = [(0, 0, 8, 8), (0, 10, 8, 8), (0, 20, 8, 8), (12, 0, 8, 8), (12, 10, 8, 8)]
    annotations = [(c, [box] * 3) for c, box in zip((1, 1, 1, 2, 3), boxes, strict=True)]
    named = (2, 2, 1, 4)  # the last instance has no result
    results = [(c, 0.9, [box] * 3) for c, box in zip(named, boxes, strict=False)]
    outcomes = instance_outcomes(*case(annotations, results))
    assert confusions(outcomes) == [Confusion(1, 2, 2), Confusion(2, 4, 1), Confusion(3, None, 1)]


def test_crowds_are_left_out():
    outcomes = instance_outcomes(*case([(1, [BOX] * 3, "crowd"), (2, [BOX] * 3)], []))
    assert [(outcome.annotation.category_id, outcome.named) for outcome in outcomes] == [(2, None)]


def test_instance_and_track_without_pixels():
    (outcome,) = instance_outcomes(*case([(1, [None] * 3)], [(1, 0.9, [None] * 3)]))
    assert (outcome.mask_overlap, outcome.track_overlap, outcome.named) == (0, 0, None)


@pytest.mark.filterwarnings("ignore:.*annotation 0")
@pytest.mark.parametrize("seed", range(3))
def test_outcomes_on_pixels(seed):
    """The same on decoded masks, one pair and one frame at a time."""
    truth, results = random_case(seed)
    parsed = read_truth(truth)
    outcomes = {x.annotation.id: x for x in instance_outcomes(parsed, parse_results(results, parsed))}
    for annotation in truth["annotations"]:
        if annotation["iscrowd"]:
            assert annotation["id"] not in outcomes
            continue
        real = pixels(annotation["segmentations"])
        found = [pixels(r["segmentations"]) for r in results if r["video_id"] == annotation["video_id"]]
        tracks = [np.sum(f & real) / max(np.sum(f | real), 1) for f in found]
        shared = union = 0
        for t, mask in enumerate(real):
            pairs = [(np.sum(f[t] & mask), np.sum(f[t] | mask)) for f in found]
            i, u = max(pairs, key=lambda p: p[0] / max(p[1], 1), default=(0, mask.sum()))
            shared, union = shared + i, union + (u if i else mask.sum())
        outcome = outcomes[annotation["id"]]
        assert outcome.track_overlap == pytest.approx(max(tracks, default=0), abs=1e-12)
        assert outcome.mask_overlap == pytest.approx(max(shared / max(union, 1), *tracks, 0), abs=1e-12)


def test_annotation_ids_may_repeat_from_video_to_video():
    truth, results = small_case()
    parsed = read_truth(truth)
    parsed = dataclasses.replace(parsed, annotations=[dataclasses.replace(a, id=1) for a in parsed.annotations])
    found = parse_results(results[:1], parsed)
    # Only the cat is found, so only cats are left to be named.
    assert evaluate_classification(parsed, found, PROTOCOLS["ytvis"]).stats["AP"] == pytest.approx(1)
    assert [outcome.named for outcome in instance_outcomes(parsed, found)] == [1, None]
    outcomes = track_outcomes(parsed, parse_results(results, parsed))
    assert [outcome.is_second for outcome in outcomes] == [False, False, True]


@pytest.mark.parametrize("protocol", VIDEO_PROTOCOLS)
@pytest.mark.filterwarnings("ignore:.*annotation 0")
def test_video_scores_equal_the_evaluation_of_each_video_alone(protocol):
    truth, results = random_case(5)
    parsed = read_truth(truth)
    scores = video_scores(parsed, parse_results(results, parsed), PROTOCOLS[protocol])
    assert scores
    for video_id in range(1, 7):
        alone = truth | {"annotations": [a for a in truth["annotations"] if a["video_id"] == video_id]}
        expected = score(alone, [r for r in results if r["video_id"] == video_id], protocol).stats["AP"]
        assert scores.get(video_id, -1.0) == pytest.approx(expected, abs=1e-15)


def test_video_scores_by_hand():
    truth, results = small_case()
    parsed = read_truth(truth)
    # The second video's result has 7 of 12 columns: an overlap of 0.583, enough at 0.5 and 0.55 of ten thresholds.
    assert video_scores(parsed, parse_results(results, parsed), PROTOCOLS["ytvis"]) == pytest.approx({1: 1, 7: 0.2})


def test_single_video_has_the_score_of_the_data_set():
    truth, results = case([(1, [BOX] * 3), (2, [HALVES[0]] * 3)], [(1, 0.9, [BOX] * 3), (2, 0.5, [HALVES[1]] * 3)])
    protocol = PROTOCOLS["ytvis"]
    assert video_scores(truth, results, protocol) == {1: evaluate(truth, results, protocol).stats["AP"]}
