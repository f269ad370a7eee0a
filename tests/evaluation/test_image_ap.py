"""Protocols of image sets, against COCO's own code and LVIS's."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import PROTOCOLS, evaluate, evaluate_class_agnostic, ground_truth_from, load_results

CASES = Path(__file__).parents[1] / "cases" / "coco_rules"
SIZE = 160


def rectangle(rng, near=None):
    """Draw the corner and the sides of a rectangle; near another one if there is one to be near."""
    if near is None:
        height, width = rng.choice([12, 31, 32, 33, 80, 96, 120], 2)
        top, left = rng.integers(0, SIZE - height + 1), rng.integers(0, SIZE - width + 1)
        return int(top), int(left), int(height), int(width)
    top, left, height, width = near
    moved = top + int(rng.integers(-3, 4)), left + int(rng.integers(-3, 4))
    return (*moved, height, width)


def encode(corner):
    top, left, height, width = corner
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[max(top, 0) : top + height, max(left, 0) : left + width] = 1
    rle = coco_mask.encode(mask)
    return {"size": [SIZE, SIZE], "counts": rle["counts"].decode()}, int(mask.sum())


def made_up(seed, *, federated=False, num_images=12, results_per_image=30):
    """Make a set with ties in scores, areas at the bounds, classes without annotations, crowds or federated classes."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in range(1, num_images + 1):
        image = {"id": image_id, "height": SIZE, "width": SIZE, "file_name": f"{image_id}.jpg"}
        places = []
        for _ in range(rng.integers(0, 5)):
            category_id = int(rng.integers(1, 6))
            place = rectangle(rng)
            segmentation, area = encode(place)
            is_crowd = int(not federated and rng.random() < 0.3)
            places.append((category_id, place))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": segmentation,
                    "area": area,
                    "bbox": [place[1], place[0], place[3], place[2]],
                    "iscrowd": is_crowd,
                }
            )
        if federated:
            absent = sorted({1, 2, 3, 4, 5, 6, 7} - {category_id for category_id, _ in places})
            image["neg_category_ids"] = [x for x in absent if rng.random() < 0.4]
            image["not_exhaustive_category_ids"] = [x for x in range(1, 8) if rng.random() < 0.3]
        images.append(image)
        for _ in range(results_per_image):
            near = places[rng.integers(len(places))] if places and rng.random() < 0.7 else None
            category_id = int(rng.integers(1, 8)) if near is None or rng.random() < 0.2 else near[0]
            segmentation, _ = encode(rectangle(rng, None if near is None else near[1]))
            score = round(float(rng.random()), 1)  # many ties
            results.append(
                {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": segmentation}
            )
    categories = [{"id": i, "name": f"c{i}", "synonyms": [f"c{i}"], "frequency": "rcf"[i % 3]} for i in range(1, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def scores_of(folder, truth, results, protocol):
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    ground_truth = ground_truth_from(open_dataset(folder / "gt.json", check_images=False))
    return evaluate(ground_truth, load_results(folder / "results.json", ground_truth), PROTOCOLS[protocol])


def official_coco(folder):
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "gt.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(6))
def test_coco_equals_cocoeval(tmp_path, seed):
    metrics = scores_of(tmp_path, *made_up(seed, results_per_image=30 if seed else 250), "coco")
    official = official_coco(tmp_path)
    np.testing.assert_allclose(list(metrics.stats.values()), official.stats, rtol=0, atol=1e-12)
    expected = official.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1)
    np.testing.assert_allclose(metrics.precision, expected, rtol=0, atol=1e-12)
    assert list(metrics.stats) == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]


@pytest.mark.parametrize("seed", range(6))
def test_lvis_equals_lviseval(tmp_path, seed, monkeypatch):
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # it is of the time before numpy 1.24
    many = 500 if seed == 0 else 30  # more than the 300 that count
    metrics = scores_of(tmp_path, *made_up(seed, federated=True, results_per_image=many), "lvis")
    evaluation = lvis.LVISEval(str(tmp_path / "gt.json"), str(tmp_path / "results.json"), "segm")
    evaluation.run()
    official = evaluation.get_results()
    ours = metrics.stats | {f"AP{name[0]}": metrics.groups[name]["AP"] for name in ("rare", "common", "frequent")}
    names = {"AR@300": "AR300", "ARs@300": "ARs", "ARm@300": "ARm", "ARl@300": "ARl"}
    found = {name: ours[names.get(name, name)] for name in official}
    assert len(official) == 13
    assert found == pytest.approx(official, rel=0, abs=1e-12)


def test_the_rules_differ(tmp_path):
    """Otherwise the tests above would show little."""
    truth, results = made_up(1, federated=True)
    assert len({scores_of(tmp_path, truth, results, name).stats["AP"] for name in ("coco", "lvis", "ytvis")}) == 3


@pytest.mark.parametrize("protocol", ["coco", "lvis"])
@pytest.mark.parametrize("shift", [-1, -7])
def test_ids_may_be_zero_or_negative(tmp_path, protocol, shift):
    """Of images, classes and annotations: the scores are those of the same set numbered from 1, without a warning."""
    truth, results = made_up(1, federated=True)
    expected = scores_of(tmp_path, truth, results, protocol)
    assert expected.stats["AP"] > 0.1
    for image in truth["images"]:
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[name] = [number + shift for number in image[name]]
    for record in (*truth["images"], *truth["categories"], *truth["annotations"]):
        record["id"] += shift
    for record in (*truth["annotations"], *results):
        record["image_id"] += shift
        record["category_id"] += shift
    found = scores_of(tmp_path, truth, results, protocol)
    assert found.stats == expected.stats
    np.testing.assert_array_equal(found.precision, expected.precision)


@pytest.mark.parametrize("results", ["coco_results.json", "yt_results.json"])
def test_results_of_either_style(results):
    truth = ground_truth_from(open_dataset(CASES / "instances_val2017.json", check_images=False))
    stats = evaluate(truth, load_results(CASES / results, truth), PROTOCOLS["coco"]).stats
    found = [round(100 * stats[name], 1) for name in ("AP", "AP50", "APs", "APl")]
    assert found == [70.6, 100.0, 81.0, 74.4]


@pytest.mark.parametrize("protocol", ["coco", "lvis"])
def test_no_results_and_no_classes_in_common(tmp_path, protocol):
    truth, results = made_up(2, federated=True)
    assert scores_of(tmp_path, truth, [], protocol).stats["AP"] == 0
    truth["annotations"] = truth["annotations"][:1]
    metrics = scores_of(tmp_path, truth, results, protocol)
    assert sum(scores["AP"] >= 0 for scores in metrics.per_category.values()) == 1
    ground_truth = ground_truth_from(open_dataset(tmp_path / "gt.json", check_images=False))
    found = load_results(tmp_path / "results.json", ground_truth)
    agnostic = evaluate_class_agnostic(ground_truth, found, PROTOCOLS[protocol], groups={"one": [1]})
    assert agnostic.stats["AR100"] == 1


def test_bad_results_of_images(tmp_path):
    truth, results = made_up(3)
    with pytest.raises(InputError, match=r"results\[0\].image_id is 99; gt has no such image"):
        scores_of(tmp_path, truth, [results[0] | {"image_id": 99}], "coco")
    other_size = {"size": [2, 2], "counts": [4]}
    with pytest.raises(InputError, match=r"results\[0\].segmentation.size is \[2, 2\], but image \d+ has"):
        scores_of(tmp_path, truth, [results[0] | {"segmentation": other_size}], "coco")
    del results[0]["segmentation"]
    with pytest.raises(InputError, match=r"results\[0\].* 'segmentation'"):
        scores_of(tmp_path, truth, results[:1], "coco")


def test_class_agnostic_scores_know_no_federated_classes(tmp_path):
    """Results on an image without annotations are wrong, whatever classes it was looked through for."""
    scores_of(tmp_path, *made_up(4, federated=True), "lvis")
    truth = ground_truth_from(open_dataset(tmp_path / "gt.json", check_images=False))
    found = load_results(tmp_path / "results.json", truth)
    by_lvis, by_coco = (evaluate_class_agnostic(truth, found, PROTOCOLS[name]).stats for name in ("lvis", "coco"))
    assert by_lvis == by_coco
