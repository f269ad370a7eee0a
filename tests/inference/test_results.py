"""Results are values: copies have the same masks, whatever becomes of the original."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

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
