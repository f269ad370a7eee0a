"""Results are values: copies and files have the same masks, and other tools read them."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO

from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.masks.resize import decode_rle, encode_rle

MASKS = np.random.default_rng(0).random((4, 6, 9)) > 0.5


def make_result(masks=MASKS):
    stored = TrackMasks((6, 9), [encode_rle(mask)["counts"] for mask in masks])
    return VideoResult([Track(3, 0, "dog", 0.75, stored)], ("dog",), 6, 9, len(masks))


def masks_of(result):
    return np.stack([result.tracks[0].mask(frame) for frame in range(result.num_frames)])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_outlives_the_original(duplicate):
    original = make_result()
    found = duplicate(original)
    assert found == original
    del original
    make_result(~MASKS)  # whose masks a stale reference would give
    np.testing.assert_array_equal(masks_of(found), MASKS)


def test_another_process_reads_the_same_masks(tmp_path):
    (tmp_path / "result").write_bytes(pickle.dumps(make_result()))
    program = (
        "import pathlib, pickle, sys, numpy as np\n"
        "result = pickle.loads(pathlib.Path(sys.argv[1], 'result').read_bytes())\n"
        "np.save(pathlib.Path(sys.argv[1], 'masks'), [result.tracks[0].mask(frame) for frame in range(4)])"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "masks.npy"), MASKS)


def test_a_result_as_a_dictionary_has_its_masks():
    (track,) = dataclasses.asdict(make_result())["tracks"]
    np.testing.assert_array_equal([decode_rle(mask) for mask in track["segmentations"]], MASKS)


def test_a_mask_that_is_handed_out_can_be_changed():
    masks = make_result().tracks[0].segmentations
    mask = masks[0]
    mask["counts"] = mask["counts"].encode()
    mask["size"].reverse()
    assert masks[0] == encode_rle(MASKS[0])
    assert masks[1:3] == [encode_rle(mask) for mask in MASKS[1:3]]
    assert masks[-1] == encode_rle(MASKS[-1])
    assert len(masks) == 4


def make_scene():
    """Two instances, one of them also under a second class; the second shows in frames 1 and 2 of 3 only."""
    masks = np.zeros((2, 3, 6, 9), bool)
    masks[0, :, 1:4, 2:6] = True
    masks[1, 1:, 3:6, 5:9] = True
    stored = [TrackMasks((6, 9), [encode_rle(mask)["counts"] for mask in track]) for track in masks]
    names = ("<b>dog</b>, puppy", "cat")
    vectors = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    rows = [(4, 0, 0.9, 0), (7, 1, 0.8, 1), (4, 1, 0.3, 0)]
    tracks = [Track(i, c, names[c], score, stored[place], vectors[place]) for i, c, score, place in rows]
    return VideoResult(tracks, names, 6, 9, 3, ("sky",)), masks


def test_a_file_gives_the_same_result(tmp_path):
    result, _ = make_scene()
    result.save(tmp_path / "tracks.json")
    loaded = VideoResult.load(tmp_path / "tracks.json")
    assert loaded == result
    for ours, theirs in zip(loaded.tracks, result.tracks, strict=True):
        np.testing.assert_array_equal(ours.embedding, theirs.embedding)
    make_result().save(tmp_path / "tracks.json")  # without embeddings
    assert VideoResult.load(tmp_path / "tracks.json") == make_result()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["results", 0, "category_id"], 9, r"results\[0\].category_id is 9, which is no category"),
        (["results", 1, "segmentations", 0], None, None),
        (["results", 1, "segmentations"], [None], r"results\[1\].segmentations has 1 masks for 3 frames"),
        (["results", 0, "segmentations", 1, "counts"], "0" * 50, r"results\[0\].segmentations: a mask is not of 6 x 9"),
        (["results", 0, "segmentations", 1, "counts"], "P", r"results\[0\].segmentations: a mask is not of 6 x 9"),
        (["results", 0, "segmentations", 1, "size"], [9, 6], r"results\[0\].segmentations: a mask is not of 6 x 9"),
        (["results", 0, "score"], "high", r"results\[0\].score"),
        (["video", "height"], 0, "video.height"),
        (["video"], [], "video"),
    ],
)
def test_a_file_of_something_else(place, value, message, tmp_path):
    path = tmp_path / "tracks.json"
    make_scene()[0].save(path)
    document = json.loads(path.read_text())
    *parents, last = place
    member = document
    for name in parents:
        member = member[name]
    member[last] = value
    path.write_text(json.dumps(document))
    if message is None:
        assert not VideoResult.load(path).tracks[1].mask(0).any()
        return
    with pytest.raises(InputError, match=message) as caught:
        VideoResult.load(path)
    assert "\n" not in str(caught.value)


def test_frames_have_what_shows_there():
    result, masks = make_scene()
    assert [(t.track_id, t.class_name, t.score) for t in result.frame(0)] == [
        (4, "<b>dog</b>, puppy", 0.9),
        (4, "cat", 0.3),
    ]
    dog, cat = result.best().frame(2)
    assert (dog.box, cat.box) == ((2, 1, 6, 4), (5, 3, 9, 6))
    np.testing.assert_array_equal(cat.mask, masks[1, 2])
    with pytest.raises(IndexError, match="frame 3: the result has frames 0 to 2"):
        result.frame(3)


def test_pictures_and_pages():
    result, masks = make_scene()
    grey = np.full((6, 9, 3), 90, np.uint8)
    drawn = np.asarray(result.plot(1, grey))
    assert (drawn != grey).any(axis=2)[masks[:, 1].any(axis=0)].all()
    assert result.plot(0).size == (9, 6)
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;b&gt;dog" in page
    assert "<b>" not in page
    assert "0 results" in dataclasses.replace(result, tracks=[])._repr_html_()


def test_coco_is_read_by_its_own_tools():
    result, masks = make_scene()
    coco = COCO()
    coco.dataset = json.loads(json.dumps(result.to_coco(["a.png", "b.png", "c.png"])))
    coco.createIndex()
    assert [image["file_name"] for image in coco.loadImgs([1, 2, 3])] == ["a.png", "b.png", "c.png"]
    found = {(a["image_id"], a["track_id"]): a for a in coco.loadAnns(coco.getAnnIds())}
    assert sorted(found) == [(1, 4), (2, 4), (2, 7), (3, 4), (3, 7)]
    for (image, track), annotation in found.items():
        mask = masks[0 if track == 4 else 1, image - 1]
        np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
    assert found[2, 7]["bbox"] == [5, 3, 4, 3]
    assert coco.loadCats(found[2, 7]["category_id"])[0]["name"] == "cat"


def test_supervision_takes_every_frame():
    supervision = pytest.importorskip("supervision")
    result, masks = make_scene()
    first, second, _ = result.to_supervision()
    assert isinstance(first, supervision.Detections)
    assert (len(first), len(second)) == (1, 2)
    assert second.tracker_id.tolist() == [4, 7]
    assert second["class_name"].tolist() == ["<b>dog</b>, puppy", "cat"]
    np.testing.assert_array_equal(second.mask, masks[:, 1])
    np.testing.assert_array_equal(second.xyxy, supervision.mask_to_xyxy(masks[:, 1]) + np.array([0, 0, 1, 1]))
    assert all(len(frame) == 0 for frame in dataclasses.replace(result, tracks=[]).to_supervision())
