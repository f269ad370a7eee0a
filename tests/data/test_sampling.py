"""Repeat factors and the order of training examples."""

import dataclasses

import numpy as np
import pytest
from memory_dataset import make_dataset

from clipvis_jax.data.records import Instance
from clipvis_jax.data.sampling import ExampleOrder, make_example_order, repeat_factors
from clipvis_jax.errors import InputError


def positions(order, start, stop):
    return [order[position] for position in range(start, stop)]


def test_repeat_factors_by_hand():
    # Of 8 videos class 1 is in all, 2 in two, 3 in one. At threshold 0.5: sqrt(0.5 / 0.25), sqrt(0.5 / 0.125).
    categories = [{1}, {1}, {1}, {1}, {1}, {1, 2}, {1, 2, 3}, {1}]
    expected = [1, 1, 1, 1, 1, np.sqrt(2), 2, 1]
    np.testing.assert_allclose(repeat_factors(categories, 0.5), expected, rtol=1e-15)


def test_threshold_zero_repeats_nothing():
    np.testing.assert_array_equal(repeat_factors([{1}, {2}, {1}], 0.0), [1, 1, 1])


def test_repeat_factors_equal_detectron2s_formula():
    rng = np.random.default_rng(0)
    categories = [set(rng.choice(50, rng.integers(1, 6), p=np.arange(1, 51) / 1275).tolist()) for _ in range(400)]
    share = {c: np.mean([c in present for present in categories]) for c in range(50)}
    expected = [max(max(1, (0.1 / share[c]) ** 0.5) for c in present) for present in categories]
    np.testing.assert_allclose(repeat_factors(categories, 0.1), expected, rtol=1e-12)


def test_an_epoch_without_repeats_is_a_permutation():
    order = ExampleOrder(np.array([3, 5, 8, 9]), np.ones(4), seed=1)
    stream = positions(order, 0, 40)
    epochs = [stream[i : i + 4] for i in range(0, 40, 4)]
    assert all(sorted(epoch) == [3, 5, 8, 9] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3, "every epoch has an order of its own"


def test_stream_is_the_epochs_one_after_another():
    order = ExampleOrder(np.arange(7), np.array([1, 1.5, 2.25, 1, 3, 1.75, 1]), seed=4)
    joined = np.concatenate([order.epoch(i) for i in range(6)]).tolist()
    assert positions(order, 0, len(joined)) == joined
    assert len({len(order.epoch(i)) for i in range(6)}) > 1, "fractions are rounded anew"


def test_stream_can_be_read_from_anywhere_in_any_order():
    factors = np.array([1, 1.5, 2.25, 1])
    stream = positions(ExampleOrder(np.arange(4), factors, seed=2), 0, 200)
    other = ExampleOrder(np.arange(4), factors, seed=2)
    assert [other[i] for i in reversed(range(200))] == stream[::-1]
    assert ExampleOrder(np.arange(4), factors, seed=2)[150] == stream[150]
    assert positions(ExampleOrder(np.arange(4), factors, seed=3), 0, 200) != stream


def test_videos_are_repeated_as_often_as_their_factors_say():
    factors = np.array([1.0, 1.3, 2.7, 4.0])
    order = ExampleOrder(np.arange(4), factors, seed=0)
    num_epochs = 2000
    counts = np.stack([np.bincount(order.epoch(i), minlength=4) for i in range(num_epochs)])
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    fraction = factors % 1
    error = np.sqrt(fraction * (1 - fraction) / num_epochs)
    assert (np.abs(counts.mean(axis=0) - factors) <= 4 * error).all()


def test_replacement_is_the_next_usable_video_on_a_circle():
    order = ExampleOrder(np.array([2, 4, 7]), np.ones(3), seed=0)
    position = [order[i] for i in range(3)].index(7)
    assert [order.replacement(position, attempt) for attempt in range(4)] == [7, 2, 4, 7]


def test_unusable_videos_are_dropped_without_decoding_masks():
    dataset = make_dataset(6)
    records = dataset.records
    crowd = Instance(1, 1, True, records[0].instances[0].masks)
    absent = Instance(1, 1, False, (None, None))
    broken = Instance(1, 1, False, ("not a mask", "not a mask"))
    for i, instances in enumerate([(crowd,), (), (absent,), (broken,)]):
        records[i] = type(records[i])(i + 1, 48, 64, records[i].file_names, instances)
    order = make_example_order(dataset, seed=0, repeat_threshold=0.0)
    assert order.videos.tolist() == [3, 4, 5]


def test_factors_count_usable_videos_alone():
    dataset = make_dataset(6)  # of the four left, all have class 1, videos 2 and 4 class 2 as well, 2 class 3
    for video in (1, 5):
        crowds = tuple(dataclasses.replace(instance, is_crowd=True) for instance in dataset[video].instances)
        dataset.records[video] = dataclasses.replace(dataset[video], instances=crowds)
    order = make_example_order(dataset, seed=0, repeat_threshold=1.0)
    assert order.videos.tolist() == [0, 2, 3, 4]
    np.testing.assert_allclose(order.repeat_factors, [1, 2, 1, np.sqrt(2)])


def test_nothing_to_train_on():
    dataset = make_dataset(2)
    dataset.records = [dataclasses.replace(record, instances=()) for record in dataset.records]
    with pytest.raises(InputError, match="memory: no video has an instance"):
        make_example_order(dataset, seed=0, repeat_threshold=0.0)
