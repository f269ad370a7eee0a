"""``clipvis import``: small exports of every tool become data sets, and our own exports come back as they were."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.cli import main
from clipvis_jax.commands.import_annotations import Import
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.importing import IMPORTERS
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.media.video_decoder import VideoDecoder
from clipvis_jax.media.video_writer import VideoWriter

HEIGHT, WIDTH = 24, 40
SIZE = [HEIGHT, WIDTH]


def box_mask(left, top, width, height):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def run_lengths(mask, order="F"):
    """Run lengths as lists, which begin with what is outside the mask."""
    flat = mask.ravel(order).astype(int)
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0])), append=flat.size).tolist()
    return [0, *counts] if flat[0] else counts


def write_picture(path, size=(WIDTH, HEIGHT), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def bring_in(*arguments):
    assert main(["import", *map(str, arguments)]) == 0


def content(path):
    """What a data set holds, as whoever evaluates or trains reads it: masks by video, class and instance."""
    dataset = open_dataset(path)
    names = {category.id: category.name for category in dataset.categories}
    assert [category.id for category in dataset.categories] == list(range(1, len(names) + 1))
    track_ids = {record["id"]: record.get("track_id") for record in json.loads(path.read_text())["annotations"]}
    found = {}
    for index in range(len(dataset)):
        video = dataset[index]
        for frame in range(video.length):
            decode_frame(dataset, index, frame, video)
        for instance in video.instances:
            size = [video.height, video.width]
            masks = [
                np.zeros(size, bool) if m is None else coco_mask.decode({"size": size, "counts": m}).astype(bool)
                for m in instance.masks
            ]
            found[index, names[instance.category_id], track_ids[instance.id]] = np.array(masks)
    return dataset, found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, masks in expected.items():
        np.testing.assert_array_equal(found[key], np.array(masks), err_msg=str(key))


def failing(capsys, tmp_path, *arguments):
    before = Counter(tmp_path.rglob("*"))
    assert main(["import", *map(str, arguments), "--out", str(tmp_path / "never")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("clipvis: error: ")
    assert error.count("\n") == 1
    assert Counter(tmp_path.rglob("*")) == before
    return error.removeprefix("clipvis: error: ")


# --- CVAT


@pytest.fixture
def cvat_task(tmp_path):
    """CVAT's "COCO 1.0" with pictures: masks that are no polygons are crowds, a box has no mask, ids of tracks."""
    folder = tmp_path / "task"
    for index in range(3):
        write_picture(folder / "images" / "default" / f"frame_{5 * index:06d}.PNG", seed=index)
    images = [
        {"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"frame_{5 * i:06d}.PNG"}
        | {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        for i in (2, 0, 1)
    ]

    def annotation(number, image, category, track, segmentation, *, crowd=0, box=(2, 3, 10, 5)):
        attributes = {"occluded": False, "track_id": track, "keyframe": True, "colour": "red"}
        ids = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "attributes": attributes}
        return ids | {"segmentation": segmentation, "area": 50.0, "bbox": list(box)}

    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]
    part = {"counts": run_lengths(box_mask(20, 10, 6, 4)), "size": SIZE}
    annotations = [
        annotation(1, 1, 3, 0, [polygon]),
        annotation(2, 3, 3, 0, {"counts": run_lengths(box_mask(6, 3, 10, 5)), "size": SIZE}, crowd=1),
        annotation(3, 2, 1, 1, part, crowd=1),
        annotation(4, 2, 1, 1, [polygon]),  # another part of the same
        annotation(5, 3, 1, 2, [], box=(30, 2, 5, 6)),
    ]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in ((1, "dog"), (2, "cat"), (3, "car"))]
    document = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {}, "categories": categories, "images": images}
    write(folder / "annotations" / "instances_default.json", document | {"annotations": annotations})
    return folder


def expected_of_task(index=0):
    none = box_mask(0, 0, 0, 0)
    first, both = box_mask(2, 3, 10, 5), box_mask(2, 3, 10, 5) | box_mask(20, 10, 6, 4)
    return {
        (index, "car", 0): [first, none, box_mask(6, 3, 10, 5)],
        (index, "dog", 1): [none, both, none],
        (index, "dog", 2): [none, none, box_mask(30, 2, 5, 6)],
    }


def test_cvat_tasks_become_videos(cvat_task, tmp_path, capsys):
    shutil.copytree(cvat_task, tmp_path / "other")
    bring_in("cvat-coco", cvat_task, tmp_path / "other", "--out", tmp_path / "out")
    out = capsys.readouterr().out.splitlines()
    counts = "2 videos, 6 frames, 6 instances of 2 classes"
    assert out == [f"wrote {tmp_path}/out/annotations.json: {counts}", "boxes that became rectangular masks: 2"]
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert_same(found, expected_of_task(0) | expected_of_task(1))
    assert [category.name for category in dataset.categories] == ["dog", "car"]  # no cat is there
    assert dataset[0].file_names == tuple(f"task/frame_{n:06d}.PNG" for n in (0, 5, 10))
    copied = (tmp_path / "out" / "JPEGImages" / "other" / "frame_000005.PNG").read_bytes()
    assert copied == (cvat_task / "images" / "default" / "frame_000005.PNG").read_bytes()
    assert not any(instance.is_crowd for instance in dataset[0].instances)


def test_cvat_without_tracks_is_pictures(cvat_task, tmp_path, capsys):
    path = cvat_task / "annotations" / "instances_default.json"
    document = json.loads(path.read_text())
    for record in document["annotations"]:
        del record["attributes"]["track_id"]
    path.write_text(json.dumps(document))
    bring_in("cvat-coco", cvat_task, "--out", tmp_path / "out", "--link")
    assert "3 pictures, 5 instances of 2 classes\n" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out" / "annotations.json")
    assert dataset.info.is_images
    assert [len(dataset[index].instances) for index in range(3)] == [2, 1, 2]  # the file's first is its last frame
    picture = cvat_task / "images" / "default" / "frame_000000.PNG"
    assert picture.samefile(tmp_path / "out" / "JPEGImages" / "frame_000000.PNG")


def test_the_frames_may_be_a_video(cvat_task, tmp_path):
    """CVAT exports no pictures unless told; the video is at hand."""
    shutil.rmtree(cvat_task / "images")
    with VideoWriter(tmp_path / "clip.mp4", HEIGHT, WIDTH, 10.0) as writer:
        for value in range(0, 240, 20):
            writer.write(np.full((HEIGHT, WIDTH, 3), value, np.uint8))
    bring_in("cvat-coco", cvat_task, "--images", tmp_path / "clip.mp4", "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert_same(found, expected_of_task())
    values = [np.mean(Image.open(io.BytesIO(dataset.read_frame(0, frame)))) for frame in range(3)]
    np.testing.assert_allclose(values, [0, 100, 200], atol=4)


CVAT_VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>clip é</name><size>4</size><mode>interpolation</mode><overlap>5</overlap>
      <start_frame>0</start_frame><stop_frame>6</stop_frame><frame_filter>step=2</frame_filter>
      <labels>
        <label><name>cat</name><attributes><attribute><name>fur</name></attribute></attributes></label>
        <label><name>dog</name></label>
      </labels>
      <original_size><width>40</width><height>24</height></original_size>
    </task>
    <dumped>2024-01-01</dumped>
  </meta>
  <track id="0" label="dog" source="manual">
    <polygon frame="0" keyframe="1" outside="0" occluded="0" points="2.00,3.00;12.00,3.00;12.00,8.00;2.00,8.00">
      <attribute name="fur">short</attribute>
    </polygon>
    <polygon frame="2" keyframe="1" outside="1" occluded="0" points="2.00,3.00;12.00,3.00;12.00,8.00;2.00,8.00">
    </polygon>
    <polygon frame="6" keyframe="1" outside="0" occluded="1" points="4.00,3.00;14.00,3.00;14.00,8.00;4.00,8.00">
    </polygon>
  </track>
  <track id="3" label="dog" source="manual">
    <mask frame="2" keyframe="1" outside="0" occluded="0" rle="1, 2, 2, 1" left="20" top="10" width="3" height="2"/>
    <box frame="4" keyframe="1" outside="0" occluded="0" xtl="30.0" ytl="2.0" xbr="35.0" ybr="8.0" z_order="0"/>
    <points frame="6" keyframe="1" outside="0" occluded="0" points="1.0,1.0" z_order="0"/>
  </track>
</annotations>
"""


@pytest.fixture
def cvat_video(tmp_path):
    folder = tmp_path / "video"
    for number in range(0, 8, 2):
        write_picture(folder / "images" / f"frame_{number:06d}.PNG", seed=number)
    write(folder / "annotations.xml", CVAT_VIDEO)
    return folder


def expected_of_video():
    none, part = box_mask(0, 0, 0, 0), box_mask(0, 0, 0, 0)
    part[10, 21:23] = part[11, 22] = True
    return {
        (0, "dog", 0): [box_mask(2, 3, 10, 5), none, none, box_mask(4, 3, 10, 5)],
        (0, "dog", 3): [none, part, box_mask(30, 2, 5, 6), none],
    }


def test_cvat_xml_of_a_video(cvat_video, tmp_path, capsys):
    bring_in("cvat-xml", cvat_video, "--out", tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/out/annotations.json: 1 video, 4 frames, 2 instances of 1 class",
        "boxes that became rectangular masks: 1",
        "results that are no labelled area (points, lines, tags) and were left out: 1",
    ]
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert_same(found, expected_of_video())
    assert dataset[0].file_names[1] == "clip_é/frame_000002.PNG"
    for index, path in enumerate(sorted((cvat_video / "images").iterdir())):  # pictures of a task of pictures
        path.rename(path.with_name(f"{'abcd'[index]}.png"))
    bring_in("cvat-xml", cvat_video / "annotations.xml", "--out", tmp_path / "again")
    dataset, found = content(tmp_path / "again" / "annotations.json")
    assert_same(found, expected_of_video())
    assert dataset[0].file_names[1] == "clip_é/b.png"
    (cvat_video / "images" / "a.png").rename(cvat_video / "images" / "b10.png")
    (cvat_video / "images" / "b.png").rename(cvat_video / "images" / "b2.png")
    assert "images: it is not known how CVAT sorted these names" in failing(capsys, tmp_path, "cvat-xml", cvat_video)


def test_cvat_xml_of_pictures(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "task"
    write_picture(folder / "images" / "b" / "a.jpg")
    shapes = """
    <polygon label="cat" source="manual" occluded="0" points="2.00,3.00;12.00,3.00;12.00,8.00;2.00,8.00" z_order="0">
    </polygon>
    <box label="dog" occluded="0" xtl="15" ytl="8" xbr="25" ybr="12" rotation="90.00" z_order="0"/>
    <ellipse label="ball" occluded="0" cx="30" cy="12" rx="8" ry="8" z_order="0"/>
    <skeleton label="body" z_order="0"><points label="1" outside="0" points="1,1"/></skeleton>
    <tag label="day" source="manual"/>"""
    image = f'<image id="0" name="b/a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    write(folder / "annotations.xml", f"<annotations><version>1.1</version>{image}</annotations>")
    bring_in("cvat-xml", folder, "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert dataset.info.is_images
    ball = found.pop((0, "ball", None))[0]
    assert_same(found, {(0, "cat", None): [box_mask(2, 3, 10, 5)], (0, "dog", None): [box_mask(18, 5, 4, 10)]})
    rows, columns = np.nonzero(ball)
    assert abs(ball.sum() - np.pi * 64) < 8
    assert abs(rows.mean() - 11.5) < 0.5
    assert abs(columns.mean() - 29.5) < 0.5

    def error_of(*images):
        write(folder / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
        return failing(capsys, tmp_path, "cvat-xml", folder)

    # The size is compared before a mask of that size is made.
    large = image.replace(f'width="{WIDTH}" height="{HEIGHT}"', 'width="32768" height="32768"')
    assert "a.jpg: is 40x24 pixels, but its annotations are for 32768x32768" in error_of(large)
    assert "a.jpg: belongs to both " in error_of(image, image)
    monkeypatch.setattr("clipvis_jax.data.importing.found.MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert "a.jpg: is 40 x 24 pixels, more than 959" in error_of(image)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "<annotations>",
            '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>',
            "declares a document type",
        ),
        ("<annotations>", '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations>', "declares a document type"),
        ("<annotations>", "<html>", "begins with 'html', but CVAT's XML with 'annotations'"),
        ("</track>\n</annotations>", "", "is not valid XML (no element found"),
        ("<version>", "<a>" * 50, "is nested more deeply than CVAT's XML"),
        ("12.00,3.00", "12.00;3,x", "track 0, frame 0: points are '2.00,3.00;12.00;3,x;"),
        ('rle="1, 2, 2, 1"', 'rle="1, 2"', "track 3, frame 2: rle does not describe 3x2 pixels"),
        ('left="20"', 'left="39"', "track 3, frame 2: a mask is not within the picture of 40x24 pixels"),
        ('height="2"', 'height="100000"', "a mask is not within the picture"),
        (
            'frame="6" keyframe="1" outside="0" occluded="1"',
            'frame="7" outside="0"',
            "its picture 'frame_000007.png' is not",
        ),
        ('frame="4"', 'frame="9999999"', "track 3, frame 9999999: Expected int <= 999999 - at $.frame"),
        ("<size>4<", "<size>4000000<", "meta tells of 4000000 frames"),
        ('<track id="3"', '<track id="x"', "track x: Expected int, got str - at $.id"),
        ("<width>40<", "<width>80<", "is 40x24 pixels, but "),
        ('xtl="30.0"', 'xtl="nan"', "its mask holds a polygon whose outline"),
    ],
)
def test_an_xml_file_that_cannot_be_used(old, new, message, cvat_video, capsys):
    assert CVAT_VIDEO.count(old) >= 1
    write(cvat_video / "annotations.xml", CVAT_VIDEO.replace(old, new, 1))
    assert message in failing(capsys, cvat_video.parent, "cvat-xml", cvat_video)


# --- Label Studio


def brush(mask):
    """Encode as Label Studio does, with runs and literals: four bytes per pixel, opaque where the mask is."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    flat = values.ravel()
    bits = f"{flat.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    place = 0
    while place < flat.size:
        length = 1
        while place + length < flat.size and length < 2**16 and flat[place + length] == flat[place]:
            length += 1
        if length < 8:  # as literals
            length = min(8, flat.size - place)
            bits += f"000{length - 1:03b}" + "".join(f"{value:08b}" for value in flat[place : place + length])
        else:
            bits += f"111{length - 1:016b}{flat[place]:08b}"
        place += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@pytest.fixture
def studio(tmp_path):
    folder = tmp_path / "studio"
    write_picture(folder / "images" / "photo.jpg")

    def result(kind, value):
        own = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        return own | {"id": "x", "from_name": "tag", "to_name": "image", "type": kind, "value": value}

    results = [
        result("brushlabels", {"format": "rle", "rle": brush(box_mask(3, 3, 7, 9)), "brushlabels": ["cat"]}),
        result("polygonlabels", {"points": [[50, 0], [75, 0], [75, 50], [50, 50]], "polygonlabels": ["dog"]}),
        result(
            "rectanglelabels",
            {"x": 75, "y": 50, "width": 10, "height": 25, "rotation": 0} | {"rectanglelabels": ["cat"]},
        ),
        result("choices", {"choices": ["day"]}),
        {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"},
    ]
    annotations = [
        {"id": 0, "result": [], "was_cancelled": True},
        {"id": 1, "result": results, "was_cancelled": False},
        {"id": 2, "result": results[:1], "was_cancelled": False},
    ]
    data = {"image": "/data/upload/1/0a1b2c3d-photo.jpg"}
    return write(folder / "project.json", [{"id": 5, "data": data, "annotations": annotations, "predictions": []}])


def test_label_studio(studio, tmp_path, capsys):
    bring_in("labelstudio", studio.parent, "--out", tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/out/annotations.json: 1 picture, 3 instances of 2 classes",
        "further annotations of a task that were left out: 1",
        "results that are no labelled area (points, lines, tags) and were left out: 2",
        "boxes that became rectangular masks: 1",
    ]
    dataset = open_dataset(tmp_path / "out" / "annotations.json")
    expected = [box_mask(3, 3, 7, 9), box_mask(20, 0, 10, 12), box_mask(30, 12, 4, 6)]
    for instance, mask in zip(dataset[0].instances, expected, strict=True):
        np.testing.assert_array_equal(coco_mask.decode({"size": SIZE, "counts": instance.masks[0]}), mask)


def test_label_studio_as_coco(tmp_path):
    image = {"id": 0, "file_name": "images/a.jpg", "height": HEIGHT, "width": WIDTH}
    annotation = {
        "id": 0,
        "image_id": 0,
        "category_id": 0,
        "bbox": [2, 3, 10, 5],
        "area": 50,
        "iscrowd": 0,
        "ignore": 0,
    }
    annotation["segmentation"] = [[2, 3, 12, 3, 12, 8, 2, 8]]
    categories = [{"id": 0, "name": "dog"}]
    document = {"images": [image], "categories": categories, "annotations": [annotation], "info": {}}
    path = write(tmp_path / "export" / "result.json", document)
    write_picture(path.parent / "images" / "a.jpg")
    bring_in("labelstudio", path.parent, "--out", tmp_path / "out")
    assert_same(content(tmp_path / "out" / "annotations.json")[1], {(0, "dog", None): [box_mask(2, 3, 10, 5)]})


def test_label_studio_of_a_video(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "studio"
    folder.mkdir()
    header = property(lambda self: 9, lambda self, value: None)  # a little wrong
    monkeypatch.setattr(VideoDecoder, "length", header, raising=False)
    with VideoWriter(folder / "clip.mp4", HEIGHT, WIDTH, 10.0) as writer:
        for value in range(8):
            writer.write(np.full((HEIGHT, WIDTH, 3), 30 * value, np.uint8))

    def track(label, *keys):
        sides = {"y": 25, "width": 25, "height": 50, "rotation": 0, "time": 0.1}
        sequence = [{"frame": frame, "x": x, "enabled": enabled} | sides for frame, x, enabled in keys]
        value = {"framesCount": 9, "duration": 0.8, "sequence": sequence, "labels": [label]}
        return {"id": label, "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}

    gone = ((4, 10, False), (6, 40, False), (6, 50, False))  # of two keys at a frame the last counts
    result = [track("cat", (2, 0, True), *gone), track("dog", (5, 75, True))]
    data = {"title": "a film", "film": "http://host/data/local-files/?d=films/clip.mp4"}
    task = {"id": 1, "data": data, "annotations": [{"result": result}]}
    path = write(folder / "p.json", [task])
    bring_in("labelstudio", path, "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    none = box_mask(0, 0, 0, 0)
    boxes = [none if left is None else box_mask(left, 6, 10, 12) for left in (0, 2, 4, None, 20, None, None)]
    assert_same(found, {(0, "cat", 0): boxes, (0, "dog", 1): [none] * 3 + [box_mask(30, 6, 10, 12)] * 4})
    assert dataset[0].file_names[0] == "clip/frame_000001.jpg"
    assert np.mean(Image.open(io.BytesIO(dataset.read_frame(0, 0)))) == pytest.approx(30, abs=3)
    write(path, [task, task])
    assert "frame 1 belongs to both " in failing(capsys, tmp_path, "labelstudio", path)
    monkeypatch.setattr("clipvis_jax.data.importing.label_studio._MAX_BOXES", 5)
    assert "result 1: is more than 5 boxes with those before" in failing(capsys, tmp_path, "labelstudio", path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("rle",), [1, 2, 3], "task 0: result 0: rle ends too early"),
        (("rle",), [256], "task 0: result 0.rle[0]: Expected int <= 255"),
        (("rle",), [0, 0, 0, 99] + [0] * 60, "result 0: rle does not describe 40x24 pixels"),
        (("brushlabels",), [], "task 0: result 0: has no class"),
        (("brushlabels",), "cat", "task 0: result 0.brushlabels: Expected array, got str"),
    ],
)
def test_a_brush_that_cannot_be_used(place, value, message, studio, capsys):
    document = json.loads(studio.read_text())
    document[0]["annotations"][1]["result"][0]["value"][place[0]] = value
    studio.write_text(json.dumps(document))
    assert message in failing(capsys, studio.parents[1], "labelstudio", studio)


def test_label_studio_files_that_cannot_be_used(studio, capsys):
    document, tmp_path = json.loads(studio.read_text()), studio.parents[1]

    def error_of(change):
        changed = json.loads(json.dumps(document))
        change(changed)
        studio.write_text(json.dumps(changed))
        return failing(capsys, tmp_path, "labelstudio", studio)

    assert "'none.jpg' is not in " in error_of(lambda d: d[0]["data"].update(image="http://x/none.jpg"))
    assert "'..' is not in " in error_of(lambda d: d[0]["data"].update(image="../.."))
    assert "'a.jpg' is not in " in error_of(lambda d: d[0]["data"].update(image="http://[/a.jpg"))
    assert "data names no picture or video" in error_of(lambda d: d[0].update(data={"id": 1}))
    assert "give Label Studio's JSON (not JSON-MIN)" in error_of(lambda d: d[0].pop("annotations"))
    first = document[0]["annotations"][1]["result"][0]
    assert "is of a picture of 50x24 pixels" in error_of(
        lambda d: d[0]["annotations"][1]["result"].insert(0, first | {"original_width": 50})
    )
    assert "is a box of a video" in error_of(
        lambda d: d[0]["annotations"][1]["result"].insert(0, {"type": "videorectangle", "value": {}})
    )


def test_pictures_of_one_name_in_several_folders(tmp_path, capsys):
    """As much of the address counts as there are folders; a picture is never taken for two tasks."""
    tasks = []
    for index, name in enumerate(("cam1/0001.jpg", "cam2/0001.jpg")):
        write_picture(tmp_path / "pictures" / name, seed=index)
        value = {"x": 25, "y": 25, "width": 25 * (index + 1), "height": 50, "rectanglelabels": ["cat"]}
        annotation = {"result": [{"type": "rectanglelabels", "value": value}]}
        tasks.append(
            {"data": {"image": f"/data/local-files/?d={'x' * 300}/pictures/{name}"}, "annotations": [annotation]}
        )
    path = write(tmp_path / "p.json", tasks)
    bring_in("labelstudio", path, "--images", tmp_path / "pictures", "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert_same(found, {(i, "cat", None): [box_mask(10, 6, 10 * (i + 1), 12)] for i in range(2)})
    for index in range(2):
        source = tmp_path / "pictures" / f"cam{index + 1}" / "0001.jpg"
        assert dataset.read_frame(index, 0) == source.read_bytes()
    error = failing(capsys, tmp_path, "labelstudio", path, "--images", tmp_path / "pictures" / "cam1")
    assert f"0001.jpg: belongs to both {path}: task 0 and {path}: task 1" in error


def test_one_video_for_several_tasks_or_for_pictures(cvat_task, cvat_video, tmp_path, capsys):
    with VideoWriter(tmp_path / "clip.mp4", HEIGHT, WIDTH, 10.0) as writer:
        for value in range(0, 240, 20):
            writer.write(np.full((HEIGHT, WIDTH, 3), value, np.uint8))
    clip = ("--images", tmp_path / "clip.mp4")
    assert "is one video, but the source has 2" in failing(capsys, tmp_path, "cvat-coco", cvat_task, cvat_task, *clip)
    shutil.copytree(cvat_task, tmp_path / "other")
    frames = ("--images", cvat_task / "images" / "default")
    error = failing(capsys, tmp_path, "cvat-coco", cvat_task, tmp_path / "other", *frames)
    assert "frame_000000.PNG: belongs to both " in error
    path = cvat_task / "annotations" / "instances_default.json"
    text = path.read_text()
    path.write_text(text.replace("frame_000010", "left_000005"))
    assert "clip.mp4: frame 5 belongs to both " in failing(capsys, tmp_path, "cvat-coco", cvat_task, *clip)
    path.write_text(text.replace("track_id", "other"))
    assert "is a video, but the source has no tracks" in failing(capsys, tmp_path, "cvat-coco", cvat_task, *clip)
    write(cvat_video / "annotations.xml", CVAT_VIDEO.replace('frame="6"', 'frame="60"'))
    assert "clip.mp4: has no frame 60" in failing(capsys, tmp_path, "cvat-xml", cvat_video, *clip)


# --- pictures of masks


def label_map(path, values, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    picture.save(path)


def test_davis(tmp_path, capsys):
    root = tmp_path / "DAVIS"
    first, second = box_mask(2, 2, 8, 8), box_mask(15, 4, 9, 9)
    for frame in range(2):
        for name in ("bear", "dogs"):
            write_picture(root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg")
        void = box_mask(30, 0, 4, 4) * np.uint8(255)
        label_map(
            root / "Annotations" / "480p" / "dogs" / f"{frame:05d}.png",
            first * np.uint8(1) + second * np.uint8(2) + void,
        )
        # as in DAVIS 2016
        label_map(root / "Annotations" / "480p" / "bear" / f"{frame:05d}.png", first * np.uint8(255), "L")
    bring_in("davis", root, "--out", tmp_path / "out")
    assert "2 videos, 4 frames, 3 instances of 1 class\n" in capsys.readouterr().out
    _, found = content(tmp_path / "out" / "annotations.json")
    expected = {(0, "object", 255): [first] * 2, (1, "object", 1): [first] * 2, (1, "object", 2): [second] * 2}
    assert_same(found, expected)

    write(root / "davis_semantics.json", {"dogs": {"1": "dog", "2": "cat"}, "bear": {"255": "bear"}})
    bring_in(
        "davis", root / "Annotations" / "480p", "--images", root / "JPEGImages" / "480p", "--out", tmp_path / "own"
    )
    assert content(tmp_path / "own" / "annotations.json")[1].keys() == expected.keys()
    bring_in("davis", root, "--out", tmp_path / "named")
    _, found = content(tmp_path / "named" / "annotations.json")
    assert [name for _, name, _ in found] == ["bear", "dog", "cat"]

    shutil.copytree(root / "Annotations" / "480p", root / "Annotations" / "Full-Resolution")
    shutil.copytree(root / "JPEGImages" / "480p", root / "JPEGImages" / "Full-Resolution")
    assert main(["import", "davis", str(root), "--out", str(tmp_path / "twice")]) == 2
    assert "bear: there are 2 videos of this name, perhaps in several sizes" in capsys.readouterr().err


def test_kitti_mots(tmp_path):
    """Pictures and text say the same; 10000 is a region that counts for nothing."""
    car, person = box_mask(2, 2, 8, 8), box_mask(15, 4, 9, 9)
    root, lines = tmp_path / "kitti", []
    for frame in range(3):
        write_picture(root / "training" / "image_02" / "0002" / f"{frame:06d}.png")
        values = (
            car * np.uint16(1005) + person * np.uint16(2001 * (frame > 0)) + box_mask(30, 0, 4, 4) * np.uint16(10000)
        )
        label_map(root / "training" / "instances" / "0002" / f"{frame:06d}.png", values, "I;16")
        for value in np.unique(values)[1:]:
            counts = encode_rle(values == value)["counts"]
            lines.append(f"{frame} {value} {value // 1000} {HEIGHT} {WIDTH} {counts}\n")
    write(root / "training" / "instances_txt" / "0002.txt", "".join(lines))
    expected = {(0, "car", 5): [car] * 3, (0, "pedestrian", 1): [box_mask(0, 0, 0, 0), person, person]}
    shutil.copytree(root / "training" / "image_02", root / "training" / "images")
    bring_in("mots", root / "training" / "instances_txt" / "0002.txt", "--out", tmp_path / "text")
    bring_in("mots", root / "training" / "instances", "--out", tmp_path / "pictures")
    for name in ("text", "pictures"):
        assert_same(content(tmp_path / name / "annotations.json")[1], expected)


@pytest.mark.parametrize(("name", "first"), [("instances_txt/0002.txt", 0), ("0002/gt/gt.txt", 1)])
def test_mots_text_of_a_video(name, first, tmp_path, capsys):
    """KITTI MOTS counts frames from 0, MOTSChallenge from 1; only a labels.txt of the sequence counts."""
    with VideoWriter(tmp_path / "clip.mp4", HEIGHT, WIDTH, 10.0) as writer:
        for value in range(0, 240, 60):
            writer.write(np.full((HEIGHT, WIDTH, 3), value, np.uint8))
    mask = box_mask(2, 2, 8, 8)
    lines = [f"{first + n} 2001 2 {HEIGHT} {WIDTH} {encode_rle(mask)['counts']}\n" for n in (1, 3)]
    path = write(tmp_path / "sequences" / name, "".join(lines))
    write(tmp_path / "labels.txt", "not\nours\n")
    clip = ("--images", tmp_path / "clip.mp4")
    bring_in("mots", path, *clip, "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    assert_same(found, {(0, "pedestrian", 1): [mask, box_mask(0, 0, 0, 0), mask]})
    values = [np.mean(Image.open(io.BytesIO(dataset.read_frame(0, frame)))) for frame in range(3)]
    np.testing.assert_allclose(values, [60, 120, 180], atol=4)
    if first:
        path.write_text(f"0{lines[0][1:]}")
        assert "has a frame 0, but MOTSChallenge counts from 1" in failing(capsys, tmp_path, "mots", path, *clip)
    write_picture(tmp_path / "two" / "a_1.png")
    write_picture(tmp_path / "two" / "b_1.png")
    error = failing(capsys, tmp_path, "mots", path, "--images", tmp_path / "two")
    assert "two: pictures end with the same number" in error


# --- pictures with polygons


@pytest.fixture
def yolo(tmp_path):
    """As Roboflow writes it: paths that lead out of the folder, a test set that is not there."""
    root = tmp_path / "yolo"
    polygon = "0.05 0.125 0.3 0.125 0.3 0.5 0.05 0.5"
    for split, name in (("train", "a"), ("train", "b"), ("valid", "a")):
        write_picture(root / split / "images" / f"{name}.jpg")
    write(root / "train" / "labels" / "a.txt", f"2 {polygon}\n0 0.5 0.5 0.25 0.5\n\n")
    write(root / "valid" / "labels" / "a.txt", f"0 {polygon}\n")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 3\nnames: ['dog', 'cat', 'bird']\n"
    write(root / "data.yaml", text + "roboflow:\n  workspace: x\n")
    return root


def test_yolo(yolo, tmp_path, capsys):
    bring_in("yolo-seg", yolo, "--out", tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/out/train/annotations.json: 2 pictures, 2 instances of 2 classes",
        f"wrote {tmp_path}/out/val/annotations.json: 1 picture, 1 instance of 1 class",
        "boxes that became rectangular masks: 1",
    ]
    polygon, box = box_mask(2, 3, 10, 9), box_mask(15, 6, 10, 12)
    dataset, found = content(tmp_path / "out" / "train" / "annotations.json")
    assert_same(found, {(0, "bird", None): [polygon], (0, "dog", None): [box]})
    assert dataset.info.is_images
    assert [category.name for category in dataset.categories] == ["dog", "bird"]
    validation, found = content(tmp_path / "out" / "val" / "annotations.json")
    assert_same(found, {(0, "dog", None): [polygon]})
    assert validation.categories == dataset.categories


def test_yolo_with_a_folder_that_is_not_unpacked(yolo, capsys):
    """The last part of its path leads to other pictures, which are not validated on as well."""
    shutil.rmtree(yolo / "valid")
    shutil.move(yolo / "train" / "images", yolo / "images")
    path = yolo / "data.yaml"
    assert f"a.jpg: belongs to both {path}: train and {path}: val" in failing(capsys, yolo.parent, "yolo-seg", yolo)


def test_yolo_as_ultralytics_writes_it(yolo, tmp_path):
    other = tmp_path / "other"
    for kind in ("images", "labels"):
        shutil.copytree(yolo / "train" / kind, other / kind / "train")
    write(other / "list.txt", "./images/train/b.jpg\n/home/me/datasets/other/images/train/a.jpg\n")
    for place in ("images/train", "list.txt"):
        write(other / "data.yaml", f"path: ../datasets/other\ntrain: {place}\nnames:\n  0: dog\n  2: bird\n")
        out = tmp_path / place.replace("/", "_")
        bring_in("yolo-seg", other / "data.yaml", "--out", out)
        assert {name for _, name, _ in content(out / "annotations.json")[1]} == {"dog", "bird"}
    shutil.move(other / "images", tmp_path / "elsewhere")
    write(other / "data.yaml", "train: images/train\nnames: {0: dog, 2: bird}\n")
    bring_in("yolo-seg", other, "--images", tmp_path / "elsewhere", "--out", tmp_path / "apart")
    assert len(content(tmp_path / "apart" / "annotations.json")[1]) == 2


def test_roboflow(tmp_path, capsys):
    root = tmp_path / "roboflow"
    for split in ("train", "valid"):
        write_picture(root / split / "a_jpg.rf.0123.jpg")
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}, {"id": 1, "name": "dog"}]
        image = {"id": 0, "file_name": "a_jpg.rf.0123.jpg", "height": HEIGHT, "width": WIDTH, "extra": {"name": "a"}}
        annotation = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [2, 3, 10, 5], "area": 50, "iscrowd": 0}
        annotation["segmentation"] = [[2, 3, 12, 3, 12, 8, 2, 8]]
        document = {"categories": categories, "images": [image], "annotations": [annotation]}
        write(root / split / "_annotations.coco.json", document)
    bring_in("roboflow", root, "--out", tmp_path / "out")
    assert capsys.readouterr().out.count("1 picture, 1 instance of 1 class") == 2
    for split in ("train", "valid"):
        _, found = content(tmp_path / "out" / split / "annotations.json")
        assert_same(found, {(0, "dog", None): [box_mask(2, 3, 10, 5)]})


# --- our own exports


NUMBERS = (2, 4, 6)


@pytest.fixture
def exported(tmp_path):
    """What ``export-results`` wrote of two tracks, one partly over the other, and the folder of its frames."""
    masks = np.zeros((2, 3, *SIZE), bool)
    for frame in range(3):
        masks[0, frame] = box_mask(3 + frame, 4, 15, 10)
    masks[1, 1:] = box_mask(10, 10, 20, 10)
    stored = [TrackMasks((HEIGHT, WIDTH), [encode_rle(m)["counts"] for m in track]) for track in masks]
    names = ("unseen", "dog, puppy", "=cat")
    found = [Track(4, 2, names[2], 0.9, stored[1]), Track(0, 1, names[1], 0.8, stored[0])]
    VideoResult(found, names, *SIZE, 3, frame_numbers=NUMBERS).save(tmp_path / "tracks.json")
    assert main(["export-results", str(tmp_path / "tracks.json"), "--coco", "--mots", "--png"]) == 0
    for number in range(8):
        write_picture(tmp_path / "frames" / f"frame_{number:06d}.jpg", seed=number)
    return tmp_path / "exported", masks


@pytest.mark.parametrize("format_", ["cvat-coco", "mots", "davis"])
def test_our_own_exports_come_back(exported, format_, tmp_path):
    folder, masks = exported
    bring_in(format_, folder, "--images", tmp_path / "frames", "--out", tmp_path / "out")
    dataset, found = content(tmp_path / "out" / "annotations.json")
    ids = (1, 5) if format_ == "mots" else (0, 4)  # MOTS counts from 1
    under = masks[0] if format_ == "cvat-coco" else masks[0] & ~masks[1]  # pictures hold one instance per pixel
    dog = "dog" if format_ == "mots" else "dog, puppy"
    assert_same(found, {(0, dog, ids[0]): under, (0, "=cat", ids[1]): masks[1]})
    assert [Path(name).name for name in dataset[0].file_names] == [f"frame_{n:06d}.jpg" for n in NUMBERS]


def test_what_label_studio_got_from_us_comes_back(exported, tmp_path):
    _, masks = exported
    assert main(["export-results", str(tmp_path / "tracks.json"), "--labelstudio", "--out", str(tmp_path / "out")]) == 0
    interface = ElementTree.parse(tmp_path / "out" / "label_studio.xml").getroot()
    assert [label.get("value") for label in interface.iter("Label")] == ["dog", "=cat"]
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    for task in tasks:  # as Label Studio does when they are accepted
        task["annotations"] = task.pop("predictions")
        task["data"]["image"] = task["data"]["image"].replace(".png", ".jpg")
    path = write(tmp_path / "project.json", tasks)
    bring_in("labelstudio", path, "--images", tmp_path / "frames", "--out", tmp_path / "again")
    dataset = open_dataset(tmp_path / "again" / "annotations.json")
    names = [category.name for category in dataset.categories]
    assert names == ["=cat", "dog"]
    for frame, picture in enumerate(dataset):
        found = {names[instance.category_id - 1]: instance.masks[0] for instance in picture.instances}
        expected = {"dog": masks[0, frame], "=cat": masks[1, frame]}
        assert found == {name: encode_rle(mask)["counts"] for name, mask in expected.items() if mask.any()}


# --- bad input


def test_the_formats_of_the_option_are_those_that_are_read():
    assert set(get_args(get_type_hints(Import)["format"])) == set(IMPORTERS)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images", 0, "file_name"), "../../secret.png", "which leads out of the image folder"),
        (("images", 0, "file_name"), "none.png", "its picture 'none.png' is not in "),
        (("images", 0, "height"), 10**9, "images[0].height"),
        (("images", 1, "height"), 23, "other frames of its video have another size"),
        (("images", 1, "id"), 2, "images[2].id is 2, which an earlier record has already"),
        (("annotations", 0, "image_id"), 99, "annotations[0].image_id is 99, but there is no such image"),
        (("annotations", 0, "category_id"), 99, "annotations[0].category_id is 99, but there is no such category"),
        (("annotations", 0, "segmentation"), [[1, 1, 1e300, 5, 5, 5]], "annotations[0].segmentation holds a polygon"),
        (("annotations", 0, "attributes", "track_id"), [1], "annotations[0].attributes.track_id"),
        (("annotations", 1, "segmentation", "size"), [3, 320], "its mask has the size [3, 320]"),
        (("annotations", 1, "segmentation", "counts"), [1, 2], "counts are not whole numbers that add up"),
        (("annotations", 1, "segmentation", "counts"), "0000", "its mask is damaged"),
        (("categories", 0, "name"), " ", "its class has no name"),
        (("annotations",), [], "the source has no instance with a mask"),
        (("annotations",), 7, "annotations: "),
    ],
)
def test_a_cvat_file_that_cannot_be_used(place, value, message, cvat_task, capsys):
    tmp_path = cvat_task.parent
    path = cvat_task / "annotations" / "instances_default.json"
    document = record = json.loads(path.read_text())
    for key in place[:-1]:
        record = record[key]
    record[place[-1]] = value
    path.write_text(json.dumps(document))
    assert message in failing(capsys, tmp_path, "cvat-coco", cvat_task)


def test_sources_that_cannot_be_used(cvat_task, yolo, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "task.zip", "PK")
    for format_ in IMPORTERS:
        assert f"{tmp_path / 'none'}" in failing(capsys, tmp_path, format_, tmp_path / "none")
        assert f"{tmp_path / 'empty'}" in failing(capsys, tmp_path, format_, tmp_path / "empty")
        assert f"{tmp_path / 'task.zip'}" in failing(capsys, tmp_path, format_, tmp_path / "task.zip")
    assert "SOURCE: name the folder" in failing(capsys, tmp_path, "davis")
    assert "nowhere: does not exist" in failing(capsys, tmp_path, "cvat-coco", cvat_task, "--images", "nowhere")
    picture = cvat_task / "images" / "default" / "frame_000005.PNG"
    write_picture(picture, (10, 10))
    assert "frame_000005.PNG: is 10x10 pixels, but its annotations are for 40x24" in failing(
        capsys, tmp_path, "cvat-coco", cvat_task
    )
    picture.write_text("no picture")
    assert "is not an image that can be read" in failing(capsys, tmp_path, "cvat-coco", cvat_task)
    path = cvat_task / "annotations" / "instances_default.json"
    path.write_text(path.read_text()[:-100])
    assert "it may be cut off" in failing(capsys, tmp_path, "cvat-coco", cvat_task)
    assert main(["import", "yolo-seg", str(yolo), "--out", str(yolo)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: [a\n", "is no data.yaml of YOLO ("),
        ("data.yaml", "train: images\n", "required field names"),
        ("data.yaml", "names: [a]\n", "names no pictures"),
        ("data.yaml", "names: [a, b, c]\ntrain: /etc\n", "train is '/etc', which is not below"),
        ("data.yaml", "names: [a]\ntrain: ../train/images\n", "line 1 has class 2, which data.yaml does not name"),
        ("data.yaml", "a: &a [1]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "is no data.yaml of YOLO ("),
        ("data.yaml", "[" * 100_000, "is no data.yaml of YOLO ("),
        ("data.yaml", "names: !!int ''\n", "is no data.yaml of YOLO ("),
        ("data.yaml", "names: !!bool x\n", "is no data.yaml of YOLO ("),
        ("data.yaml", "names: !!timestamp x\n", "is no data.yaml of YOLO ("),
        ("data.yaml", "#" * 2**21, "is larger than 1 MiB"),
        ("train/labels/a.txt", "0 0.1 0.2 0.3\n", "line 1 has 3 numbers after the class"),
        ("train/labels/a.txt", "0 1 2 30 4 5 6\n", "line 1 has numbers far outside of 0 to 1"),
        ("train/labels/a.txt", "0 0 0 nan 0 1 1\n", "line 1 has numbers far outside of 0 to 1"),
        ("train/labels/a.txt", "dog 0 0 1 0 1 1\n", "line 1 is 'dog 0 0 1 0 1 1', but a class and numbers are needed"),
    ],
)
def test_yolo_files_that_cannot_be_used(name, text, message, yolo, capsys):
    (yolo / name).write_text(text)
    assert message in failing(capsys, yolo.parent, "yolo-seg", yolo)


def test_masks_that_cannot_be_used(exported, tmp_path, capsys):
    folder, _ = exported
    images = ("--images", tmp_path / "frames")
    mots, labels = folder / "mots" / "instances" / "frame_000004.png", folder / "labels" / "frame_000004.png"
    shutil.copy(labels, mots)
    assert "frame_000004.png: has 8 bits per pixel" in failing(capsys, tmp_path, "mots", folder, *images)
    label_map(mots, np.full(SIZE, 7001, np.uint16), "I;16")
    assert "has the id 7001 of class 7, but there are 2 classes" in failing(capsys, tmp_path, "mots", folder, *images)
    Image.new("RGB", (WIDTH, HEIGHT)).save(labels)
    assert "has pixels of mode RGB" in failing(capsys, tmp_path, "davis", folder, *images)
    label_map(labels, np.zeros((3, 3), np.uint8))
    assert "is 3x3 pixels, but its picture 40x24" in failing(capsys, tmp_path, "davis", folder, *images)
    (folder / "labels.csv").write_text("value,track_id\nx,1\n")
    assert "labels.csv: is no table of value" in failing(capsys, tmp_path, "davis", folder, *images)
    assert "its picture 'frame_000002.png' has no folder to look in" in failing(capsys, tmp_path, "mots", folder)
    text = write(tmp_path / "0001.txt", "2 1001 1 24 40\n")
    assert "0001.txt: line 1 is '2 1001 1 24 40', not frame, id" in failing(capsys, tmp_path, "mots", text, *images)
    write(text, f"99 1001 1 24 40 {encode_rle(box_mask(1, 1, 2, 2))['counts']}\n")
    assert "line 1: is of frame 99, of which there is no picture" in failing(capsys, tmp_path, "mots", text, *images)
    write(text, "2 1001 1 24 40 000\n")
    assert "line 1: its mask is damaged" in failing(capsys, tmp_path, "mots", text, *images)


def test_names_are_made_safe(cvat_task, tmp_path):
    """That of a folder is one on any system, also if a number has to follow."""
    odd = tmp_path / ("." + "é" * 126)
    shutil.copytree(cvat_task, odd)
    shutil.copytree(odd, tmp_path / "more" / odd.name)
    bring_in("cvat-coco", odd, tmp_path / "more" / odd.name, "--out", tmp_path / "long")
    assert len(list((tmp_path / "long" / "JPEGImages").iterdir())) == 2
    odd = tmp_path / "a: b?"
    cvat_task.rename(odd)
    shutil.copytree(odd, tmp_path / "more" / odd.name)
    bring_in("cvat-coco", odd, tmp_path / "more" / odd.name, "--out", tmp_path / "out")
    folders = sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir())
    assert folders == ["a_b_", "a_b__2"]
