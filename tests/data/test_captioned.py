"""Captioned images of the Shapes world: a stream that depends on its settings alone, and objects cut out of it."""

import dataclasses

import numpy as np
import pytest

from clipvis_jax.data.captioned import CaptionedBatch, CaptionedDataConfig, CaptionedIterator, cut_objects, draw_batch
from clipvis_jax.errors import InputError

# --- the stream


def test_stream_depends_on_the_settings_alone():
    config = CaptionedDataConfig(size=64, batch_size=4)
    with CaptionedIterator(config) as data:
        first, second = next(data), next(data)
        state = data.get_state()
        third = next(data)
    with CaptionedIterator(config) as data:
        data.set_state(state)
        again = next(data)
    np.testing.assert_array_equal(again.images, third.images)
    assert again.captions == third.captions
    assert not np.array_equal(first.images, second.images)
    shares = []
    for index in range(2):
        with CaptionedIterator(config, process_index=index, process_count=2) as data:
            shares.append(next(data).images)
    np.testing.assert_array_equal(np.concatenate(shares), first.images)
    with (
        pytest.raises(InputError, match="batch_size"),
        CaptionedIterator(dataclasses.replace(config, batch_size=8)) as data,
    ):
        data.set_state(state)


@pytest.mark.slow
def test_workers_draw_the_same():
    config = CaptionedDataConfig(size=64, batch_size=2)
    with CaptionedIterator(config) as alone, CaptionedIterator(dataclasses.replace(config, num_workers=2)) as helped:
        helped.set_state(alone.get_state())
        for _ in range(3):
            ours, theirs = next(alone), next(helped)
            np.testing.assert_array_equal(ours.images, theirs.images)
            assert ours.captions == theirs.captions


def test_images_come_again_with_other_sentences():
    config = CaptionedDataConfig(size=64, batch_size=4, num_images=4)
    with CaptionedIterator(config) as data:
        first, again = next(data), next(data)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.captions != again.captions
    assert first.region_names == again.region_names


# --- cut-outs


def test_cut_outs_show_their_objects():
    """The middle of each cut-out has the object's colour, and its sentence names the object."""
    images = np.zeros((2, 40, 40, 3), np.uint8)
    images[0, 4:12, 20:36] = (200, 0, 0)
    images[1, 30:40, 0:6] = (0, 0, 200)
    boxes = np.array([[[0.5, 0.1, 0.9, 0.3], [0, 0, 0, 0]], [[0, 0.75, 0.15, 1.0], [0, 0, 0, 0]]], np.float32)
    batch = CaptionedBatch(
        7, images, ["x", "y"], ["x", "y"], boxes, [["red", ""], ["blue", ""]], [["r", ""], ["b", ""]]
    )
    cut = cut_objects(batch, 5, 32, np.random.default_rng(0))
    assert (cut.number, cut.images.shape, cut.boxes.shape) == (7, (5, 32, 32, 3), (5, 0, 4))
    assert cut.captions == ["red", "blue", "red", "blue", "red"]
    assert cut.names == ["r", "b", "r", "b", "r"]
    assert cut.images[:, 16, 16].tolist() == [[200, 0, 0], [0, 0, 200]] * 2 + [[200, 0, 0]]
    assert not np.array_equal(cut.images[0], cut.images[2])  # margins are drawn anew
    assert (cut.images[1] == 128).all(axis=-1).any()  # it reaches beyond the image


def test_cut_outs_are_the_same_every_time():
    config = CaptionedDataConfig(size=64, batch_size=2)
    first, second = (cut_objects(draw_batch(config, 3, 0, 2), 4, 32, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
