"""Results in the formats of other tools: tables, MOTChallenge, MOTS pictures, label maps, Label Studio, cut-outs.

Every instance has its best class alone. ``numbers`` are the frames' numbers in the source, from 0.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import Track, VideoResult
from clipvis_jax.masks.brush import encode_brush
from clipvis_jax.media.visualize import color_palette, track_color
from clipvis_jax.text.vocabulary import short_names

_MOTS_IDS = 1000
"""A pixel of a MOTS picture is the class's number times this, plus the instance's."""


def csv_table(result: VideoResult, numbers: Sequence[int], times_s: Sequence[float] | None = None) -> str:
    """Return a table with a row per instance and frame in which it shows; boxes and areas in pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("frame", "time_s", "track_id", "class", "score", "left", "top", "width", "height", "area"))
    for index, track, box, area in _boxes(result):
        time = "" if times_s is None else f"{times_s[index]:.6g}"
        names = track.track_id, _cell(track.class_name), f"{track.score:.6g}"
        writer.writerow((numbers[index], time, *names, *box, area))
    return text.getvalue()


def label_names(result: VideoResult) -> list[str]:
    """Return the classes that instances have, by their short names, in the vocabulary's order: for labels.txt."""
    names = short_names(result.class_names)
    return [names[index] for index in _class_numbers(result)]


def mot_lines(result: VideoResult, numbers: Sequence[int]) -> Iterator[str]:
    """Yield the lines of MOTChallenge's gt.txt: frame, instance, box, 1, class (see ``label_names``), 1; all from 1."""
    class_of = _class_numbers(result)
    for index, track, (left, top, width, height), _ in _boxes(result):
        box = f"{left},{top},{width},{height}"
        yield f"{numbers[index] + 1},{track.track_id + 1},{box},1,{class_of[track.class_index]},1\n"


def mots_pictures(result: VideoResult) -> Iterator[Image.Image]:
    """Yield the 16-bit picture of every frame: 0 or class (from 1, see ``label_names``) x 1000 + instance (from 1).

    Raises:
        InputError: There are more classes or instances than fit.
    """
    class_of = _class_numbers(result)
    best = result.best()
    highest_id = max((track.track_id for track in best.tracks), default=0)
    if len(class_of) >= 2**16 // _MOTS_IDS or highest_id + 1 >= _MOTS_IDS:
        raise InputError("MOTS pictures hold 64 classes and 999 track ids at most; leave out tracks with a low score")
    for index in range(result.num_frames):
        pixels = np.zeros((result.height, result.width), np.uint16)
        for track in best.frame(index)[::-1]:  # the best on top
            pixels[track.mask] = class_of[track.class_index] * _MOTS_IDS + track.track_id + 1
        yield Image.fromarray(pixels)


def label_maps(result: VideoResult) -> Iterator[Image.Image]:
    """Yield the label map of every frame, as DAVIS has them: an 8-bit picture with a palette.

    A pixel is 0, or the place of its instance in ``result.best().tracks``, from 1.

    Raises:
        InputError: There are more instances than fit.
    """
    best = result.best()
    if len(best.tracks) > 255:
        raise InputError("label maps hold 255 instances at most; leave out tracks with a low score")
    places = {track.track_id: place for place, track in enumerate(best.tracks, start=1)}
    palette = color_palette(256)
    palette[0] = 0
    palette[1 : 1 + len(places)] = np.array([track_color(track_id) for track_id in places]).reshape(-1, 3)
    for index in range(result.num_frames):
        pixels = np.zeros((result.height, result.width), np.uint8)
        for track in best.frame(index)[::-1]:  # the best on top
            pixels[track.mask] = places[track.track_id]
        picture = Image.fromarray(pixels)
        picture.putpalette(palette.tobytes())
        yield picture


def label_table(result: VideoResult) -> str:
    """Return what the values of ``label_maps`` mean: value, track id, class and score of every instance."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("value", "track_id", "class", "score"))
    for value, track in enumerate(result.best().tracks, start=1):
        writer.writerow((value, track.track_id, _cell(track.class_name), f"{track.score:.6g}"))
    return text.getvalue()


def crops(result: VideoResult, images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield frame, track id and cut-out (RGBA, transparent outside the mask) of every instance in every frame.

    Args:
        result: The result.
        images: The frames' pictures.

    Raises:
        InputError: The pictures are of another size.
    """
    best = result.best()
    for index, image in enumerate(images):
        if image.shape[:2] != (result.height, result.width):
            height, width = image.shape[:2]
            raise InputError(
                f"frame {index} of the source is {width}x{height} pixels, the results' are {result.width}x"
                f"{result.height}; give the source that they are of"
            )
        for track in best.frame(index):
            left, top, right, bottom = track.box or (0, 0, 0, 0)
            alpha = track.mask[top:bottom, left:right] * np.uint8(255)
            yield index, track.track_id, Image.fromarray(np.dstack([image[top:bottom, left:right], alpha]))


def label_studio_tasks(result: VideoResult, files: Sequence[str]) -> list[dict[str, Any]]:
    """Return Label Studio's tasks, a picture per frame with the masks as predictions of its brush.

    Pictures are looked for below its folder for local files.

    Args:
        result: The result.
        files: Names of the frames' pictures.
    """
    best = result.best()
    names = short_names(result.class_names)
    size = {"original_width": result.width, "original_height": result.height, "image_rotation": 0}
    tasks = []
    for index, file in enumerate(files):
        drawn = [
            {"id": f"{track.track_id}-{index}", "type": "brushlabels", "from_name": "label", "to_name": "image", **size}
            | {"score": track.score, "meta": {"text": [f"track {track.track_id}"]}}
            | {"value": {"format": "rle", "rle": encode_brush(track.mask), "brushlabels": [names[track.class_index]]}}
            for track in best.frame(index)
        ]
        predictions = [{"model_version": "clipvis_jax", "result": drawn}]
        tasks.append({"data": {"image": f"/data/local-files/?d={file}"}, "predictions": predictions})
    return tasks


def label_studio_interface(result: VideoResult) -> str:
    """Return the labeling interface that the tasks of ``label_studio_tasks`` need: a brush with the classes found."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in label_names(result))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="label" toName="image">\n'
        f"{labels}\n  </BrushLabels>\n</View>\n"
    )


def _boxes(result: VideoResult) -> Iterator[tuple[int, Track, list[int], int]]:
    """Yield index, track, box (left, top, width, height) and area of every instance in every frame where it shows."""
    best = result.best().tracks
    for index in range(result.num_frames):
        for track in best:
            mask = track.segmentations[index]
            if area := int(coco_mask.area(mask)):
                yield index, track, coco_mask.toBbox(mask).astype(int).tolist(), area


def _cell(name: str) -> str:
    """Return a name for a table, marked as text where a spreadsheet would take it for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _class_numbers(result: VideoResult) -> dict[int, int]:
    found = sorted({track.class_index for track in result.best().tracks})
    return {index: number for number, index in enumerate(found, start=1)}
