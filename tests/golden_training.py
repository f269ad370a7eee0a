"""The authors' training cases: images, targets, every recorded random draw, and what came of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import golden

from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.structs import Matches, PointDraws, Targets, TrainingBatch

CASES = ("image", "image_zero", "video", "video_zero", "video_2frames")
CONFIG = LossConfig(num_points=256)
LAYERS = (3, 0, 1, 2)
"""The goldens' layers as ours: the last prediction comes first there."""
LOSSES = {"object": "loss_object_ce", "mask": "loss_mask", "dice": "loss_dice", "iou": "loss_iou"}
"""Our names of the losses, and the goldens'."""


@dataclasses.dataclass(frozen=True)
class Case:
    batch: TrainingBatch
    draws: PointDraws
    matches: Matches
    losses: dict[str, np.ndarray]
    """Losses [l] by name, not weighted."""
    arrays: dict[str, np.ndarray]
    """All of the golden's arrays."""


@functools.cache
def load_case(name, slots=7):
    """Load a case with ``slots`` targets per image: of the same shapes as others, to share what is compiled."""
    arrays = golden(f"tiny_train_{name}")
    frames = [0, 2, 1, 3] if name == "video_2frames" else [0, 1]
    num_images, num_layers = len(frames), len(LAYERS)
    counts = [len(arrays[f"target_labels_{image}"]) for image in range(num_images)]
    size = arrays["target_masks_0"].shape[1:]
    masks = np.zeros((num_images, slots, *size), bool)
    valid, absent = np.zeros((2, num_images, slots), bool)
    for image, count in enumerate(counts):
        masks[image, :count] = arrays[f"target_masks_{image}"]
        valid[image, :count] = True
        absent[image, :count] = arrays[f"target_labels_{image}"] == 1
    query = np.zeros((num_layers, num_images, slots), np.int32)
    points = {
        "matching": np.zeros((num_layers, num_images, 256, 2), np.float32),
        "candidates": np.zeros((num_layers, num_images, slots, 768, 2), np.float32),
        "random": np.zeros((num_layers, num_images, slots, 64, 2), np.float32),
    }
    losses = {name: np.zeros(num_layers, np.float32) for name in LOSSES}
    for recorded, layer in enumerate(LAYERS):
        row = 0
        for image in range(num_images):
            points["matching"][layer, image] = arrays[f"L{recorded}/match_points_{image}"][0]
            sources, targets = (arrays[f"L{recorded}/match_{kind}_{image}"] for kind in ("src", "tgt"))
            for source, target in zip(sources, targets, strict=True):
                points["candidates"][layer, image, target] = arrays[f"L{recorded}/candidates"][row]
                points["random"][layer, image, target] = arrays[f"L{recorded}/random_points"][row]
                query[layer, image, target] = source
                row += 1
        for loss, theirs in LOSSES.items():
            losses[loss][layer] = arrays[f"L{recorded}/{theirs}"]
    targets = Targets(masks_packed=np.packbits(masks, axis=-1), valid=valid, absent=absent)
    batch = TrainingBatch(images_u8=golden("tiny_train_shared")["images_u8"][frames], targets=targets)
    matches = Matches(query=query, matched=np.broadcast_to(valid, query.shape))
    batch, draws = jax.tree.map(jnp.asarray, (batch, PointDraws(**points)))
    return Case(batch, draws, matches, losses, arrays)
