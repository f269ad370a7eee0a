"""BURST's own metrics on cases worked out by hand, and against trackeval's own loop over everything."""

import json
import sys

import numpy as np
import pytest
import trackeval
from plain_evaluation import HEIGHT, WIDTH, rectangle

from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import ABSENT
from clipvis_jax.evaluation.burst_official import COMMON_IDS, METRICS, evaluate_burst
from clipvis_jax.evaluation.inputs import GroundTruth, Video, parse_results
from clipvis_jax.masks.resize import encode_rle

BIRD, ACORN, AEROSOL, CAT, DISTRACTOR = 99, 1, 2, 229, 20
BOX, AWAY = (2, 2, 10, 10), (13, 20, 8, 8)
PERFECT = dict.fromkeys(METRICS, 1.0)


def counts(box):
    return encode_rle(rectangle(*box))["counts"]


def sequence(number, tracks, frames=4, negative=(), incomplete=()):
    """Write a sequence; tracks are (class, boxes)."""
    return {
        "id": number,
        "seq_name": f"clip_{number}",
        "dataset": "Charades",
        "height": HEIGHT,
        "width": WIDTH,
        "fps": 30,
        "annotated_image_paths": [f"frame{t:04}.jpg" for t in range(1, frames + 1)],
        "neg_category_ids": list(negative),
        "not_exhaustive_category_ids": list(incomplete),
        "track_category_ids": {str(i): c for i, (c, _) in enumerate(tracks, 1)},
        "segmentations": [
            {str(i): {"rle": counts(boxes[t]), "is_gt": True} for i, (_, boxes) in enumerate(tracks, 1) if boxes[t]}
            for t in range(frames)
        ],
    }


def evaluate(folder, sequences, results, **options):
    """Score results: (video, class, score, boxes)."""
    path = folder / "all_classes.json"
    path.write_text(json.dumps({"split": "val", "categories": [], "sequences": sequences}))
    return evaluate_burst(path, read(sequences, results), **options)


def read(sequences, results):
    videos = {s["id"]: Video(s["id"], HEIGHT, WIDTH, len(s["annotated_image_paths"])) for s in sequences}
    categories = {number: {"id": number} for _, number, _, _ in results}
    records = [
        {
            "video_id": video,
            "category_id": category,
            "score": score,
            "segmentations": [
                None if box is None else {"size": [HEIGHT, WIDTH], "counts": counts(box)} for box in boxes
            ],
        }
        for video, category, score, boxes in results
    ]
    return parse_results(records, GroundTruth("truth", videos, categories, []))


def test_perfect_results_score_one(tmp_path, capsys):
    sequences = [sequence(3, [(BIRD, [BOX] * 4), (ACORN, [AWAY, None, None, AWAY])]), sequence(8, [(ACORN, [BOX] * 4)])]
    results = [(3, BIRD, 0.2, [BOX] * 4), (3, ACORN, 0.9, [AWAY, None, None, AWAY]), (8, ACORN, 0.8, [BOX] * 4)]
    scores = evaluate(tmp_path, sequences, results)
    for split in ("all", "common", "uncommon"):
        assert scores[split] == pytest.approx(PERFECT, abs=1e-9)
    assert capsys.readouterr().out == ""


def test_identity_switch_by_hand(tmp_path):
    # Two tracks of half the length each: every detection is right (DetA 1). Each true positive shares its two
    # identities with 2 detections of 4, so AssA is 1/2 and HOTA sqrt(1/2), at every threshold. The tracks overlap the
    # instance by exactly 1/2: at the lowest of ten thresholds one is right, at the others none.
    sequences = [sequence(1, [(BIRD, [BOX] * 4), (ACORN, [AWAY] * 4)])]
    results = [
        (1, BIRD, 0.9, [BOX, BOX, None, None]),
        (1, BIRD, 0.8, [None, None, BOX, BOX]),
        (1, ACORN, 0.5, [AWAY] * 4),
    ]
    scores = evaluate(tmp_path, sequences, results)
    by_hand = {"HOTA": 0.5**0.5, "DetA": 1, "AssA": 0.5, "AP": 0.1}
    assert scores["common"] == pytest.approx(by_hand, abs=1e-9)
    assert scores["uncommon"] == pytest.approx(PERFECT, abs=1e-9)
    assert scores["all"] == pytest.approx({key: (x + 1) / 2 for key, x in by_hand.items()}, abs=1e-9)


def test_masks_of_half_the_size_by_hand(tmp_path):
    # An overlap of 0.5 passes 10 of HOTA's 19 thresholds, 0.05 to 0.95, and the first of AP's ten.
    sequences = [sequence(1, [(BIRD, [BOX] * 4)])]
    scores = evaluate(tmp_path, sequences, [(1, BIRD, 0.9, [(2, 2, 10, 5)] * 4)])
    assert scores["common"] == pytest.approx(dict.fromkeys(METRICS[:-1], 10 / 19) | {"AP": 0.1}, abs=1e-9)


def test_absent_and_empty_masks_are_no_detections(tmp_path):
    # Were the empty masks detections, DetA would be 6/8.
    sequences = [sequence(1, [(BIRD, [BOX] * 4), (BIRD, [AWAY, AWAY, None, None])])]
    results = [(1, BIRD, 0.9, [BOX] * 4), (1, BIRD, 0.9, [AWAY, AWAY, (0, 0, 0, 0), None])]
    assert evaluate(tmp_path, sequences, results)["common"] == pytest.approx(PERFECT, abs=1e-9)


def test_second_result_on_an_instance_is_wrong_even_after_the_first_track(tmp_path):
    # Recall 1/2 at precision 1, recall 1 at 2/3: 51 and 50 of the 101 points.
    sequences = [sequence(1, [(BIRD, [BOX] * 4), (BIRD, [AWAY] * 4)])]
    results = [(1, BIRD, 0.9, [BOX] * 4), (1, BIRD, 0.8, [BOX] * 4), (1, BIRD, 0.7, [AWAY] * 4)]
    assert evaluate(tmp_path, sequences, results)["common"]["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-9)


@pytest.mark.parametrize(
    ("negative", "incomplete", "deta"),
    [((), (), 1), ((BIRD,), (), 0.5), ((BIRD,), (BIRD,), 1)],
    ids=["unknown", "known to be absent", "annotation incomplete"],
)
def test_only_classes_known_to_be_absent_make_results_wrong(tmp_path, negative, incomplete, deta):
    sequences = [sequence(1, [(BIRD, [BOX] * 4)]), sequence(2, [(ACORN, [BOX] * 4)], 4, negative, incomplete)]
    results = [(1, BIRD, 0.5, [BOX] * 4), (2, BIRD, 0.9, [AWAY] * 4), (2, ACORN, 0.9, [BOX] * 4)]
    scores = evaluate(tmp_path, sequences, results)
    assert scores["common"]["DetA"] == pytest.approx(deta)
    assert scores["common"]["AP"] == pytest.approx(deta)


def test_classes_without_ground_truth_and_distractors_are_no_part_of_the_mean(tmp_path):
    sequences = [sequence(1, [(BIRD, [BOX] * 4), (DISTRACTOR, [AWAY] * 4)], 4, (CAT,))]
    scores = evaluate(tmp_path, sequences, [(1, BIRD, 0.5, [BOX] * 4), (1, CAT, 0.9, [AWAY] * 4)])
    assert scores["all"] == scores["common"] == pytest.approx(PERFECT, abs=1e-9)
    assert scores["uncommon"] == dict.fromkeys(METRICS, ABSENT)


def test_no_results_score_zero(tmp_path):
    scores = evaluate(tmp_path, [sequence(1, [(BIRD, [BOX] * 4)])], [])
    assert scores["all"] == dict.fromkeys(METRICS, 0.0)


def test_chosen_videos_only(tmp_path):
    sequences = [sequence(1, [(BIRD, [BOX] * 4)]), sequence(2, [(BIRD, [BOX] * 4)])]
    results = [(1, BIRD, 0.5, [BOX] * 4)]
    assert evaluate(tmp_path, sequences, results)["common"]["DetA"] == pytest.approx(0.5)
    assert evaluate(tmp_path, sequences, results, video_ids=[1])["common"] == pytest.approx(PERFECT, abs=1e-9)


def test_equals_trackeval_over_all_classes_and_videos(tmp_path, capsys):
    """Classes that we leave out of a video add nothing: the same as judging every class in every video."""
    rng = np.random.default_rng(0)

    def boxes():
        start = rng.integers(0, 6, 2).tolist()
        return [None if rng.random() < 0.2 else (*start, 10 + int(rng.integers(3)), 12) for _ in range(5)]

    classes = [BIRD, ACORN, AEROSOL, CAT, DISTRACTOR]
    sequences = [
        sequence(
            number,
            [(int(rng.choice(classes)), boxes()) for _ in range(3)],
            5,
            rng.choice(classes, 2, replace=False).tolist(),
            rng.choice(classes, 1).tolist(),
        )
        for number in range(1, 6)
    ]
    results = [
        (int(rng.integers(1, 6)), int(rng.choice(classes)), float(rng.integers(1, 9) / 8), boxes()) for _ in range(40)
    ]
    scores = evaluate(tmp_path, sequences, results)

    # The same as BURST's script does it, with files written here.
    parsed = read(sequences, results)
    predictions = []
    for truth in sequences:
        own = [r for r in parsed if r.video_id == truth["id"]]
        frames = [
            {str(i): {"rle": r.track.counts[t], "score": r.score} for i, r in enumerate(own, 1) if r.track.counts[t]}
            for t in range(5)
        ]
        categories = {str(i): r.category_id for i, r in enumerate(own, 1)}
        predictions.append(truth | {"segmentations": frames, "track_category_ids": categories})
    for name, content in (("gt", sequences), ("trackers/x/data", predictions)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.json").write_text(json.dumps({"split": "val", "sequences": content}))
    dataset = trackeval.datasets.BURST({"GT_FOLDER": f"{tmp_path}/gt", "TRACKERS_FOLDER": f"{tmp_path}/trackers"})
    metrics = trackeval.metrics.HOTA(), trackeval.metrics.TrackMAP()
    raw = {name: dataset.get_raw_seq_data("x", name) for name in dataset.seq_list}
    rows = {}
    for name in dataset.class_list:
        hota, ap = (
            metric.combine_sequences(
                {key: metric.eval_sequence(dataset.get_preprocessed_seq_data(data, name)) for key, data in raw.items()}
            )
            for metric in metrics
        )
        row = {key: hota[key].mean() for key in METRICS[:-1]} | {"AP": ap["AP_all"].mean()}
        rows[dataset.class_name_to_class_id[name]] = row
    for split, chosen in (
        ("all", rows),
        ("common", [i for i in rows if i in COMMON_IDS]),
        ("uncommon", [i for i in rows if i not in COMMON_IDS]),
    ):
        assert len(chosen) > 0
        expected = {key: np.mean([rows[i][key] for i in chosen]) for key in METRICS}
        assert scores[split] == pytest.approx(expected, abs=1e-12)
    assert 0 < scores["all"]["AP"] < 1


def test_converted_annotations_are_refused(tmp_path):
    path = tmp_path / "b2y_val.json"
    path.write_text(json.dumps({"videos": [], "categories": [], "annotations": []}))
    with pytest.raises(InputError, match=r"b2y_val\.json: has no 'sequences'"):
        evaluate_burst(path, [])


def test_missing_field_is_named(tmp_path):
    broken = sequence(1, [(BIRD, [BOX] * 4)])
    del broken["neg_category_ids"]
    with pytest.raises(InputError, match=r"sequences\[0\] has no 'neg_category_ids'"):
        evaluate(tmp_path, [broken], [])


def test_sequences_without_tracks_are_refused(tmp_path):
    with pytest.raises(InputError, match="none of the sequences to score has a track"):
        evaluate(tmp_path, [sequence(1, [])], [])


def test_other_number_of_frames_is_refused(tmp_path):
    path = tmp_path / "all_classes.json"
    short = [sequence(1, [(BIRD, [BOX] * 3)], 3)]
    path.write_text(json.dumps({"split": "val", "sequences": short}))
    longer = read([sequence(1, [(BIRD, [BOX] * 4)])], [(1, BIRD, 0.5, [BOX] * 4)])
    with pytest.raises(InputError, match=r"has 4 masks, but .* has 3 annotated frames"):
        evaluate_burst(path, longer)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackeval", None)
    with pytest.raises(InputError, match=r"pip install 'clipvis-jax\[burst\]'"):
        evaluate(tmp_path, [sequence(1, [(BIRD, [BOX] * 4)])], [])
