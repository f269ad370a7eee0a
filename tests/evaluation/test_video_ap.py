"""The evaluator against the official code's numbers, a plain evaluator, and cases small enough to reckon by hand."""

import json

import numpy as np
import pytest
from conftest import GOLDENS
from plain_evaluation import (
    LENGTH,
    VIDEO_PROTOCOLS,
    plain_score,
    random_case,
    read_truth,
    rectangle,
    score,
    small_case,
    track,
)

from clipvis_jax import InputError
from clipvis_jax.evaluation import (
    ABSENT,
    PROTOCOLS,
    evaluate,
    evaluate_class_agnostic,
    evaluate_classification,
    evaluate_segmentation,
    load_results,
    parse_results,
)
from clipvis_jax.evaluation.video_ap import STATS, match_tracks
from clipvis_jax.masks.resize import encode_rle

CASES = sorted(path.name for path in (GOLDENS / "eval").iterdir())


# ---------------------------------------------------------------------------------------------- official numbers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("protocol", ["ytvis", "lvvis"])
def test_equals_the_official_code(case, protocol):
    folder = GOLDENS / "eval" / case
    expected = json.loads((folder / "expected.json").read_text())[protocol]
    truth = read_truth(json.loads((folder / "gt.json").read_text()))
    metrics = evaluate(truth, load_results(folder / "results.json", truth, compatible=True), PROTOCOLS[protocol])
    assert metrics.stats == pytest.approx(expected["stats"], abs=1e-12, rel=0)
    absent = dict.fromkeys(STATS, ABSENT)
    for category_id, scores in metrics.per_category.items():
        official = expected["per_category"].get(str(category_id), absent)
        assert scores == pytest.approx(official, abs=1e-12, rel=0), category_id
    assert {int(i) for i in expected["per_category"]} <= set(metrics.per_category)
    groups = {"base": expected["stats_b"], "novel": expected["stats_n"]} if protocol == "lvvis" else {}
    assert set(metrics.groups) == set(groups)
    for name, scores in groups.items():
        assert metrics.groups[name] == pytest.approx(scores, abs=1e-12, rel=0)


@pytest.mark.parametrize("case", CASES)
def test_only_the_case_with_other_lengths_needs_compatible_mode(case):
    folder = GOLDENS / "eval" / case
    truth = read_truth(json.loads((folder / "gt.json").read_text()))
    if case == "c02_missing_frames":
        with pytest.raises(InputError, match=r"results.json: results\[26\].segmentations has 3 masks.* 6 frames"):
            load_results(folder / "results.json", truth)
    else:
        load_results(folder / "results.json", truth)


# ----------------------------------------------------------------------------------------------- plain evaluator


@pytest.mark.parametrize("protocol", VIDEO_PROTOCOLS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore:.*annotation 0")
def test_equals_a_plain_evaluator(seed, protocol):
    ground_truth, results = random_case(seed)
    metrics = score(ground_truth, results, protocol)
    for category_id, scores in metrics.per_category.items():
        expected = {name: plain_score(ground_truth, results, category_id, protocol, name) for name in STATS}
        assert scores == pytest.approx(expected, abs=1e-12, rel=0), category_id
    assert metrics.stats["AP50"] > 0.1


# ------------------------------------------------------------------------------------------------------- protocols


def test_scores_of_a_small_case():
    metrics = score(*small_case())
    # The second result covers 7 of 12 columns: right at 0.5 and 0.55 alone. The third costs nothing.
    assert metrics.per_category[1]["AP"] == pytest.approx(1)
    assert metrics.per_category[2]["AP"] == pytest.approx(0.2)
    assert set(metrics.per_category[3].values()) == {ABSENT}
    assert metrics.stats["AP"] == pytest.approx(0.6)
    assert metrics.stats["APl"] == ABSENT
    assert metrics.precision.shape == (3, 10, 101)
    assert metrics.precision[1, 1].tolist() == [pytest.approx(1)] * 101
    assert not metrics.precision[1, 2].any()
    assert (metrics.precision[2] == ABSENT).all()


def test_no_results_score_zero():
    ground_truth, _ = small_case()
    metrics = score(ground_truth, [], "lvvis")
    assert metrics.stats["AP"] == metrics.stats["AR100"] == metrics.groups["base"]["AP"] == 0
    assert metrics.per_category[3]["AP"] == metrics.groups["novel"]["AP"] == ABSENT


def test_a_group_without_classes_is_absent():
    ground_truth, results = small_case()
    for category in ground_truth["categories"]:
        category["partition"] = 0
    groups = score(ground_truth, results, "lvvis").groups
    assert groups["base"]["AP"] == pytest.approx(0.6)
    assert set(groups["novel"].values()) == {ABSENT}


def test_groups_go_by_category_id_and_may_be_given():
    ground_truth, results = small_case()
    for record in [*ground_truth["annotations"], *results]:
        record["category_id"] *= 10
    for category in ground_truth["categories"]:
        category["id"] *= 10
    truth = read_truth(ground_truth)
    found = parse_results(results, truth)
    groups = evaluate(truth, found, PROTOCOLS["ytvis"], groups={"seen": [10], "new": {20, 30}, "none": ()}).groups
    assert {name: scores["AP"] for name, scores in groups.items()} == pytest.approx(
        {"seen": 1, "new": 0.2, "none": ABSENT}
    )
    with pytest.raises(InputError, match=r"group 'new': ground truth has no category 2$"):
        evaluate(truth, found, PROTOCOLS["ytvis"], groups={"new": [2]})


def test_burst_counts_surplus_results_as_true():
    ground_truth, results = small_case()
    for category in ground_truth["categories"]:
        category |= {"frequency": "r", "split": "common"}
    metrics = score(ground_truth, [*results, results[0]], "burst_clipvis")
    assert metrics.per_category[1]["AR100"] == 2
    assert metrics.per_category[1]["AR1"] == 1
    assert metrics.groups["novel"] == metrics.groups["common"] == metrics.stats
    assert set(metrics.groups["base"].values()) == {ABSENT}
    assert score(ground_truth, [*results, results[0]], "ytvis").per_category[1]["AR100"] == 1


def test_burst_takes_every_track_for_small():
    ground_truth, results = small_case()
    ground_truth["videos"][0] |= {"height": 200, "width": 200}
    for category in ground_truth["categories"]:
        category |= {"frequency": "r", "split": "common"}
    for record, box in ((ground_truth["annotations"][0], (0, 0, 180, 180)), (results[0], (20, 20, 170, 170))):
        record |= {"segmentations": [encode_rle(rectangle(*box, (200, 200)))] * LENGTH, "areas": [32400] * LENGTH}
    results.append(results[0] | {"score": 0.1, "segmentations": ground_truth["annotations"][0]["segmentations"]})
    scores = score(ground_truth, results, "burst_clipvis").per_category[1]
    # Above 0.72 the first result is false, and counts although it is not small.
    assert scores["AP"] == scores["APs"] == pytest.approx(0.75)
    assert scores["APm"] == ABSENT
    assert score(ground_truth, results, "ytvis").per_category[1]["APs"] == ABSENT


def test_of_equal_overlaps_the_later_annotation_goes_first():
    overlap = np.array([[0.8, 0.8], [0.8, 0.3]])
    matched, on_left_out = match_tracks(
        overlap, np.array([1, 2]), np.array([[False, False], [False, True], [True, True]]), np.zeros(2, bool)
    )
    assert matched[0, 0].tolist() == [True, True]
    assert matched[1, 0].tolist() == [True, False]  # the first one takes what counts, although it is the earlier one
    assert matched[2, 0].tolist() == [True, True]
    assert on_left_out[:, 0].tolist() == [[False, False], [False, False], [True, True]]
    assert matched[:, 6].any(axis=1).tolist() == [True, True, True]  # 0.8 is enough for 0.8
    assert not matched[:, 7].any()


def test_annotation_zero_is_never_found():
    ground_truth, results = small_case()
    ground_truth["annotations"][0]["id"] = 0
    with pytest.warns(UserWarning, match="ground truth: annotation 0 counts as never found"):
        metrics = score(ground_truth, results)
    assert metrics.per_category[1]["AP"] == 0


# ------------------------------------------------------------------------------------------------- compatible mode


def test_compatible_mode_counts_only_common_frames():
    ground_truth, results = small_case()
    results[1]["segmentations"] = track((5, 5, 8, 12))  # one perfect frame of three
    with pytest.raises(InputError, match=r"results\[1\].segmentations has 1 masks, but video 7 has 3 frames"):
        score(ground_truth, results)
    assert score(ground_truth, results, compatible=True).per_category[2]["AP"] == pytest.approx(1)
    results[1]["segmentations"] = track(*[(5, 5, 8, 12)] * 3, (0, 0, 20, 20))
    assert score(ground_truth, results, compatible=True).per_category[2]["AP"] == pytest.approx(1)


def test_compatible_mode_leaves_out_masks_of_other_sizes():
    ground_truth, results = small_case()
    results[0]["segmentations"][0] = encode_rle(rectangle(0, 0, 9, 5, (9, 5)))
    with pytest.raises(
        InputError, match=r"results\[0\].segmentations\[0\].size is \[9, 5\], but video 1 has \[24, 32\]"
    ):
        score(ground_truth, results)
    assert score(ground_truth, results, compatible=True).per_category[1]["AP"] == pytest.approx(1)
    found = parse_results(results, read_truth(ground_truth), compatible=True)[0].track
    assert found.counts[0] is None  # pycocotools would not return from comparing it
    assert found.areas.tolist() == [45, 100, 0]
    assert found.mean_area == 72.5
    # Where the annotation has no mask, the official code never compares sizes: 45 pixels too many, 200 / 245 = 0.82.
    results[0]["segmentations"] = (
        [results[1]["segmentations"][0]] * 0
        + track((2, 3, 10, 10), (2, 4, 10, 10))
        + [encode_rle(rectangle(0, 0, 9, 5, (9, 5)))]
    )
    assert score(ground_truth, results, compatible=True).per_category[1]["AP"] == pytest.approx(0.7)


def test_compatible_mode_drops_unknown_classes():
    ground_truth, results = small_case()
    results[0]["category_id"] = 99
    with pytest.raises(InputError, match=r"results\[0\].category_id is 99; ground truth has no such category"):
        score(ground_truth, results)
    assert score(ground_truth, results, compatible=True).stats["AP"] == pytest.approx(0.1)


# -------------------------------------------------------------------------------------------- tracks alone, names alone


def test_class_agnostic_scores_tracks_whatever_their_class():
    ground_truth, results = small_case()
    del results[1]
    truth = read_truth(ground_truth)
    metrics = evaluate_class_agnostic(truth, parse_results(results, truth), PROTOCOLS["lvvis"])
    assert metrics.stats["AP"] == pytest.approx(1)
    assert metrics.groups == {}
    # The same track under all classes is no false positive, even if the best score comes last; another track is one.
    copies = [results[0] | {"category_id": i, "score": s} for i, s in ((2, 0.1), (3, 0.2), (1, 0.95))]
    other = [results[0] | {"score": 0.93, "segmentations": track((15, 15, 5, 5), None, None)}]
    for surplus, expected in ((copies, 1), (other, 2 / 3)):
        metrics = evaluate_class_agnostic(truth, parse_results([*surplus, *results], truth), PROTOCOLS["ytvis"])
        assert metrics.stats["AP"] == pytest.approx(expected)


def test_class_agnostic_recall_of_groups():
    """Neither annotations of other groups nor tracks on nothing count; precision would depend on a group's size."""
    ground_truth, results = small_case()
    truth = read_truth(ground_truth)
    cat, dog = (annotation["category_id"] for annotation in ground_truth["annotations"][:2])
    nothing = results[0] | {"score": 0.99, "segmentations": track((15, 15, 5, 5), None, None)}
    for protocol in ("ytvis", "lvvis"):

        def groups(records, protocol=PROTOCOLS[protocol]):
            members = {"cats": {cat}, "dogs": {dog}, "none": {3}}
            metrics = evaluate_class_agnostic(truth, parse_results(records, truth), protocol, groups=members)
            assert all(stat.startswith("AR") for stats in metrics.groups.values() for stat in stats)
            return {name: stats["AR100"] for name, stats in metrics.groups.items()}

        assert groups(results[:1]) == pytest.approx({"cats": 1, "dogs": 0, "none": ABSENT})
        assert groups([nothing, *results[:1]])["cats"] == pytest.approx(1)


def test_segmentation_scores_masks_whatever_the_names():
    ground_truth, results = small_case()
    truth = read_truth(ground_truth)

    def ap(records):
        return evaluate_segmentation(truth, parse_results(records, truth), PROTOCOLS["lvvis"]).stats["AP"]

    right = ap(results)
    assert right == pytest.approx((1 + (2 * 1 + 8 * 0.5) / 10) / 2)  # the better one of two tracks comes second
    swapped = [record | {"category_id": 4 - record["category_id"]} for record in results]
    assert ap(swapped) == pytest.approx(right)
    # The same track under a further name is one track, with its best score; a track on nothing has no name.
    nothing = results[0] | {"score": 0.99, "segmentations": track((15, 15, 5, 5), None, None)}
    assert ap([*results, results[0] | {"category_id": 2, "score": 0.1}, nothing]) == pytest.approx(right)
    assert ap(results[:1]) == pytest.approx(0.5)


def test_classification_scores_names_whatever_the_masks():
    ground_truth, results = small_case()
    truth = read_truth(ground_truth)

    def ap(records):
        return evaluate_classification(truth, parse_results(records, truth), PROTOCOLS["lvvis"]).stats["AP"]

    assert ap(results) == pytest.approx(1)  # the second one's masks are poor, but good enough to say what it means
    assert ap(results[:1]) == pytest.approx(1)  # what is not found does not count
    assert ap([]) == ABSENT
    # Two more results of the right class on the same instance are no false positives.
    assert ap([*results, results[1] | {"score": 0.99}, results[1] | {"score": 0.1}]) == pytest.approx(1)
    wrong = [results[0] | {"category_id": 2, "score": 0.85}]
    assert ap([*results, *wrong]) == pytest.approx((1 + 0.5) / 2)
