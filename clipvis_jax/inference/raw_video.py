"""What the network predicts of a video, kept: named, associated and scored anew without running the network."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import expit

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig, History, associate
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.inference.scores import (
    FrameScores,
    RankedPairs,
    ScoreConfig,
    ScoreSums,
    by_score,
    image_scores,
    rank_pairs,
    top_pairs,
    unit_length,
)
from clipvis_jax.inference.tracker import FrameQueries
from clipvis_jax.io.files import NPZ_ERRORS, atomic_path
from clipvis_jax.masks.resize import MaskResizer, encode_rle, pack_mask_logits, unpack_mask_logits
from clipvis_jax.masks.rle import MAX_SIDE

_COLUMNS = ("object_logits", "iou", "query_embed", "visual_embed", "mask_area", "mask_prob_sum")


@dataclasses.dataclass(frozen=True, eq=False)
class RawVideo:
    """All that follows from the network alone, for every frame in its own query order.

    ``mask_area`` and ``mask_prob_sum`` measure masks where the model does: at stride 4, of images at the original size.
    ``masks`` are the packed mask logits of all frames one after another, ``mask_ends`` where each ends.
    ``mask_sizes`` are the rows of a `MaskResizer`: stride-4, padded, valid and original size.
    """

    object_logits: Float[np.ndarray, "t q 2"]
    iou: Float[np.ndarray, "t q"]
    query_embed: Float[np.ndarray, "t q d"]
    visual_embed: Float[np.ndarray, "t q e"]
    mask_area: Float[np.ndarray, "t q"]
    mask_prob_sum: Float[np.ndarray, "t q"]
    masks: UInt8[np.ndarray, " bytes"]
    mask_ends: Int[np.ndarray, "t q"]
    mask_sizes: Int[np.ndarray, "4 2"]
    is_image: bool = False

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.iou)


class RawRecorder:
    """Gathers the predictions of a video or image frame by frame: some 1 MB of memory each for a full-size model."""

    def __init__(self, *, is_image: bool = False) -> None:
        self._is_image = is_image
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self._packed: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, frame: FrameQueries, resizer: MaskResizer) -> None:
        """Take the next frame, as ``Segmenter.run_network`` gives it."""
        columns = {name: np.array(getattr(frame, name)) for name in _COLUMNS}
        if self._is_image:
            regions = [resizer.positive_region(mask)[2] for mask in frame.mask_logits]
            positive = [region[region > 0].astype(np.float64) for region in regions]
            columns["mask_area"] = np.array([values.size for values in positive], np.float64)
            columns["mask_prob_sum"] = np.array([np.sum(expit(values)) for values in positive])
        for name, array in columns.items():
            self._columns[name].append(array)
        self._packed += pack_mask_logits(frame.mask_logits)
        self._sizes = [resizer.logits_size, resizer.padded_size, resizer.valid_size, resizer.original_size]

    def video(self) -> RawVideo:
        """Return all frames.

        Raises:
            InputError: There is no frame.
        """
        if not self._sizes:
            raise InputError("the video has no frame; nothing to segment")
        return RawVideo(
            **{name: np.stack(arrays) for name, arrays in self._columns.items()},
            masks=np.frombuffer(b"".join(self._packed), np.uint8),
            mask_ends=np.cumsum([len(mask) for mask in self._packed]).reshape(len(self._columns["iou"]), -1),
            mask_sizes=np.array(self._sizes, np.int64),
            is_image=self._is_image,
        )


def save_video(path: Path, video: RawVideo, facts: Mapping[str, Any] | None = None) -> None:
    """Write a video's predictions, and what else is to be known of it, which JSON can hold.

    Raises:
        InputError: The file cannot be written.
    """
    arrays = {field.name: getattr(video, field.name) for field in dataclasses.fields(video)}
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays, facts=np.array(json.dumps(facts or {})))


def load_video(path: Path) -> tuple[RawVideo, dict[str, Any]]:
    """Read a video's predictions and the facts that were saved with it.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = {field.name: arrays[field.name] for field in dataclasses.fields(RawVideo)}
            _check(fields)
            facts = json.loads(arrays["facts"].item())
            if not isinstance(facts, dict):
                raise ValueError("facts are no object")
            return RawVideo(**fields | {"is_image": bool(fields["is_image"])}), facts
    except NPZ_ERRORS as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run the command that wrote it again") from error


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Make sure that the arrays of a file fit together.

    Raises:
        ValueError, zlib.error: They do not.
    """
    frames_queries = arrays["iou"].shape
    for name in (*_COLUMNS, "mask_ends"):
        array, ndim = arrays[name], 3 if name in ("object_logits", "query_embed", "visual_embed") else 2
        kind = "i" if name == "mask_ends" else "f"
        if array.shape[:2] != frames_queries or array.ndim != ndim or array.size == 0 or array.dtype.kind != kind:
            raise ValueError(f"{name} has type {array.dtype} and shape {array.shape}")
    masks, ends, sizes = arrays["masks"], arrays["mask_ends"].ravel(), arrays["mask_sizes"]
    if masks.dtype != np.uint8 or (np.diff(ends, prepend=0) <= 0).any() or masks.shape != (ends[-1],):
        raise ValueError("mask_ends do not rise to the length of masks")
    if (
        sizes.shape != (4, 2)
        or sizes.dtype.kind != "i"
        or sizes.min() < 1
        or sizes.max() > MAX_SIDE
        or (sizes[2] > sizes[1]).any()
    ):
        raise ValueError("mask_sizes are no sizes")
    unpack_mask_logits(masks[: ends[0]].tobytes(), tuple(sizes[0].tolist()))  # whether masks are of these sizes


class VideoReplay:
    """A raw video or image under one vocabulary, to be associated and scored in different ways.

    A query's mask at the original size is drawn once, however many settings use it.
    """

    def __init__(self, video: RawVideo, class_probs: Float[np.ndarray, "t q c"]) -> None:
        self._video, self._class_probs = video, class_probs
        self._resizer = MaskResizer(*(tuple(size) for size in video.mask_sizes.tolist()))
        self._drawn: dict[tuple[int, int], str] = {}
        self._empty = encode_rle(np.zeros(self._resizer.original_size, bool))["counts"]

    def run(
        self,
        association: AssociationConfig,
        scores: ScoreConfig,
        class_names: Sequence[str],
        *,
        background: Sequence[str] = (),
        top_k: int,
        min_score: float = 0.0,
    ) -> VideoResult:
        """Associate and score the video; the result is that of ``Segmenter.predict`` with these settings."""
        if self._video.is_image:
            orders = [np.arange(self._class_probs.shape[1])]
            pairs = self._rank_image(scores, top_k, min_score)
            embeddings = unit_length(self._video.visual_embed[0])
        else:
            orders, sums = self._associate(association, scores)
            columns = (self._video.object_logits, self._video.mask_area, self._video.mask_prob_sum, self._class_probs)
            frames = (FrameScores(*(column[frame][order] for column in columns)) for frame, order in enumerate(orders))
            pairs = rank_pairs(sums, frames, top_k=top_k, min_score=min_score)
            embeddings = sums.embeddings()
        tracks = []
        ranked = zip(pairs.tracks.tolist(), pairs.class_indices.tolist(), pairs.scores.tolist(), strict=True)
        for pair, (track, class_index, score) in enumerate(ranked):
            counts = [
                self._empty if pruned else self._mask(frame, int(orders[frame][track]))
                for frame, pruned in enumerate(pairs.pruned[:, pair].tolist())
            ]
            masks = TrackMasks(self._resizer.original_size, counts)
            tracks.append(Track(track, class_index, class_names[class_index], score, masks, embeddings[track]))
        size = self._resizer.original_size
        return VideoResult(tracks, tuple(class_names), *size, self._video.num_frames, tuple(background))

    def _associate(
        self, association: AssociationConfig, scores: ScoreConfig
    ) -> tuple[list[Int[np.ndarray, " q"]], ScoreSums]:
        """Return the query of every track by frame, and what the tracks' scores follow from."""
        video = self._video
        num_queries, num_classes = self._class_probs.shape[1:]
        sums = ScoreSums.zeros(num_queries, num_classes, video.visual_embed.shape[2], scores)
        orders: list[Int[np.ndarray, " q"]] = []
        history: History = ()
        for frame in range(video.num_frames):
            order, history = associate(video.query_embed[frame], history, association)
            orders.append(order)
            scored = (self._class_probs, video.iou, video.object_logits, video.visual_embed)
            sums = sums.add(*(column[frame][order] for column in scored))
        return orders, sums

    def _rank_image(self, config: ScoreConfig, top_k: int, min_score: float) -> RankedPairs:
        video = self._video
        all_scores = image_scores(self._class_probs[0], video.iou[0], video.object_logits[0], config)
        tracks, class_indices, scores = top_pairs(all_scores, top_k)
        scores = scores * (video.mask_prob_sum[0] / (video.mask_area[0] + 1e-6))[tracks]
        best = by_score(scores, min_score)
        return RankedPairs(tracks[best], class_indices[best], scores[best], np.zeros((1, len(best)), bool))

    def _mask(self, frame: int, query: int) -> str:
        key = frame, query
        if key not in self._drawn:
            number = frame * self._video.mask_ends.shape[1] + query
            ends = self._video.mask_ends.ravel()
            start = int(ends[number - 1]) if number else 0
            packed = self._video.masks[start : int(ends[number])].tobytes()
            logits = unpack_mask_logits(packed, self._resizer.logits_size)
            self._drawn[key] = encode_rle(self._resizer.mask(logits))["counts"]
        return self._drawn[key]
