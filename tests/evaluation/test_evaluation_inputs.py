"""What the evaluator reads: every encoding gives the same scores, and what is wrong is named in one line."""

import copy
import json

import numpy as np
import pytest
from json_edits import DELETE, changed
from plain_evaluation import HEIGHT, LENGTH, WIDTH, read_truth, rectangle, score, small_case
from pycocotools import mask as coco_mask

from clipvis_jax import InputError
from clipvis_jax.evaluation import PROTOCOLS, evaluate, load_results
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.masks.rle import measure


def test_areas_and_iscrowd_are_optional():
    ground_truth, results = small_case()
    expected = score(ground_truth, results)
    for annotation in ground_truth["annotations"]:
        del annotation["areas"], annotation["iscrowd"]
    for video in ground_truth["videos"]:
        del video["length"]
        video["file_names"] = ["x.jpg"] * LENGTH
    assert score(ground_truth, results).stats == expected.stats


def test_all_encodings_are_the_same_mask():
    ground_truth, results = small_case()
    expected = score(ground_truth, results).stats
    for record in [*ground_truth["annotations"], *results]:
        for frame, mask in enumerate(record["segmentations"]):
            if mask is not None and frame == 0:
                flat = coco_mask.decode(mask).ravel(order="F").astype(int)
                runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0])), append=flat.size).tolist()
                record["segmentations"][frame] = {
                    "size": (HEIGHT, WIDTH),
                    "counts": runs if not flat[0] else [0, *runs],
                }
            elif mask is None:
                record["segmentations"][frame] = []
            elif record in results:  # which need not come from a file
                record["segmentations"][frame] = {"size": [24.0, 32.0], "counts": mask["counts"].encode()}
    # Polygons of less than three points cover nothing.
    ground_truth["annotations"][0]["segmentations"][2] = [[1, 1, 5, 5]]
    assert score(ground_truth, results).stats == expected


# ---------------------------------------------------------------------------------------------------------- files


def test_reads_tracks_json(tmp_path):
    ground_truth, results = small_case()
    truth = read_truth(ground_truth)
    names = [{"id": i, "name": name, "synonyms": name.split(", ")} for i, name in ((1, "Cat"), (2, "puppy, dog"))]
    path = tmp_path / "tracks.json"
    path.write_text(json.dumps({"info": {}, "categories": names, "results": results}))
    assert evaluate(truth, load_results(path, truth), PROTOCOLS["ytvis"]).stats["AP"] == pytest.approx(0.6)
    names[1] |= {"name": "kettle", "synonyms": ["kettle"]}
    path.write_text(json.dumps({"info": {}, "categories": names, "results": results}))
    with pytest.raises(InputError, match=r"tracks.json: categories\[1\].name is 'kettle', but class 2 of ground truth"):
        load_results(path, truth)


def test_results_with_a_byte_order_mark(tmp_path):
    ground_truth, results = small_case()
    truth = read_truth(ground_truth)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8-sig")
    assert evaluate(truth, load_results(path, truth), PROTOCOLS["ytvis"]).stats == score(ground_truth, results).stats


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"video_id": 1, "categ', "is not valid JSON .* at character 17 of 23.*cut off"),
        (b'[{"video_id": 1}', "is not valid JSON .*cut off"),
        (b'[{"video_id": 1,}, {"video_id": 2}]', r"is not valid JSON .*; correct it$"),
        (b"\xff\xfe{}", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b'{"videos": []}', "has no 'results'"),
        (b"5", "is 5, not a list"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {message}[^\n]*$"):
        load_results(path, read_truth(small_case()[0]))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing.json: cannot be read \(No such file"):
        load_results(tmp_path / "nothing.json", read_truth(small_case()[0]))


OTHER_SIZE = {"size": [32, 24], "counts": "lo5"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ([1], "x", r"results\[1\] is 'x'; an object with the field"),
        ([1, "score"], DELETE, r"results\[1\] has no 'score'"),
        ([1, "score"], float("nan"), r"results\[1\].score is nan; a finite number"),
        ([1, "score"], float("-inf"), r"results\[1\].score is -inf; a finite number"),
        ([1, "score"], "0.5", r"results\[1\].score is '0.5'; a finite number"),
        ([1, "video_id"], 5, r"results\[1\].video_id is 5; ground truth has no such video"),
        ([1, "category_id"], 5, r"results\[1\].category_id is 5; ground truth has no such category"),
        ([1, "segmentations"], DELETE, r"results\[1\] has no 'segmentations'"),
        ([1, "segmentations"], [None], r"results\[1\].segmentations has 1 masks, but video 7 has 3 frames"),
        ([1, "segmentations", 2], 5, r"results\[1\].segmentations\[2\] \(video 7\) is neither null, polygons nor"),
        ([1, "segmentations", 2], [[1, 2, 3]], r".*segmentations\[2\] \(video 7\) holds a polygon with an odd count"),
        ([1, "segmentations", 2], [[1, 2, 3, 1e9, 5, 5]], r".*\(video 7\) holds a polygon whose outline is longer"),
        ([1, "segmentations", 2], [[1, 1, 5, 1, float("nan"), 5]], r".*\(video 7\) holds a polygon whose outline is"),
        ([1, "segmentations", 2], [1.5, 2], r".*\(video 7\) holds a polygon that is not a list of numbers"),
        ([1, "segmentations", 2, "size"], [24], r".*\(video 7\) size is \[24\], not \[height, width\]"),
        ([1, "segmentations", 2, "counts"], [9], r".*segmentations\[2\] \(video 7\) counts are not whole"),
        ([1, "segmentations", 2, "counts"], "", r".*segmentations\[2\] \(video 7\) counts are neither"),
        ([1, "segmentations", 0], OTHER_SIZE, r"results\[1\].segmentations\[0\].size is \[32, 24\], but video 7"),
        ([1, "segmentations", 0, "counts"], "P1", r"results\[1\].segmentations\[0\].counts \(video 7\) are damaged"),
    ],
)
def test_bad_results(path, value, message):
    ground_truth, results = small_case()
    with pytest.raises(InputError, match=rf"^results: {message}[^\n]*$"):
        score(ground_truth, changed(results, path, value))


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("name", ["video_id", "category_id"])
def test_ids_of_results_are_whole_numbers(name, compatible):
    ground_truth, results = small_case()
    results[1][name] = [1]
    with pytest.raises(InputError, match=rf"^results: results\[1\].{name} is \[1\]; a whole number"):
        score(ground_truth, results, compatible=compatible)


def test_protocol_needs_its_fields():
    ground_truth, results = small_case()
    del ground_truth["categories"][1]["partition"]
    with pytest.raises(InputError, match=r"ground truth: category 2 has no 'partition'.*protocol 'lvvis'"):
        score(ground_truth, results, "lvvis")
    score(ground_truth, results, "ytvis")


# ---------------------------------------------------------------------------------------------------------- masks


def test_measured_areas_equal_the_pixels():
    rng = np.random.default_rng(0)
    masks = [rng.random((13, 17)) < share for share in rng.random(300)] + [np.ones((13, 17)), np.zeros((13, 17))]
    wide = np.zeros((300, 400), bool)
    wide[150:, 20:390] = True  # numbers of several characters
    areas, totals = measure([encode_rle(np.asarray(mask, bool))["counts"] for mask in [*masks, wide]])
    assert areas.tolist() == [int(mask.sum()) for mask in [*masks, wide]]
    assert totals.tolist() == [13 * 17] * len(masks) + [300 * 400]


def test_broken_run_lengths_are_noticed():
    good = encode_rle(rectangle(2, 3, 10, 10))["counts"]
    broken = {
        "cut within a number": "o",
        "a character that is none": "~" + good,
        "another one": "!" + good,
        "a negative run, though the sum is right": ":Ko2",
        "a number without end": "P" * 20 + "1",
    }
    texts = [good]
    for text in broken.values():
        texts += [text, good]
    areas, totals = measure(texts)
    assert totals[1::2].tolist() == [-1] * len(broken)
    assert set(totals[::2]) == {HEIGHT * WIDTH}
    assert set(areas[::2]) == {100}
    assert measure([good[:-1], good + "1"])[1].tolist() != [HEIGHT * WIDTH] * 2
    assert measure(["o", "o"])[1].tolist() == [-1, -1]
    assert measure([])[0].shape == (0,)


def test_input_stays_as_it_is():
    ground_truth, results = small_case()
    before = copy.deepcopy((ground_truth, results))
    score(ground_truth, results)
    assert (ground_truth, results) == before
