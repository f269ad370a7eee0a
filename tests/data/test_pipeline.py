"""Training batches: one stream whatever the workers, processes and restarts, and bad input."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from memory_dataset import HEIGHT, WIDTH, encode_counts, encode_png, make_dataset

from clipvis_jax.cli import main
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.pipeline import PipelineConfig, make_train_iterator
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.data.transforms import LargeScaleJitter, ShortSideResize
from clipvis_jax.errors import InputError

CONFIG = PipelineConfig(
    batch_size=4, image_size=(64, 96), max_instances=5, num_workers=0, repeat_threshold=0.9, batches_ahead=1
)
AS_IS = dataclasses.replace(
    CONFIG, augmentation=ShortSideResize((HEIGHT,), 96, flip_probability=0.0), repeat_threshold=0.0
)
"""Shows frames as they are."""


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def stream(dataset, config, count, **process):
    with make_train_iterator(dataset, config, **process) as iterator:
        return take(iterator, count)


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for name, x, y in zip(one._fields, one, other, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype


def messages(warned):
    return sorted(str(warning.message) for warning in warned if warning.category is UserWarning)


def with_instances(dataset, video, instances):
    dataset.records[video] = dataclasses.replace(dataset.records[video], instances=tuple(instances))


def test_shapes_and_types():
    (batch,) = stream(make_dataset(), CONFIG, 1)
    assert (batch.image.shape, batch.image.dtype) == ((4, 64, 96, 3), np.uint8)
    assert (batch.masks_packed.shape, batch.masks_packed.dtype) == ((4, 5, 64, 12), np.uint8)
    assert (batch.valid.shape, batch.valid.dtype) == ((4, 5), np.bool_)
    assert batch.valid_size.tolist() == [[64, 96]] * 4
    assert batch.video.shape == batch.frame.shape == (4,)


def test_places_hold_the_masks_of_the_example():
    dataset = make_dataset()
    for batch in stream(dataset, AS_IS, 5):
        for i in range(4):
            record = dataset[int(batch.video[i])]
            assert batch.valid_size[i].tolist() == [HEIGHT, WIDTH]
            assert batch.valid[i].sum() == len(record.instances)
            assert (np.diff(batch.valid[i].astype(int)) <= 0).all(), "places are filled from the first"
            np.testing.assert_array_equal(batch.masks_packed[i].any(axis=(1, 2)), batch.valid[i])
            assert not batch.image[i, HEIGHT:].any()
    assert {tuple(sorted(set(batch.frame.tolist()))) for batch in stream(dataset, AS_IS, 5)} >= {(0, 1)}


def test_two_streams_of_a_seed_are_equal_and_of_two_seeds_are_not():
    first, again = (stream(make_dataset(), CONFIG, 6) for _ in range(2))
    assert_same(first, again)
    other = stream(make_dataset(), CONFIG, 6, seed=4)
    assert any((x.image != y.image).any() for x, y in zip(first, other, strict=True))
    assert any((x.video != y.video).any() for x, y in zip(first, other, strict=True))


@pytest.mark.slow
def test_workers_change_nothing_and_any_number_resumes():
    dataset = make_dataset()
    expected = stream(dataset, CONFIG, 9)
    with make_train_iterator(dataset, dataclasses.replace(CONFIG, num_workers=2)) as iterator:
        assert_same(take(iterator, 5), expected[:5])
        state = iterator.get_state()
    for num_workers in (0, 1):
        with make_train_iterator(dataset, dataclasses.replace(CONFIG, num_workers=num_workers)) as iterator:
            iterator.set_state(state)
            assert_same(take(iterator, 4), expected[5:])


def write_published(root, name):
    """Write the videos or images of `make_dataset` below a data root, as a known data set is published."""
    is_video = name == "ytvis19_train"
    dataset = make_dataset(num_frames=2 if is_video else 1)
    with_instances(dataset, 3, [])
    images = root / ("ytvis2019/train/JPEGImages" if is_video else "coco")
    file = root / ("ytvis2019/train.json" if is_video else "lvis/lvis_v1_train.json")
    records, annotations = [], []
    for index, video in enumerate(dataset.records):
        for frame, file_name in enumerate(video.file_names):
            (images / file_name).parent.mkdir(parents=True, exist_ok=True)
            (images / file_name).write_bytes(dataset.frames[index, frame])
        url = f"http://images.cocodataset.org/{video.file_names[0]}"
        names = {"file_names": video.file_names} if is_video else {"coco_url": url, "neg_category_ids": []}
        records.append({"id": video.id, "height": HEIGHT, "width": WIDTH, **names})
        for instance in video.instances:
            masks = [
                {"size": [HEIGHT, WIDTH], "counts": mask} if isinstance(mask, str) else mask for mask in instance.masks
            ]
            owner = "video_id" if is_video else "image_id"
            drawn = {"segmentations": masks} if is_video else {"segmentation": masks[0]}
            number = len(annotations) + 1
            annotations.append({"id": number, owner: video.id, "category_id": instance.category_id, **drawn})
    categories = [dataclasses.asdict(category) for category in dataset.categories]
    content = {"videos" if is_video else "images": records, "annotations": annotations, "categories": categories}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def files_of(batches, dataset):
    return [
        [dataset[int(video)].file_names[frame] for video, frame in zip(batch.video, batch.frame, strict=True)]
        for batch in batches
    ]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "level"), [("lvis_train_norare", "videos"), ("lvis_train_norare", "frames"), ("ytvis19_train", "videos")]
)
def test_prepared_files_give_the_batches_of_the_published_ones(tmp_path, name, level, num_workers):
    write_published(tmp_path, name)
    assert main(["prepare", name, "--source", str(tmp_path), "--out", str(tmp_path / "out"), "--level", level]) == 0
    raw, prepared = open_dataset(name, tmp_path), open_dataset(tmp_path / "out")
    # Of frames, the image that shows nothing is left out, and the others are numbered anew.
    assert (len(raw), len(prepared)) == (10, 9 if level == "frames" else 10)
    config = CONFIG
    if name == "ytvis19_train":
        config = dataclasses.replace(CONFIG, augmentation=ShortSideResize((40, HEIGHT), 96))
    with make_train_iterator(raw, config) as iterator:
        expected, expected_state = take(iterator, 6), iterator.get_state()
    with make_train_iterator(prepared, dataclasses.replace(config, num_workers=num_workers)) as iterator:
        found, state = take(iterator, 6), iterator.get_state()
    assert files_of(found, prepared) == files_of(expected, raw)
    assert_same(*([batch._replace(video=batch.frame) for batch in batches] for batches in (found, expected)))
    assert state == expected_state
    assert len({file[:3] for files in files_of(found, prepared) for file in files}) == 9


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_every_batch(process_count):
    dataset = make_dataset()
    whole = stream(dataset, CONFIG, 4)
    shares = [stream(dataset, CONFIG, 4, process_index=i, process_count=process_count) for i in range(process_count)]
    joined = [type(parts[0])(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("before", [0, 1, 4, 7])
def test_resumes_from_any_state_to_the_bit(before):
    dataset = make_dataset()
    expected = stream(dataset, CONFIG, 10)
    with make_train_iterator(dataset, CONFIG) as iterator:
        take(iterator, before)
        state = json.loads(json.dumps(iterator.get_state()))
        take(iterator, 2)
        iterator.set_state(state)  # back in the same iterator
        assert_same(take(iterator, 2), expected[before : before + 2])
    with make_train_iterator(dataset, CONFIG) as iterator:
        iterator.set_state(state)
        assert iterator.get_state() == state
        assert_same(take(iterator, 10 - before), expected[before:])


@pytest.mark.parametrize(("seed", "batch_size"), [(9, 4), (0, 8)])
def test_state_of_another_stream_is_refused(seed, batch_size):
    with make_train_iterator(make_dataset(), CONFIG) as iterator:
        state = iterator.get_state()
    config = dataclasses.replace(CONFIG, batch_size=batch_size)
    other = make_train_iterator(make_dataset(), config, seed=seed)
    with pytest.raises(InputError, match="when it was saved"):
        other.set_state(state)


def test_unreadable_frames_are_named_replaced_and_counted():
    dataset = make_dataset(num_frames=1)
    clean = stream(dataset, AS_IS, 5)
    dataset.frames[4, 0] = dataset.frames[4, 0][:200]
    dataset.frames[5, 0] = b"no image"
    with make_train_iterator(dataset, AS_IS) as iterator:
        with pytest.warns(UserWarning, match=r"memory: 00[45]/0.png: [^:]* read") as warned:
            found = take(iterator, 5)
        state = iterator.get_state()
    assert len(messages(warned)) == 2, "each frame once"
    assert state["unreadable"] == [[4, 0], [5, 0]]
    for one, other in zip(clean, found, strict=True):
        assert other.video.tolist() == [6 if video in (4, 5) else video for video in one.video.tolist()]
        kept = ~np.isin(one.video, (4, 5))
        np.testing.assert_array_equal(one.image[kept], other.image[kept])
        np.testing.assert_array_equal(one.masks_packed[kept], other.masks_packed[kept])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what the state knows is not said again
        with make_train_iterator(dataset, AS_IS) as iterator:
            iterator.set_state({**state, "batches": 0})
            assert_same(take(iterator, 5), found)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_too_many_unreadable_frames_stop_training(num_workers):
    dataset = make_dataset(num_frames=1)
    for video in (1, 3, 5):
        dataset.frames[video, 0] = b"no image"
    config = dataclasses.replace(AS_IS, max_unreadable=2, num_workers=num_workers)
    message = "more than 2 frames cannot be used, the last: memory: 00./0.png"
    with (
        make_train_iterator(dataset, config) as iterator,
        pytest.warns(UserWarning, match="skipped a frame"),
        pytest.raises(InputError, match=message),
    ):
        take(iterator, 10)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_readable_stops_at_once(num_workers):
    dataset = make_dataset(num_frames=1)
    dataset.frames = {key: b"" for key in dataset.frames}
    config = dataclasses.replace(AS_IS, max_unreadable=3, num_workers=num_workers)
    message = "4 frames in a row cannot be used, the last: memory: 00"
    with make_train_iterator(dataset, config) as iterator, pytest.raises(InputError, match=message):
        next(iterator)


def test_a_missing_file_and_a_frame_of_another_size_are_skipped():
    dataset = make_dataset(3, num_frames=1)
    del dataset.frames[0, 0]
    dataset.frames[1, 0] = encode_png(np.zeros((8, 9, 3), np.uint8))

    class OnDisk(type(dataset)):
        def read_frame(self, index, frame):
            if (index, frame) not in self.frames:
                raise FileNotFoundError(2, "No such file")
            return self.frames[index, frame]

    dataset = OnDisk(**vars(dataset))
    with pytest.warns(UserWarning, match="skipped a frame") as warned:
        batches = stream(dataset, AS_IS, 3)
    first, second = messages(warned)
    assert first.endswith("memory: 000/0.png: cannot be read (No such file)")
    assert f": memory: 001/0.png (video 2) is 9x8 pixels, but the annotations say {WIDTH}x{HEIGHT};" in second
    assert {video for batch in batches for video in batch.video.tolist()} == {2}


def test_masks_of_another_size_are_skipped():
    dataset = make_dataset(2, num_frames=1)
    with_instances(dataset, 0, [Instance(1, 1, False, (encode_counts(np.ones((5, 5), bool)),))])
    with pytest.warns(UserWarning, match="000/0.png: a mask's run lengths do not add up"):
        batches = stream(dataset, AS_IS, 2)
    assert {video for batch in batches for video in batch.video.tolist()} == {1}


def test_crowds_empty_masks_and_masks_outside_the_frame_are_dropped():
    dataset = make_dataset(1, num_frames=1)
    square = ((4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0),)
    outside = ((400.0, 4.0, 412.0, 4.0, 412.0, 12.0),)
    empty = encode_counts(np.zeros((HEIGHT, WIDTH), bool))
    masks = [square, outside, empty, None]
    crowd = Instance(9, 1, True, (square,))
    with_instances(dataset, 0, [crowd, *(Instance(i, 1, False, (mask,)) for i, mask in enumerate(masks))])
    (batch,) = stream(dataset, AS_IS, 1)
    assert batch.valid.sum(axis=1).tolist() == [1] * 4
    assert np.bitwise_count(batch.masks_packed).sum(axis=(1, 2, 3)).tolist() == [64] * 4


def test_a_frame_without_instances_is_an_example():
    dataset = make_dataset(1, num_frames=2)
    first = dataset[0].instances[0]
    with_instances(dataset, 0, [dataclasses.replace(first, masks=(first.masks[0], None))])
    for batch in stream(dataset, AS_IS, 4):
        np.testing.assert_array_equal(batch.valid.sum(axis=1), 1 - batch.frame)
        assert batch.image.reshape(4, -1).any(axis=1).all()


def test_the_largest_instances_find_a_place():
    dataset = make_dataset(1, num_frames=1)

    def square(side):
        return (((2.0, 2.0, 2.0 + side, 2.0, 2.0 + side, 2.0 + side, 2.0, 2.0 + side),),)

    with_instances(
        dataset, 0, [Instance(i, 1, False, square(float(side))) for i, side in enumerate((4, 9, 5, 8, 3, 7, 6))]
    )
    message = "more instances than the 5 places of max_instances"
    with make_train_iterator(dataset, AS_IS) as iterator, pytest.warns(UserWarning, match=message) as warned:
        first, _ = take(iterator, 2)
    assert len(messages(warned)) == 1
    assert iterator.num_cut_off == 16
    assert np.bitwise_count(first.masks_packed).sum(axis=(2, 3)).tolist() == [[81, 25, 64, 49, 36]] * 4


def test_batches_go_to_devices():
    batch = jax.device_put(stream(make_dataset(), CONFIG, 1)[0])
    assert isinstance(batch.image, jax.Array)


@pytest.mark.slow
def test_batches_of_workers_are_plain_arrays_of_their_own():
    with make_train_iterator(make_dataset(), dataclasses.replace(CONFIG, num_workers=1)) as iterator:
        batch = next(iterator)
    for x in batch:
        assert type(x) is np.ndarray
        assert x.base is None


LEAVE_BEHIND = """
import multiprocessing, os, sys
from memory_dataset import make_dataset
from clipvis_jax.data.pipeline import PipelineConfig, make_train_iterator
if __name__ == "__main__":
    iterator = make_train_iterator(make_dataset(), PipelineConfig(batch_size=1, num_workers=2))
    next(iterator), next(iterator)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), int(sys.argv[1])) if len(sys.argv) > 1 else sys.exit()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("arguments", [["9"], []], ids=["killed", "not closed"])
def test_workers_end_with_their_parent(tmp_path, arguments):
    script = tmp_path / "leave_behind.py"
    script.write_text(LEAVE_BEHIND)
    path = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parents[2])])
    run = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        text=True,
        check=False,
    )
    children = run.stdout.split()
    assert len(children) == 2, run.stderr
    if not arguments:
        assert "Traceback" not in run.stderr
    deadline = time.monotonic() + 10
    while any(Path("/proc", child).exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if Path("/proc", child).exists()]


def test_bad_processes_and_data():
    with pytest.raises(InputError, match=r"data.batch_size 4: give a multiple of the 3 processes"):
        make_train_iterator(make_dataset(), CONFIG, process_index=0, process_count=3)
    with pytest.raises(InputError, match="memory: has no annotations"):
        make_train_iterator(dataclasses.replace(make_dataset(), has_annotations=False), CONFIG)
    empty = make_dataset(1)
    empty.records[0] = VideoRecord(1, HEIGHT, WIDTH, empty.records[0].file_names)
    with pytest.raises(InputError, match="no video has an instance"):
        make_train_iterator(empty, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (1000, 1024)}, r"data.image_size \(1000, 1024\)"),
        ({"batch_size": 0}, "data.batch_size 0"),
        ({"max_instances": 0}, "data.max_instances 0"),
        ({"num_workers": -1}, "data.num_workers -1"),
        ({"batches_ahead": 0}, "data.batches_ahead 0"),
        ({"max_unreadable": -1}, "data.max_unreadable -1"),
        ({"repeat_threshold": 1.5}, "data.repeat_threshold 1.5"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_jitter_is_the_default():
    assert PipelineConfig().augmentation == LargeScaleJitter(0.1, 2.0, 0.5, 128)
