"""Every annotation format becomes the same kind of record, with all quirks of the real files."""

import copy
import hashlib
import json
import pickle

import pytest
from annotation_files import FILES, SQUARE, burst, coco, compressed, image_bytes, lvis, write_dataset, youtube_vis

from clipvis_jax.data.formats import BURST, COCO, YOUTUBE_VIS
from clipvis_jax.data.json_file import JsonFile
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.data.records import Category, Instance, VideoRecord

COUNTS = compressed()["counts"]
POLYGON = tuple(map(float, SQUARE))


def read(tmp_path, content, **options):
    return RawDataset(*write_dataset(tmp_path, content, frames=False), **options)


def test_youtube_vis(tmp_path):
    dataset = read(tmp_path, youtube_vis())
    assert dataset.categories == (
        Category(4, "person", partition=0),
        Category(30, "naïve fox", partition=2),
    )
    assert list(dataset) == [
        VideoRecord(
            2,
            6,
            8,
            ("a/0.jpg", "a/1.jpg"),
            (Instance(5, 4, True, (None, COUNTS), (None, (2.0, 1.0, 4.0, 3.0)), (None, 12.0)),),
        ),
        VideoRecord(
            7,
            6,
            8,
            ("b/0.jpg", "b/1.jpg", "b/2.jpg"),
            (
                Instance(
                    1,
                    30,
                    False,
                    ((POLYGON,), COUNTS, COUNTS),
                    ((1.0, 1.0, 4.0, 3.0), None, (2.0, 1.5, 4.0, 3.0)),
                    (12.0, None, 12.5),
                ),
                Instance(3, 4, False, (None, None, None)),
            ),
        ),
    ]
    assert dataset.video_sizes() == [(6, 8, 2), (6, 8, 3)]
    assert dataset.has_annotations
    assert dataset.name == "annotations"


def test_lvis(tmp_path):
    dataset = read(tmp_path, lvis())
    assert [video.file_names for video in dataset] == [("val2017/4.jpg",), ("train2017/9.jpg",)]
    assert dataset.categories[1] == Category(2, "yo-yo", ("yo-yo", "a yo-yo"), "c")
    assert dataset[1] == VideoRecord(
        9,
        6,
        8,
        ("train2017/9.jpg",),
        (
            Instance(1, 3, False, ((POLYGON,),), ((1.0, 1.0, 4.0, 3.0),), (12.0,)),
            Instance(2, 1, False, ((POLYGON, POLYGON),), ((1.0, 1.0, 4.0, 3.0),), (12.0,)),
        ),
        (2,),
        (3, 1),
    )


def test_lvis_without_rare_classes(tmp_path):
    dataset = read(tmp_path, lvis(), drop_frequencies=("r",))
    assert [[instance.id for instance in video.instances] for video in dataset] == [[], [2]]
    assert len(dataset.categories) == 3
    dataset = read(tmp_path, lvis(), drop_frequencies=("r", "c", "f"))
    assert [video.instances for video in dataset] == [(), ()]
    assert dataset.has_annotations


def test_coco(tmp_path):
    dataset = read(tmp_path, coco())
    assert [category.id for category in dataset.categories] == [1, 90]
    assert list(dataset) == [
        VideoRecord(3, 6, 8, ("3.jpg",), (Instance(901, 1, False, (None,)),)),
        VideoRecord(
            12,
            6,
            8,
            ("12.jpg",),
            (
                Instance(1768, 90, False, ((POLYGON,),), ((1.0, 1.0, 4.0, 3.0),), (12.25,)),
                Instance(900, 1, True, (COUNTS,), ((2.0, 1.0, 4.0, 3.0),), (12.0,)),
            ),
        ),
    ]


def test_burst(tmp_path):
    dataset = read(tmp_path, burst())
    assert dataset.categories == (
        Category(805, "person", ("person", "man"), "f"),
        Category(1057, "skateboard", ("skateboard",)),
    )
    assert list(dataset) == [
        VideoRecord(0, 6, 8, ("LaSOT/v_0/0.jpg",), (Instance(1, 805, False, (COUNTS,)),)),
        VideoRecord(
            1,
            6,
            8,
            ("YFCC100M/v_1/f1.jpg", "YFCC100M/v_1/f3.jpg"),
            (Instance(2, 805, False, (COUNTS, COUNTS)), Instance(3, 1057, False, (None, COUNTS))),
            (1,),
            (805,),
        ),
    ]


def test_converted_burst_equals_raw_burst(tmp_path):
    raw, converted = read(tmp_path / "raw", burst()), read(tmp_path / "converted", FILES["burst_converted"]())
    assert [video.file_names for video in converted] == [video.file_names for video in raw]
    assert [[instance.masks for instance in video.instances] for video in converted] == [
        [instance.masks for instance in video.instances] for video in raw
    ]
    assert [instance.id for video in converted for instance in video.instances] == [0, 1, 2]
    assert converted.categories[1] == Category(2, "skateboard", frequency="c", split="uncommon")


@pytest.mark.parametrize("annotations", ["missing", None, []])
def test_sets_without_annotations(tmp_path, annotations):
    content = youtube_vis() | {"annotations": annotations}
    if annotations == "missing":
        del content["annotations"]
    dataset = read(tmp_path, content)
    assert not dataset.has_annotations
    assert [video.instances for video in dataset] == [(), ()]
    sequences = burst()
    for sequence in sequences["sequences"]:
        del sequence["segmentations"]
    assert not read(tmp_path / "burst", sequences).has_annotations


def test_empty_file(tmp_path):
    dataset = read(tmp_path, {"images": [], "annotations": [], "categories": []})
    assert len(dataset) == 0
    assert dataset.video_sizes() == []
    assert not dataset.has_annotations


@pytest.mark.parametrize("name", FILES)
def test_format_is_recognized_whatever_the_order_of_keys(tmp_path, name):
    expected = {"lvis": COCO, "coco": COCO, "burst": BURST}.get(name, YOUTUBE_VIS)
    content = FILES[name]()
    for order in (list(content), sorted(content, reverse=True)):
        path, images = write_dataset(tmp_path, {key: content[key] for key in order}, frames=False)
        dataset = RawDataset(path, images)
        assert dataset.format is expected
        assert len(dataset) == 2


@pytest.mark.parametrize("indent", [None, 2])
def test_file_tells_places_and_digest(tmp_path, indent):
    content = {"a": [1, 23, {"ü": "é"}], "b": {"c": None}, "d": 45, "e": [], "f": "ß", "g": [[1], "x"], "h": None}
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, ensure_ascii=False, indent=indent).encode())
    file = JsonFile(path)
    assert {key: json.loads(bytes(text)) for key, text in file.members.items()} == content
    for key in "aegh":
        records = file.records(key)
        assert [json.loads(bytes(text)) for text in records] == (content[key] or [])
        for text in records:
            start, stop = file.place(text)
            assert path.read_bytes()[start:stop] == bytes(text)
    assert file.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_digest_and_frames(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis())
    dataset = RawDataset(path, images, name="mine")
    assert dataset.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.name == "mine"
    seeds = iter(range(5))
    for index, video in enumerate(dataset):
        for frame in range(video.length):
            assert dataset.read_frame(index, frame) == image_bytes(next(seeds))
    dataset.check_images()


def test_instances_keep_the_order_of_the_file(tmp_path):
    content = youtube_vis()
    ids = [(7 * i) % 1009 + 10 for i in range(1000)]
    content["annotations"] = [content["annotations"][i % 2] | {"id": number} for i, number in enumerate(ids)]
    dataset = read(tmp_path, content)
    assert [[instance.id for instance in video.instances] for video in dataset] == [ids[1::2], ids[::2]]


def test_random_access(tmp_path):
    dataset = read(tmp_path, youtube_vis())
    assert dataset[-1] == dataset[1]
    assert dataset[1] == dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize("name", FILES)
def test_pickled_data_set_reads_the_same(tmp_path, name):
    path, images = write_dataset(tmp_path, FILES[name]())
    dataset = RawDataset(path, images)
    expected = copy.deepcopy(list(dataset))
    again = pickle.loads(pickle.dumps(dataset))
    assert list(again) == expected
    assert again.read_frame(1, 0) == dataset.read_frame(1, 0)
