"""How well CLIP alone names objects: with oracle masks, pooled as CLIP-VIS pools, and on crops."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.records import Dataset, Mask
from clipvis_jax.models import ops
from clipvis_jax.models.clipvis import ClipVis, Variables
from clipvis_jax.models.text_classifier import TextClassifier

_BATCH_SIZE = 8
_MAX_OBJECTS = 16
_CROP_MARGIN = 1.25
"""Side of a crop over the longer side of the object's box."""


class _Frame(NamedTuple):
    """A frame, the masks of its objects, and the classes that these are of."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    classes: Int[np.ndarray, " n"]


def zero_shot_accuracy(
    model: ClipVis,
    clip_vars: Variables,
    classifier: TextClassifier,
    dataset: Dataset,
    groups: Mapping[str, set[int]],
    *,
    count: int,
    image_size: int,
) -> dict[str, float]:
    """Return the share of objects that CLIP names rightly, out of all classes of a data set.

    Args:
        model: The model; only its CLIP is used.
        clip_vars: CLIP's variables.
        classifier: The names of the data set's categories, in their order.
        dataset: Videos, of each of which the middle frame is used.
        groups: Sets of category ids that get an accuracy of their own.
        count: Use the first so many videos.
        image_size: Height and width that frames are resized to, a multiple of 32.

    Returns:
        Shares from 0 to 1 by name: ``masks/all`` and ``crops/all``, and the same for each group. With masks, CLIP's
        dense feature is pooled over the oracle mask at stride 32. ``masks/empty`` is the share of objects so thin that
        their mask has no pixel there; they count as wrong. Crops are squares around objects, at half the size.
    """
    name_masks = jax.jit(functools.partial(_name_masks, model))
    index_of = {category.id: index for index, category in enumerate(dataset.categories)}
    truth: list[int] = []
    guesses: dict[str, list[int]] = {"masks": [], "crops": []}
    num_empty = 0
    crops: list[UInt8[np.ndarray, "h w 3"]] = []
    frames = list(_frames(dataset, index_of, count))
    for start in range(0, len(frames), _BATCH_SIZE):
        batch = frames[start : start + _BATCH_SIZE]
        images = np.zeros((_BATCH_SIZE, image_size, image_size, 3), np.uint8)
        masks = np.zeros((_BATCH_SIZE, _MAX_OBJECTS, *frames[0].masks.shape[1:]), bool)
        for row, frame in enumerate(batch):
            images[row] = _resize(frame.image, image_size)
            masks[row, : len(frame.masks)] = frame.masks
            truth += frame.classes.tolist()
            crops += [_crop(frame.image, mask, image_size // 2) for mask in frame.masks]
        named, empty = jax.device_get(name_masks(clip_vars, classifier, images, masks))
        for row, frame in enumerate(batch):
            found, none = named[row, : len(frame.masks)], empty[row, : len(frame.masks)]
            guesses["masks"] += np.where(none, -1, found).tolist()
            num_empty += int(none.sum())
    for start in range(0, len(crops), _BATCH_SIZE):
        part = crops[start : start + _BATCH_SIZE]
        padded = np.zeros((_BATCH_SIZE, *crops[0].shape), np.uint8)
        padded[: len(part)] = part
        whole = np.ones((_BATCH_SIZE, 1, *crops[0].shape[:2]), bool)
        named, _ = jax.device_get(name_masks(clip_vars, classifier, padded, whole))
        guesses["crops"] += named[: len(part), 0].tolist()

    members = {name: {index_of[number] for number in ids} for name, ids in groups.items()}
    members = {"all": set(index_of.values()), **members}
    scores = {}
    for kind, guessed in guesses.items():
        for name, classes in members.items():
            right = [guess == true for guess, true in zip(guessed, truth, strict=True) if true in classes]
            scores[f"{kind}/{name}"] = sum(right) / max(len(right), 1)
    return scores | {"masks/empty": num_empty / max(len(truth), 1)}


def _name_masks(
    model: ClipVis,
    clip_vars: Variables,
    classifier: TextClassifier,
    images_u8: UInt8[Array, "b h w 3"],
    masks: Bool[Array, "b n h2 w2"],
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Return the closest class of each mask, and whether nothing of the mask is left at stride 32."""
    height, width = images_u8.shape[1:3]
    features = model.extract_features(clip_vars, images_u8, jnp.array([height, width]))
    # As logits go: from stride 4 at once to stride 32, by the signs.
    signs = jnp.moveaxis(jnp.where(masks, 1.0, -1.0), 1, -1)
    fine = ops.resize_bilinear(signs, (height // 4, width // 4))
    grid = (features.res5.shape[1], features.res5.shape[2])
    coarse = jnp.moveaxis(ops.resize_bilinear(fine, grid), -1, 1) > 0
    visual = model.pool_masks(clip_vars, features.res5, coarse)
    logits: Float[Array, "b n c"] = model.name_embeddings(clip_vars, visual, classifier)
    return jnp.argmax(logits, axis=-1), ~jnp.any(coarse, axis=(2, 3))


def _frames(dataset: Dataset, index_of: Mapping[int, int], count: int) -> Iterator[_Frame]:
    for number in range(min(count, len(dataset))):
        record = dataset[number]
        frame = record.length // 2
        size = [record.height, record.width]
        masks, classes = [], []
        for instance in record.instances[:_MAX_OBJECTS]:
            mask = instance.masks[frame]
            if mask is not None:
                masks.append(_decode(mask, size))
                classes.append(index_of[instance.category_id])
        if masks:
            image = decode_frame(dataset, number, frame, record)
            yield _Frame(image, np.stack(masks), np.array(classes))


def _decode(mask: Mask, size: list[int]) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, str):
        encoded = {"size": size, "counts": mask}
    else:
        encoded = coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in mask], *size))
    return coco_mask.decode(encoded).astype(bool)


def _crop(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    """Cut out a square around a mask; beyond the image it is grey."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    middle = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    half = max(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]) * _CROP_MARGIN / 2
    left, top = (round(float(x) - half) for x in middle)
    right, bottom = (round(float(x) + half) for x in middle)
    padding = max(0, -left, -top, right - image.shape[1], bottom - image.shape[0])
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), constant_values=128)
    return _resize(padded[top + padding : bottom + padding, left + padding : right + padding], side)


def _resize(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
