"""Annotation files and results with changed values: a line that says what is wrong, or the right scores."""

import copy
import io
import json
import os
import random
from contextlib import redirect_stdout

import numpy as np
import pytest
from annotation_files import SQUARE, coco, compressed, lvis, youtube_vis
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import ground_truth_from, load_results, scoring_rules
from clipvis_jax.evaluation.summary import summarize, summary_to_json

ROUNDS = int(os.environ.get("CLIPVIS_FUZZ_ROUNDS", "100"))
NESTED = json.loads("[" * 300 + "]" * 300)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 30, 90, 2**31, 2**53, -(2**63), 2**64, 10**400),
    *(0.5, 1.0, -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "1", "é", "\ud800", "\x1b[2J", "../x", "a" * 10_000),
    *(
        [],
        [[]],
        [None],
        [0],
        [1, 2, 3, 4],
        {},
        {"id": 1},
        NESTED,
        [SQUARE],
        compressed(),
        {"size": [0, 0], "counts": []},
    ),
    {"size": [2**15, 2**15], "counts": [2**30]},
)
IMAGE_RESULTS = [
    {"image_id": image, "category_id": category, "score": score, "segmentation": compressed()}
    for image, category, score in ((12, 90, 0.9), (12, 1, 0.5), (3, 1, 0.25), (12, 90, 0.1))
]
LVIS_RESULTS = [
    {"image_id": image, "category_id": category, "score": score, "segmentation": compressed()}
    for image, category, score in ((9, 3, 0.9), (9, 1, 0.5), (4, 3, 0.25), (4, 2, 0.1))
]
VIDEO_RESULTS = [
    {"video_id": 7, "category_id": 30, "score": 0.9, "segmentations": [compressed(), None, compressed()]},
    {"video_id": 2, "category_id": 4, "score": 0.5, "segmentations": [[SQUARE], compressed()]},
]


def plain_coco():
    """Make a set that COCO's own code takes too, as long as nothing is changed."""
    content = coco()
    content["annotations"][2] |= {"area": 12, "iscrowd": 0, "segmentation": [SQUARE]}
    return content


KINDS = {
    "coco": (plain_coco, IMAGE_RESULTS, "coco"),
    "lvis": (lvis, LVIS_RESULTS, "lvis"),
    "youtube-vis": (youtube_vis, VIDEO_RESULTS, "ytvis"),
}


def places(content):
    """Give every place in JSON content: what holds a value, and its key there."""
    for key, value in list(content.items()) if isinstance(content, dict) else list(enumerate(content)):
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


def mutate(rng, content):
    """Change one value in place: another one, of another place, none, twice, or deeper by a list."""
    holder, key = rng.choice(list(places(content)))
    how = rng.randrange(10)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == 2:
        other, place = rng.choice(list(places(content)))
        holder[key] = copy.deepcopy(other[place])
    elif how == 3:
        holder[key] = [holder[key]]
    elif how == 4 and isinstance(holder[key], int | float):
        holder[key] *= rng.choice((-1, 0, 0.5, 2, 1.0, 1e10))
    else:  # half of them of the type that was there, so that more than the types is tried
        alike = [value for value in VALUES if type(value) is type(holder[key])]
        holder[key] = copy.deepcopy(rng.choice(alike if how > 5 and alike else VALUES))


def coco_scores(truth, results):
    """Score by COCO's own code; None where it cannot, or reads another thing than we do on purpose.

    That is an annotation of id 0, which it takes for none, and polygons that have no pairs or no area.
    """
    with redirect_stdout(io.StringIO()):
        try:
            official = COCO(str(truth))
            assert 0 not in official.anns
            masks = [record["segmentation"] for record in official.anns.values()]
            assert all(len(part) in range(6, 99, 2) for mask in masks if isinstance(mask, list) for part in mask)
            evaluation = COCOeval(official, official.loadRes(str(results)), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        except Exception:
            return None
    return np.array(evaluation.stats)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*annotation 0 counts as never found")
def test_changed_values_are_refused_or_scored_right(kind, tmp_path):
    make, results, protocol = KINDS[kind]
    truth_file, results_file = tmp_path / "truth.json", tmp_path / "results.json"
    refused = scored = compared = 0
    for seed in range(ROUNDS):
        rng = random.Random(f"{kind} {seed}")
        truth, found = copy.deepcopy((make(), results))
        for _ in range(rng.choice((1, 1, 2, 4))):
            mutate(rng, truth if rng.random() < 0.7 else found)
        truth_file.write_text(json.dumps(truth))
        results_file.write_text(json.dumps(found))
        message = None
        try:
            dataset = open_dataset(truth_file, check_images=False)
            protocols, groups = scoring_rules(dataset, protocol)
            ground_truth = ground_truth_from(dataset)
            summary = summarize(ground_truth, load_results(results_file, ground_truth), protocols, groups=groups)
        except InputError as error:
            message = str(error)
        except BaseException as error:
            raise AssertionError(f"round {seed}: {truth} {found}") from error
        if message is not None:
            assert len(message.splitlines()) == 1
            assert len(message) < 500
            refused += 1
            continue
        scored += 1
        text = json.dumps(summary_to_json(summary, ground_truth), allow_nan=False)
        stats = np.array(list(summary.main.stats.values()))
        assert np.all((stats == -1) | ((stats >= 0) & (stats <= 1))), text
        if kind == "coco" and (official := coco_scores(truth_file, results_file)) is not None:
            compared += 1
            np.testing.assert_allclose(stats, official, rtol=0, atol=1e-12, err_msg=f"round {seed}: {truth} {found}")
    print(f"{kind}: {refused} refused, {scored} scored, {compared} compared")
    assert refused > ROUNDS / 10
    assert scored > ROUNDS / 10
