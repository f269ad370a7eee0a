"""Small cases for the evaluator, and a plain one to compare with: on pixels, one pair and one threshold at a time."""

import json
import tempfile
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from clipvis_jax.data.raw import RawDataset
from clipvis_jax.evaluation import ABSENT, PROTOCOLS, evaluate, ground_truth_from, parse_results
from clipvis_jax.evaluation.video_ap import AREA_RANGES
from clipvis_jax.masks.resize import encode_rle

VIDEO_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if protocol.image_rules is None]

HEIGHT, WIDTH, LENGTH = 24, 32, 3


def read_truth(content):
    """Read ground truth as commands do, from an annotation file; frames without names get some."""
    videos = [{"file_names": ["x.jpg"] * video.get("length", 0)} | video for video in content["videos"]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "truth.json")
        path.write_text(json.dumps(content | {"videos": videos}), encoding="utf-8")
        return ground_truth_from(RawDataset(path, path.parent, name="ground truth"), may_be_empty=True)


def score(ground_truth, results, protocol="ytvis", **options):
    """Score JSON contents."""
    truth = read_truth(ground_truth)
    return evaluate(truth, parse_results(results, truth, **options), PROTOCOLS[protocol])


def rectangle(top, left, height, width, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def track(*rectangles):
    return [None if box is None else encode_rle(rectangle(*box)) for box in rectangles]


def small_case():
    """Two videos and three classes: a perfect result, a poor one, a class without ground truth."""
    boxes = [(2, 3, 10, 10), (2, 4, 10, 10), None]
    other = [(5, 5, 8, 12)] * LENGTH
    videos = [{"id": i, "height": HEIGHT, "width": WIDTH, "length": LENGTH} for i in (1, 7)]
    categories = [{"id": i, "name": name, "partition": i - 1} for i, name in enumerate(("cat", "dog", "bear"), 1)]
    annotations = [
        {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": track(*boxes), "areas": [100] * 3},
        {"id": 2, "video_id": 7, "category_id": 2, "iscrowd": 0, "segmentations": track(*other), "areas": [96] * 3},
    ]
    results = [
        {"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": track(*boxes)},
        {"video_id": 7, "category_id": 2, "score": 0.8, "segmentations": track(*[(5, 5, 8, 7)] * LENGTH)},
        {"video_id": 7, "category_id": 3, "score": 0.7, "segmentations": track(*other)},
    ]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def random_case(seed):
    """Overlapping rectangles with equal scores, missing frames, crowds, and areas that disagree with the masks."""
    rng = np.random.default_rng(seed)

    def random_box():
        return (*rng.integers(0, 8, 2).tolist(), *rng.integers(6, 15, 2).tolist())

    def near(box):
        return (*(max(0, x + int(rng.integers(-1, 2))) for x in box[:2]), *box[2:])

    boxes = [random_box() for _ in range(2)]
    videos = [{"id": int(i), "height": HEIGHT, "width": WIDTH, "length": LENGTH} for i in rng.permutation(6) + 1]
    categories = [
        {"id": i, "name": str(i), "partition": i % 4, "frequency": "fcr"[i % 3], "split": ("common", "uncommon")[i % 2]}
        for i in (3, 1, 2, 4)
    ]

    def random_segmentations():
        box = boxes[rng.integers(2)]
        return track(*(None if rng.random() < 0.15 else near(box) for _ in range(LENGTH)))

    annotations = [
        {
            "id": i,
            "video_id": int(rng.integers(1, 7)),
            "category_id": int(rng.integers(1, 4)),
            "iscrowd": int(rng.random() < 0.2),
            "segmentations": random_segmentations(),
            "areas": [None, *(rng.choice([0, 90.7, 16384, 16384.7, 65536, 1e5], 2)).tolist()],
        }
        for i in range(25)
    ]
    results = [
        {
            "video_id": int(rng.integers(1, 7)),
            "category_id": int(rng.integers(1, 5)),
            "score": float(rng.integers(1, 8) / 8),
            "segmentations": random_segmentations(),
        }
        for _ in range(70)
    ]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def pixels(segmentations):
    return np.stack(
        [np.zeros((HEIGHT, WIDTH), bool) if x is None else coco_mask.decode(x).astype(bool) for x in segmentations]
    )


def plain_area(record, protocol, is_result):
    if protocol == "burst_clipvis":
        return 0
    areas = pixels(record["segmentations"]).sum(axis=(1, 2)).tolist() if is_result else record["areas"]
    areas = [int(a) if protocol == "lvvis" else a for a in areas if a]
    return sum(areas) / len(areas) if areas else 0


def plain_matches(truths, results, threshold, protocol, bounds):
    """Return (score, whether true, whether it counts, rank) of a video's results of a class."""
    low, high = bounds
    taken, outcome = set(), []

    def outside(record, is_result=False):
        return not low <= plain_area(record, protocol, is_result) <= high

    def left_out(truth):
        return outside(truth) or (protocol in ("ytvis", "shapes") and truth["iscrowd"] == 1)

    for rank, result in enumerate(sorted(results, key=lambda r: -r["score"])[:100]):
        found = pixels(result["segmentations"])
        best, best_overlap = None, 0
        for truth in [t for t in truths if not left_out(t)] + [t for t in truths if left_out(t)]:
            shared = protocol == "burst_clipvis" or truth["iscrowd"]
            real = pixels(truth["segmentations"])
            union = np.sum(found | real)
            overlap = np.sum(found & real) / union if union else 0.0
            if overlap < threshold or (id(truth) in taken and not shared):
                continue
            if best is not None and not left_out(best) and left_out(truth):
                break
            if overlap >= best_overlap:
                best, best_overlap = truth, overlap
        if best is not None:
            taken.add(id(best))
        is_true = best is not None and best["id"] != 0
        ignored = (best is not None and left_out(best)) or (not is_true and outside(result, True))
        outcome.append((result["score"], is_true, not ignored, rank))
    return outcome


def plain_precision(outcome, num_true):
    outcome = [is_true for _, is_true, counts, _ in sorted(outcome, key=lambda x: -x[0]) if counts]
    points = [(sum(outcome[:n]) / num_true, sum(outcome[:n]) / n) for n in range(1, len(outcome) + 1)]
    return np.mean([max([p for r, p in points if r >= recall], default=0) for recall in np.linspace(0, 1, 101)])


def plain_recall(outcome, num_true, max_results):
    return sum(is_true and counts and rank < max_results for _, is_true, counts, rank in outcome) / num_true


def plain_score(ground_truth, results, category_id, protocol, name):
    """Return one score of a class by itself."""
    truths = [a for a in ground_truth["annotations"] if a["category_id"] == category_id]
    results = [r for r in results if r["category_id"] == category_id]
    low, high = AREA_RANGES[max("sml".find(name[2]) + 1, 0) if name[2:] else 0]
    num_true = sum(
        low <= plain_area(t, protocol, False) <= high and not (protocol in ("ytvis", "shapes") and t["iscrowd"])
        for t in truths
    )
    if num_true == 0:
        return ABSENT
    scores = []
    for threshold in {"AP50": [0.5], "AP75": [0.75]}.get(name, np.linspace(0.5, 0.95, 10)):
        outcome = []
        for video_id in range(1, 7):
            outcome += plain_matches(
                [t for t in truths if t["video_id"] == video_id],
                [r for r in results if r["video_id"] == video_id],
                threshold,
                protocol,
                (low, high),
            )
        recall = name.startswith("AR") and plain_recall(outcome, num_true, int(name[2:]) if name[2:].isdigit() else 100)
        scores.append(recall if name.startswith("AR") else plain_precision(outcome, num_true))
    return np.mean(scores)
