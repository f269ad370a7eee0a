"""Videos of the Shapes world in another look, to fine-tune on: 320x180, other backgrounds and light, twelve classes.

    python -m bench.other_look build/other_look/train --count 60
    python -m bench.other_look build/other_look/test --count 30 --first 60

The bundled model has seen square frames of 160 pixels with muted, textured backgrounds. Here the background is a bright
scene of sky, ground and slats, the picture is dim and yellow in the corners, and objects reach beyond its edges. Scenes
are those of the split "test" in another world (another seed), so that the bundled model has seen none of them.
"""

import argparse
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from clipvis_jax.data.shapes.classes import CLASSES, COLOURS
from clipvis_jax.data.shapes.dataset import MIN_AREA
from clipvis_jax.data.shapes.drawing import Figure
from clipvis_jax.data.shapes.frames import draw_frame, draw_labels
from clipvis_jax.data.shapes.scenes import build_scene
from clipvis_jax.data.shapes.splits import ShapesConfig
from clipvis_jax.io.files import prepare_output_dir, write_text

WIDTH, HEIGHT, FRAMES, SEED = 320, 180, 10, 17
TOP = (WIDTH - HEIGHT) // 2
"""The rows of the square scene that are shown begin here."""
CLASS_NUMBERS = tuple(4 + 31 * number for number in range(12))
"""Twelve classes, spread over all shapes, colours and patterns."""


def background(rng, side):
    """Draw sky, ground and slats: large areas of bright colours with straight edges."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    sky, ground, slat = rng.uniform(
        [[90, 150, 200], [90, 130, 40], [130, 80, 40]], [[170, 220, 255], [190, 200, 110], 3 * [220]]
    )
    horizon = rng.uniform(0.35, 0.6) + 0.03 * np.sin(2 * np.pi * (rng.uniform(1, 3) * columns + rng.random()))
    canvas = np.where(
        (rows < horizon)[..., None], sky + 60 * (rows - 0.5)[..., None], ground * (0.7 + 0.5 * rows)[..., None]
    )
    turned = np.cos(angle := rng.uniform(0, np.pi)) * columns + np.sin(angle) * rows
    is_slat = (np.mod(turned * rng.uniform(5, 12), 1) < 0.25) & (np.abs(rows - rng.uniform(0.2, 0.8)) < 0.2)
    canvas = np.where(is_slat[..., None], slat, canvas)
    return (canvas + rng.normal(0, 5, (side, side, 1))).astype(np.float32)


def other_look(index):
    """Return the scene of a video with other classes and background, and objects that fit between its edges."""
    scene = build_scene(ShapesConfig(split="test", seed=SEED, size=WIDTH, frames=FRAMES), index)
    actors = []
    for actor in scene.actors:
        number, figure = actor.class_number, actor.figure
        if number is not None:
            number = CLASS_NUMBERS[number % len(CLASS_NUMBERS)]
            figure = Figure(CLASSES[number].shape, CLASSES[number].pattern, COLOURS[CLASSES[number].colour])
        poses = (
            dataclasses.replace(pose, y=TOP + pose.y * HEIGHT / WIDTH, radius=0.65 * pose.radius)
            for pose in actor.poses
        )
        actors.append(dataclasses.replace(actor, figure=figure, class_number=number, poses=tuple(poses)))
    scene = dataclasses.replace(scene, actors=tuple(actors))
    canvas = background(np.random.default_rng((SEED, index)), WIDTH + 2 * scene.margin)
    scene.__dict__["background"] = canvas  # where the cached property would keep its own
    return scene


def lit(frame_u8):
    """Light a frame dimly and yellow, darker towards the corners."""
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    light = (0.85 - 0.25 * (rows**2 + columns**2))[..., None] * np.array([1.0, 0.92, 0.72])
    return (frame_u8 * light + 8).clip(0, 255).astype(np.uint8)


def write_videos(out, count, first):
    """Write JPEGImages and annotations.json."""
    videos, annotations = [], []
    for index in tqdm(range(first, first + count), "drawing", unit="video"):
        scene, names = other_look(index), []
        folder = prepare_output_dir(out / "JPEGImages" / f"{index:06d}")
        numbers = [actor.class_number for actor in scene.actors if actor.class_number is not None]
        tracks = [[] for _ in numbers]
        for frame in range(FRAMES):
            names.append(f"{index:06d}/{frame:05d}.jpg")
            file = io.BytesIO()
            Image.fromarray(lit(draw_frame(scene, frame)[TOP : TOP + HEIGHT])).save(file, "JPEG", quality=90)
            (folder / f"{frame:05d}.jpg").write_bytes(file.getvalue())
            labels = draw_labels(scene, frame)[TOP : TOP + HEIGHT]
            for number, track in enumerate(tracks, 1):
                mask = labels == number
                rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                track.append({**rle, "counts": str(rle["counts"], "ascii")} if mask.sum() >= MIN_AREA else None)
        videos.append({"id": index + 1, "width": WIDTH, "height": HEIGHT, "length": FRAMES, "file_names": names})
        annotations += [
            {
                "id": 10 * index + place + 1,
                "video_id": index + 1,
                "category_id": number + 1,
                "iscrowd": 0,
                "segmentations": track,
                "bboxes": [None if mask is None else coco_mask.toBbox(mask).tolist() for mask in track],
                "areas": [None if mask is None else int(coco_mask.area(mask)) for mask in track],
            }
            for place, (number, track) in enumerate(zip(numbers, tracks, strict=True))
            if any(track)
        ]
    categories = [{"id": number + 1, "name": CLASSES[number].name} for number in CLASS_NUMBERS]
    content = {"videos": videos, "categories": categories, "annotations": annotations}
    write_text(out / "annotations.json", json.dumps(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    write_videos(arguments.out, arguments.count, arguments.first)
