"""The Shapes world: the same from the same seeds, true to its ground truth, and strict about what training may see."""

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.cli import main
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.data.records import Dataset
from clipvis_jax.data.shapes.captions import caption_words, draw_captioned, write_caption
from clipvis_jax.data.shapes.classes import (
    CLASSES,
    COLOURS,
    PARTITIONS,
    PATTERNS,
    SHAPES,
    categories,
    class_names,
    classes_of,
)
from clipvis_jax.data.shapes.dataset import MIN_AREA, ShapesDataset, draw_video, video_record
from clipvis_jax.data.shapes.drawing import Figure, Pose, footprint, paint
from clipvis_jax.data.shapes.frames import draw_frame, draw_labels
from clipvis_jax.data.shapes.outlines import CLUTTER_SHAPES, REACH, area, distance_table
from clipvis_jax.data.shapes.scenes import build_scene
from clipvis_jax.data.shapes.splits import SPLITS, ShapesConfig, check_held_out
from clipvis_jax.data.shapes.writing import write_ytvis
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import ground_truth_from
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES

SMALL = ShapesConfig(split="val", size=96, frames=8)
VIDEO_SPLITS = ("train", "val", "test", "fast", "occlusion")


def decode(record, instance, frame):
    """Return the mask of an instance in a frame, empty where it is absent."""
    counts = instance.masks[frame]
    if counts is None:
        return np.zeros((record.height, record.width), bool)
    return coco_mask.decode({"size": [record.height, record.width], "counts": counts}).astype(bool)


def category_parts(record):
    return {CLASSES[instance.category_id - 1].part for instance in record.instances}


# Classes


def test_classes_are_all_combinations_with_unique_names():
    names = class_names()
    assert len(names) == len(set(names)) == len(SHAPES) * len(COLOURS) * len(PATTERNS) == 360
    assert "striped teal star" in names


def test_parts_cover_the_classes_once_in_the_announced_shares():
    parts = [classes_of((part,)) for part in PARTITIONS]
    assert [len(numbers) for numbers in parts] == [216, 90, 54]
    assert sorted(itertools.chain(*parts)) == list(range(360))


@pytest.mark.parametrize("part", PARTITIONS)
@pytest.mark.parametrize("attribute", ["shape", "colour", "pattern"])
def test_every_attribute_occurs_in_every_part_in_a_fair_share(part, attribute):
    values = {getattr(shape_class, attribute) for shape_class in CLASSES}
    of_part = [CLASSES[number] for number in classes_of((part,))]
    for value in values:
        share = np.mean([getattr(shape_class, attribute) == value for shape_class in of_part])
        assert share == pytest.approx(1 / len(values), rel=0.35)


@pytest.mark.parametrize("pair", list(itertools.combinations(("shape", "colour", "pattern"), 2)))
def test_every_pair_of_attributes_is_known_from_base_classes(pair):
    def pairs_of(classes):
        return {tuple(getattr(shape_class, attribute) for attribute in pair) for shape_class in classes}

    assert pairs_of(CLASSES[number] for number in classes_of(("base",))) == pairs_of(CLASSES)


def test_categories_carry_names_and_partitions():
    for category, shape_class in zip(categories(), CLASSES, strict=True):
        assert category.name == shape_class.name
        assert category.partition == PARTITIONS[shape_class.part]
    assert [category.id for category in categories()] == list(range(1, 361))


# Drawing


@pytest.mark.parametrize("shape", SHAPES + CLUTTER_SHAPES)
def test_outlines_are_distances_that_fit_their_tables(shape):
    table = distance_table(shape)
    assert table.shape[0] == table.shape[1]
    rim = np.concatenate([table[0], table[-1], table[:, 0], table[:, -1]])
    assert rim.min() > 0.1, "the shape must end inside its table"
    assert 0.25 < area(shape) < np.pi
    cell = 2 * REACH / (len(table) - 1)
    slopes = np.hypot(*np.gradient(table, cell))
    assert np.quantile(slopes, 0.95) < 1.01, "distances change by at most one per unit"


def test_area_of_known_shapes():
    assert area("circle") == pytest.approx(np.pi * 0.85**2, rel=0.01)
    assert area("square") == pytest.approx((2 * 0.74) ** 2, rel=0.02)
    assert area("ring") == pytest.approx(np.pi * (0.92**2 - 0.44**2), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_drawing_agrees_with_supersampling(shape):
    # Coverage from distances against counting 8 x 8 samples of each pixel.
    figure, fine = Figure(shape, "plain", (255, 255, 255)), 8
    pose = Pose(31.3, 32.6, 22.0, 0.7)
    at = footprint(figure, pose, 64, 64)
    coverage = np.zeros((64, 64))
    coverage[at.rows, at.columns] = np.clip(0.5 - at.distance, 0, 1)
    large = footprint(figure, Pose(pose.x * fine, pose.y * fine, pose.radius * fine, pose.angle), 512, 512)
    samples = np.zeros((512, 512))
    samples[large.rows, large.columns] = large.distance <= 0
    counted = samples.reshape(64, fine, 64, fine).mean(axis=(1, 3))
    assert abs(coverage - counted).max() < 0.4  # at the sharpest corners
    assert abs(coverage - counted).mean() < 0.004
    assert coverage.sum() == pytest.approx(counted.sum(), rel=0.015)


def test_rotation_turns_clockwise():
    figure = Figure("arrow", "plain", (255, 255, 255))
    canvas = np.zeros((64, 64, 3), np.float32)
    paint(canvas, figure, Pose(32.0, 32.0, 25.0, np.pi / 2), light=(0.0, 0.0))
    columns = (canvas[..., 0] > 127).sum(axis=0)
    # An arrow that points up has its head at the top; a quarter turn brings it to the right.
    assert columns[36:50].max() > 1.5 * columns[10:26].max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_patterns_are_visible_at_the_smallest_size(shape, colour):
    shades = {}
    for pattern in PATTERNS:
        canvas = np.zeros((48, 48, 3), np.float32)
        figure = Figure(shape, pattern, COLOURS[colour])
        paint(canvas, figure, Pose(24.0, 24.0, 13.0, 0.3), light=(0.0, 0.0))
        shades[pattern] = canvas
    inside = shades["plain"].max(axis=2) > 60
    for one, other in itertools.combinations(PATTERNS, 2):
        differs = abs(shades[one] - shades[other]).max(axis=2) > 50
        assert differs[inside].mean() > 0.08, (one, other)


# Videos


@pytest.mark.parametrize("split", VIDEO_SPLITS)
def test_same_seed_same_bytes(split):
    config = dataclasses.replace(SMALL, split=split)
    frames, record = draw_video(config, 3)
    video_record.cache_clear()
    again, record_again = draw_video(dataclasses.replace(config), 3)
    assert frames.tobytes() == again.tobytes()
    assert record == record_again
    assert frames.shape == (8, 96, 96, 3)


def test_another_process_draws_the_same_bytes():
    dataset = ShapesDataset(SMALL)
    code = (
        "import hashlib, pickle, sys; dataset = pickle.load(sys.stdin.buffer);"
        "print(hashlib.sha256(dataset.read_frame(5, 2) + repr(dataset[5]).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(dataset), capture_output=True, check=True)
    here = hashlib.sha256(dataset.read_frame(5, 2) + repr(dataset[5]).encode()).hexdigest()
    assert run.stdout.decode().strip() == here


def test_splits_seeds_and_numbers_give_different_videos():
    configs = [dataclasses.replace(SMALL, split=split) for split in VIDEO_SPLITS] + [dataclasses.replace(SMALL, seed=1)]
    firsts = {draw_frame(build_scene(config, index), 0).tobytes() for config in configs for index in range(5)}
    assert len(firsts) == 30


def test_seeds_of_splits_do_not_overlap():
    ranges = sorted((split.seeds.start, split.seeds.stop) for split in SPLITS.values())
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ranges))


def test_size_changes_pixels_but_not_the_scene():
    small, large = (dataclasses.replace(SMALL, size=size) for size in (96, 192))
    for index in range(5):
        for one, other in zip(video_record(small, index).instances, video_record(large, index).instances, strict=True):
            assert one.category_id == other.category_id
            both = [(a, b) for a, b in zip(one.areas, other.areas, strict=True) if a and b and a > 100]
            assert all(b == pytest.approx(4 * a, rel=0.2) for a, b in both)


@pytest.mark.parametrize("index", range(8))
def test_ways_and_light_do_not_depend_on_size_or_number_of_frames(index):
    # 8 and 15 frames: every second of the longer video is at the time of one of the shorter.
    one = build_scene(dataclasses.replace(SMALL, size=96, frames=8), index)
    other = build_scene(dataclasses.replace(SMALL, size=160, frames=15), index)
    assert [actor.figure for actor in one.actors] == [actor.figure for actor in other.actors]
    np.testing.assert_allclose(one.gains, other.gains[::2], rtol=1e-6)
    for actor, twin in zip(one.actors, other.actors, strict=True):
        for pose, at_same_time in zip(actor.poses, twin.poses[::2], strict=True):
            assert (pose.x / 96, pose.y / 96) == pytest.approx((at_same_time.x / 160, at_same_time.y / 160))
            assert pose.radius / 96 == pytest.approx(at_same_time.radius / 160)
            assert pose.angle == pytest.approx(at_same_time.angle)


@pytest.mark.parametrize(
    ("split", "frames", "brightness", "objects"),
    [
        ("train", 1, 97.6, [(301, 160), (32, 97), (93, 211), (276, 349), (66, 637), (253, 337)]),
        ("val", 8, 78.2, [(355, 512), (355, 101), (140, 285)]),
        ("test", 8, 114.5, [(6, 132), (302, 133)]),
        ("fast", 8, 79.1, [(147, 180), (237, 246), (93, 241), (29, 207), (17, 0), (3, 117), (281, 105), (58, 67)]),
        ("occlusion", 8, 90.3, [(58, 113), (118, 368), (114, 974), (58, 85)]),
    ],
)
def test_the_world_stays_as_it_is(split, frames, brightness, objects):
    # Models and published numbers belong to these pictures: whoever changes them raises WORLD_VERSION.
    frames, record = draw_video(dataclasses.replace(SMALL, split=split, frames=frames), 0)
    assert frames.mean() == pytest.approx(brightness, abs=0.3)
    assert [instance.category_id for instance in record.instances] == [category for category, _ in objects]
    areas = [instance.areas[0] or 0 for instance in record.instances]
    assert areas == pytest.approx([pixels for _, pixels in objects], abs=3)


def test_masks_are_disjoint_inside_and_measured_rightly():
    for index in range(10):
        record = video_record(SMALL, index)
        for frame in range(SMALL.frames):
            masks = [decode(record, instance, frame) for instance in record.instances]
            assert np.sum(masks, axis=0).max() <= 1
            for instance, mask in zip(record.instances, masks, strict=True):
                if instance.masks[frame] is None:
                    assert instance.areas[frame] is None
                    assert instance.boxes[frame] is None
                    continue
                assert mask.sum() == instance.areas[frame] >= MIN_AREA
                rows, columns = np.nonzero(mask)
                left, top, width, height = instance.boxes[frame]
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


def test_masks_lie_where_the_objects_are_drawn():
    # Repainting one object changes pixels exactly where its mask is, but for the soft pixels along the outline.
    config = dataclasses.replace(SMALL, split="val")
    checked = 0
    for index in range(12):
        scene = dataclasses.replace(build_scene(config, index), shadows=False, noise=0.0)
        objects = [place for place, actor in enumerate(scene.actors) if actor.class_number is not None]
        frame_u8, labels = draw_frame(scene, 4).astype(int), draw_labels(scene, 4)
        for label, place in enumerate(objects, start=1):
            actor = scene.actors[place]
            black = dataclasses.replace(actor.figure, pattern="plain", colour=(0, 0, 0))
            actors = [dataclasses.replace(actor, figure=black) if i == place else a for i, a in enumerate(scene.actors)]
            repainted = draw_frame(dataclasses.replace(scene, actors=tuple(actors)), 4).astype(int)
            changed = abs(frame_u8 - repainted).max(axis=2) > 2
            mask = labels == label
            grown = np.zeros_like(mask)
            for dy, dx in itertools.product((-1, 0, 1), repeat=2):
                grown |= np.roll(mask, (dy, dx), (0, 1))
            assert (changed & mask).sum() >= 0.97 * mask.sum()
            # Points of stars and bolts are thinner than half a pixel at their ends.
            assert (changed & ~grown).sum() <= 0.02 * mask.sum() + 8
            checked += bool(mask.sum() > 50)
    assert checked > 25


def test_every_video_has_two_to_eight_instances_and_all_counts_occur():
    counts = [len(video_record(SMALL, index).instances) for index in range(150)]
    assert set(counts) == set(range(2, 9))
    hard = dataclasses.replace(SMALL, split="occlusion")
    assert min(len(video_record(hard, index).instances) for index in range(40)) >= 3


def test_instance_ids_are_unique_and_positive():
    ids = [instance.id for index in range(60) for instance in video_record(SMALL, index).instances]
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 1


def hidden_and_back(config, count):
    """Return for every track whether it vanishes between two of its frames, and whether it was outside meanwhile."""
    hidden, outside = [], []
    for index in range(count):
        scene = build_scene(config, index)
        shown = {instance.id: instance for instance in video_record(config, index).instances}
        objects = [actor for actor in scene.actors if actor.class_number is not None]
        for number, actor in enumerate(objects):
            instance = shown.get(index * 8 + number + 1)
            if instance is None:
                continue
            frames = [frame for frame, mask in enumerate(instance.masks) if mask]
            gaps = [frame for frame in range(frames[0], frames[-1]) if instance.masks[frame] is None]
            hidden.append(bool(gaps))
            outside.append(
                any(
                    not (-pose.radius < pose.x < config.size + pose.radius)
                    or not (-pose.radius < pose.y < config.size + pose.radius)
                    for pose in (actor.poses[frame] for frame in gaps)
                )
            )
    return np.array(hidden), np.array(outside)


@pytest.mark.parametrize(("split", "inside"), [("val", 0.01), ("fast", 0.02)])
def test_objects_are_hidden_leave_and_return_under_the_same_id(split, inside):
    config = ShapesConfig(split=split, size=96, frames=16)
    hidden, outside = hidden_and_back(config, 60)
    assert 0.05 < hidden.mean() < 0.4
    assert outside.mean() > 0.03
    assert (hidden & ~outside).mean() > inside, "some must be hidden inside the picture"
    hard, _ = hidden_and_back(dataclasses.replace(config, split="occlusion"), 40)
    assert hard.mean() > 1.4 * hidden.mean(), "the split 'occlusion' must be harder"


def overlaps_with_next_frame(split):
    """Return the mean overlap (IoU) of each of a split's tracks with itself in the next of 20 frames."""
    means = []
    for index in range(40):
        scene = build_scene(ShapesConfig(split=split, size=96), index)
        labels = np.stack([draw_labels(scene, frame) for frame in range(20)])
        for label in range(1, labels.max() + 1):
            pairs = [(one, other) for one, other in itertools.pairwise(labels == label) if one.any() and other.any()]
            if pairs:
                means.append(np.mean([(one & other).sum() / (one | other).sum() for one, other in pairs]))
    return np.array(means)


def test_ordinary_videos_are_somewhat_quicker_than_natural_ones():
    # Of natural videos, a quarter of the objects overlap themselves by less than 0.7 a third of a second later.
    val, fast = overlaps_with_next_frame("val"), overlaps_with_next_frame("fast")
    assert 0.68 < np.median(val) < 0.8
    assert 0.25 < np.mean(val < 0.7) < 0.5
    assert np.mean(val > 0.9) > 0.05
    assert np.median(fast) < 0.55


def test_occlusion_shows_twins():
    def twins(split):
        config = dataclasses.replace(SMALL, split=split)
        classes = [[x.category_id for x in video_record(config, index).instances] for index in range(40)]
        return np.mean([len(set(numbers)) < len(numbers) for numbers in classes])

    assert twins("occlusion") > max(0.6, twins("val") + 0.2)


# What training may see


def test_train_shows_base_classes_only():
    config = dataclasses.replace(SMALL, split="train")
    for index in range(80):
        actors = build_scene(config, index).actors
        assert {CLASSES[a.class_number].part for a in actors if a.class_number is not None} == {"base"}


@pytest.mark.parametrize("split", ["val", "test", "fast", "occlusion"])
def test_evaluation_shows_all_parts(split):
    config = dataclasses.replace(SMALL, split=split)
    assert set.union(*(category_parts(video_record(config, index)) for index in range(20))) == set(PARTITIONS)


def test_val_shows_every_class():
    config = dataclasses.replace(SMALL, frames=1)
    shown = {actor.class_number for index in range(200) for actor in build_scene(config, index).actors}
    assert shown - {None} == set(range(360))


def test_clutter_is_of_no_class():
    for index in range(80):
        for actor in build_scene(SMALL, index).actors:
            if actor.class_number is None and actor.figure.contour:
                assert actor.figure.colour not in COLOURS.values()
            elif actor.class_number is None:
                assert actor.figure.shape not in SHAPES


def test_captions_never_name_or_show_unseen_classes():
    config = ShapesConfig(split="captions", size=96)
    parts = set()
    for index in range(150):
        captioned = draw_captioned(config, index)
        shown = [CLASSES[region.class_number] for region in captioned.regions]
        assert [shape_class.name for shape_class in shown] == [region.name for region in captioned.regions]
        parts |= {shape_class.part for shape_class in shown}
        classes = {actor.class_number for actor in build_scene(dataclasses.replace(config, frames=1), index).actors}
        assert "unseen" not in {CLASSES[number].part for number in classes - {None}}
    assert parts == {"base", "novel"}


# Captions


def test_captions_name_every_region_in_known_words():
    config = ShapesConfig(split="captions", size=96)
    words = set(caption_words())
    for index in range(60):
        captioned = draw_captioned(config, index)
        assert captioned.image.shape == (96, 96, 3)
        assert captioned.regions
        for region in captioned.regions:
            pattern, colour, shape = region.name.split()
            assert re.search(rf"\ba (small |medium |large )?{region.name}\b", region.caption)
            assert re.search(rf"{pattern} {colour} {shape}(s|es)?\b", captioned.caption)
            left, top, width, height = region.box
            assert 0 <= left < left + width <= 96
            assert 0 <= top < top + height <= 96
        for text in (captioned.caption, *(region.caption for region in captioned.regions)):
            assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= words


def test_captions_vary_but_the_image_does_not():
    config = ShapesConfig(split="captions", size=96)
    variants = [draw_captioned(config, 4, variant) for variant in range(8)]
    assert len({captioned.caption for captioned in variants}) > 3
    assert len({captioned.image.tobytes() for captioned in variants}) == 1
    again = draw_captioned(config, 4, 5)
    assert (again.caption, again.regions) == (variants[5].caption, variants[5].regions)


def test_several_of_a_class_are_counted():
    rng = np.random.default_rng(0)
    names = ["plain red cross", "striped teal star", "plain red cross"]
    texts = {write_caption(names, ["medium"] * 3, rng) for _ in range(200)}
    assert "a photo of two plain red crosses and a striped teal star." in texts
    assert "There are two plain red crosses and a striped teal star in the scene" in texts
    assert "There is a striped teal star and two plain red crosses in the scene" in texts
    assert any("medium striped teal star" in text for text in texts)


def test_tokenizer_words_cover_names_and_prompts():
    prompts = [template.format(name) for template in PROMPT_TEMPLATES for name in class_names()]
    used = {word for prompt in prompts for word in re.findall(r"\w+|[^\w\s]", prompt.lower())}
    assert used <= set(caption_words())


# Data set and files


def test_dataset_follows_the_protocol():
    dataset = ShapesDataset(SMALL, count=5, first=2)
    assert isinstance(dataset, Dataset)
    assert (len(dataset), dataset.name, dataset.has_annotations) == (5, "shapes_val", True)
    assert list(dataset.video_sizes()) == [(96, 96, 8)] * 5
    assert dataset[np.int64(1)] == video_record(SMALL, 3)
    frame = Image.open(io.BytesIO(dataset.read_frame(np.int64(1), np.int64(7))))
    drawn = draw_video(SMALL, 3)[0][7]
    assert frame.format == "JPEG"
    assert abs(np.asarray(frame).astype(int) - drawn).mean() < 4
    assert [record.id for record in dataset] == [3, 4, 5, 6, 7]
    for call in (lambda: dataset[5], lambda: dataset[-1], lambda: dataset.read_frame(0, 8)):
        with pytest.raises(IndexError):
            call()


def test_digest_changes_with_every_setting():
    others = [dataclasses.replace(SMALL, **change) for change in ({"seed": 1}, {"size": 97}, {"frames": 9})]
    datasets = [ShapesDataset(config, 5) for config in (SMALL, *others)]
    datasets += [ShapesDataset(SMALL, 6), ShapesDataset(SMALL, 5, first=1)]
    assert len({dataset.digest for dataset in datasets}) == len(datasets)
    assert ShapesDataset(SMALL, 5).digest == datasets[0].digest


def test_files_hold_what_the_data_set_draws(tmp_path):
    written = write_ytvis(SMALL, tmp_path / "val", count=4, first=3)
    dataset = ShapesDataset(SMALL, count=4, first=3)
    from_files = RawDataset(written, written.parent / "JPEGImages")
    from_files.check_images()
    assert list(from_files) == list(dataset)
    assert [(c.id, c.name, c.partition) for c in from_files.categories] == [
        (c.id, c.name, c.partition) for c in dataset.categories
    ]
    for index, frame in ((0, 0), (3, 7)):
        assert from_files.read_frame(index, frame) == dataset.read_frame(index, frame)
    truth = ground_truth_from(from_files)
    assert len(truth.annotations) == sum(len(record.instances) for record in dataset)


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writing_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_ytvis(SMALL, whole, count=3)
    read_frame, frames_left = ShapesDataset.read_frame, iter(range(12))

    def stop_in_the_second_video(self, index, frame):
        if next(frames_left, None) is None:
            raise KeyboardInterrupt
        return read_frame(self, index, frame)

    with monkeypatch.context() as patch:
        patch.setattr(ShapesDataset, "read_frame", stop_in_the_second_video)
        with pytest.raises(KeyboardInterrupt):
            write_ytvis(SMALL, stopped, count=3)
    assert not (stopped / "annotations.json").exists()
    assert [path.name for path in (stopped / "JPEGImages").glob("[0-9]*")] == ["000000"]
    write_ytvis(SMALL, stopped, count=3)
    assert snapshot(stopped) == snapshot(whole)


def test_two_at_once_leave_one_whole_set(tmp_path, monkeypatch):
    read_frame, refused = ShapesDataset.read_frame, []

    def meanwhile(self, index, frame):
        with pytest.raises(InputError, match=r"out: another process that writes Shapes videos is at work there; wait"):
            write_ytvis(SMALL, tmp_path / "out", count=2)
        refused.append(frame)
        return read_frame(self, index, frame)

    write_ytvis(SMALL, tmp_path / "whole", count=2)
    with monkeypatch.context() as patch:
        patch.setattr(ShapesDataset, "read_frame", meanwhile)
        write_ytvis(SMALL, tmp_path / "out", count=2)
    assert len(refused) == 2 * SMALL.frames
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_full_disk_leaves_no_half_video(tmp_path, monkeypatch):
    """File systems that write later say so when a file is synced, and not before."""
    synced = iter(range(SMALL.frames + 3))

    def fsync(_):
        if next(synced, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(InputError, match=r"out: cannot be written \(No space left on device\); free some space"):
            write_ytvis(SMALL, tmp_path / "out", count=2)
    assert [path.name for path in (tmp_path / "out" / "JPEGImages").glob("[0-9]*")] == ["000000"]
    write_ytvis(SMALL, tmp_path / "out", count=2)
    write_ytvis(SMALL, tmp_path / "whole", count=2)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_video_that_lost_frames_is_written_anew(tmp_path):
    write_ytvis(SMALL, tmp_path, count=3)
    whole, images = snapshot(tmp_path), tmp_path / "JPEGImages"
    (images / "000000" / "00001.jpg").unlink()
    (images / "000001" / "00000.jpg").write_bytes(b"")
    write_ytvis(SMALL, tmp_path, count=3)
    assert snapshot(tmp_path) == whole


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_finishes(tmp_path):
    script = (
        "import sys; from clipvis_jax.data.shapes.splits import ShapesConfig;"
        "from clipvis_jax.data.shapes.writing import write_ytvis;"
        "write_ytvis(ShapesConfig(split='val', size=64, frames=20), sys.argv[1], count=30)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("JPEGImages/[0-9]*"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "annotations.json").exists()
    for name in ("out", "whole"):
        write_ytvis(ShapesConfig(split="val", size=64, frames=20), tmp_path / name, count=30)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_more_videos_are_added(tmp_path):
    write_ytvis(SMALL, tmp_path, count=1)
    before = (tmp_path / "JPEGImages" / "000000" / "00000.jpg").stat().st_mtime_ns
    written = write_ytvis(SMALL, tmp_path, count=2)
    assert len(json.loads(written.read_text())["videos"]) == 2
    assert (tmp_path / "JPEGImages" / "000000" / "00000.jpg").stat().st_mtime_ns == before


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "valid"}, "choose one of train"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"size": 32}, "size 32"),
        ({"frames": 0}, "frames 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        ShapesConfig(**settings)


@pytest.mark.parametrize(("first", "count"), [(0, 1_000_001), (999_999, 2), (-1, 5), (1_000_000, 1)])
def test_videos_that_belong_to_other_splits_are_refused(first, count, tmp_path):
    with pytest.raises(InputError, match="other splits"):
        ShapesDataset(SMALL, count, first)
    with pytest.raises(InputError, match="other splits"):
        write_ytvis(SMALL, tmp_path / "out", count=count, first=first)
    assert not (tmp_path / "out").exists()


def test_the_last_videos_of_a_split_can_be_drawn():
    assert len(ShapesDataset(SMALL, 2, 999_998)[1].instances) >= 2


@pytest.mark.parametrize("split", ["train", "captions"])
def test_evaluating_on_what_was_trained_on_is_refused(split):
    with pytest.raises(InputError, match=f"'{split}' is for training"):
        check_held_out(ShapesConfig(split=split))
    check_held_out(SMALL)


def test_captioned_images_have_no_masks(tmp_path):
    config = dataclasses.replace(SMALL, split="captions")
    for call in (
        lambda: video_record(config, 0),
        lambda: ShapesDataset(config),
        lambda: write_ytvis(config, tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="no masks"):
            call()


def test_zero_videos_are_refused():
    with pytest.raises(InputError, match="ask for 1 or more"):
        ShapesDataset(SMALL, 0)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    write_ytvis(SMALL, tmp_path / "one", count=1)
    before = snapshot(tmp_path / "one")
    with pytest.raises(InputError, match="other settings"):
        write_ytvis(dataclasses.replace(SMALL, seed=1), tmp_path / "one", count=1)
    assert snapshot(tmp_path / "one") == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty"):
        write_ytvis(SMALL, other, count=1)
    assert snapshot(other) == {Path("letter.txt"): b"dear"}
    with pytest.raises(InputError, match="is a file"):
        write_ytvis(SMALL, other / "letter.txt", count=1)


def test_command_writes_and_reports(tmp_path, capsys):
    arguments = ["shapes", "--split", "test", "--out", str(tmp_path / "out"), "--count", "2", "--size", "64"]
    assert main([*arguments, "--frames", "2"]) == 0
    assert f"wrote {tmp_path / 'out' / 'annotations.json'}" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 4
    assert main([*arguments, "--frames", "3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_command_stopped_by_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShapesDataset, "read_frame", stop)
    assert main(["shapes", "--out", str(tmp_path / "out"), "--count", "1", "--size", "64"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
