"""What is known of a video while its frames come in, and what follows from it: tracks so far, tracks at the end.

Offline and streaming use share this core; it runs on the host and is given the network's predictions.
"""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig, Memory, associate
from clipvis_jax.inference.frame_store import FrameStore, TrackedFrame
from clipvis_jax.inference.results import LiveTrack, StoredMasks, Track, VideoResult
from clipvis_jax.inference.scores import (
    RunningScores,
    ScoreConfig,
    by_score,
    image_scores,
    pruned_frames,
    rank_pairs,
    top_pairs,
)
from clipvis_jax.io.temp_file import TempFile
from clipvis_jax.masks.resize import MaskResizer, encode_rle
from clipvis_jax.models.structs import FramePredictions
from clipvis_jax.models.text_classifier import TextClassifier


class VideoState:
    """A video between its first and its last frame. Made by ``Segmenter.start``.

    Memory stays flat: past frames are summed up, and kept compressed in a temporary file that goes with ``close`` or
    the end of a ``with`` block. Without ``keep_frames`` nothing is kept, and there is no final result.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        classifier: TextClassifier,
        num_tracks: int,
        *,
        association: AssociationConfig,
        scores: ScoreConfig,
        keep_frames: bool = True,
        temp_dir: Path | None = None,
    ) -> None:
        self.class_names = class_names
        self.classifier = classifier
        self.scores = RunningScores(num_tracks, len(class_names), scores)
        self._resizer: MaskResizer | None = None
        self._temp_dir = temp_dir
        self._store = FrameStore(num_tracks, len(class_names), temp_dir) if keep_frames else None
        self._num_sized = 0
        self._association = association
        self._memory: Memory = ()
        self._mask_sums = np.zeros((2, num_tracks))

    def close(self) -> None:
        """Delete what is kept of past frames on disk."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> "VideoState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return self.scores.num_frames

    @property
    def resizer(self) -> MaskResizer:
        """The sizes of this video; known from its first frame on."""
        if self._resizer is None:
            raise InputError("the video has no frame; nothing to segment")
        return self._resizer

    def set_sizes(self, resizer: MaskResizer) -> None:
        """Note the sizes of the first frame, or check that a later one has the same.

        Raises:
            InputError: The frame has another size than the frames before it.
        """
        self._num_sized += 1
        if self._resizer is None:
            self._resizer = resizer
        elif resizer.original_size != self._resizer.original_size:
            (height, width), (old_height, old_width) = resizer.original_size, self._resizer.original_size
            raise InputError(
                f"frame {self._num_sized - 1} is {width}x{height} pixels, the frames before it are "
                f"{old_width}x{old_height}; all must have one size"
            )

    def add(self, predictions: FramePredictions, index: int) -> TrackedFrame:
        """Associate, score and keep one frame of a window of predictions on the host.

        Returns:
            The frame's predictions in track order.
        """
        raw = jax.tree.map(lambda array: np.asarray(array[index]), predictions)
        if not np.isfinite(raw.query_embed).all():
            raise InputError(
                f"frame {self.num_frames}: the network gave numbers that are not finite; check the model's weights"
            )
        order, self._memory = associate(raw.query_embed, self._memory, self._association)
        frame = TrackedFrame(
            object_logits=raw.object_logits[order],
            iou=raw.iou[order],
            class_probs=raw.class_probs[order, : len(self.class_names)],
            mask_logits=raw.mask_logits[order],
            mask_area=raw.mask_area[order],
            mask_prob_sum=raw.mask_prob_sum[order],
        )
        self.scores.add(frame.class_probs, frame.iou, frame.object_logits)
        self._mask_sums += np.stack([frame.mask_prob_sum, frame.mask_area])
        if self._store is not None:
            self._store.append(frame)
        return frame

    def live_tracks(self, frame: TrackedFrame, *, top_k: int, min_score: float) -> list[LiveTrack]:
        """Return all tracks as they stand, best first, with their masks in the newest frame.

        Scores are the final ones as if the video ended here, except that no frame is dropped from the masks' quality.
        A mask is empty where the method would drop it.
        """
        tracks, class_indices, scores = top_pairs(self.scores.scores(), top_k)
        pruned = pruned_frames(frame.class_probs[tracks, class_indices], frame.object_logits[tracks], scores)
        prob_sum, area = self._mask_sums
        scores = scores * (prob_sum / (area + 1e-6))[tracks]
        ranked = by_score(scores, min_score)
        visible = ranked[~pruned[ranked]]
        masks = {track: self.resizer.mask(frame.mask_logits[track]) for track in np.unique(tracks[visible])}
        empty = np.zeros(self.resizer.original_size, bool)
        return [
            LiveTrack(
                track_id=int(tracks[i]),
                class_index=int(class_indices[i]),
                class_name=self.class_names[class_indices[i]],
                score=float(scores[i]),
                mask=empty if pruned[i] else masks[tracks[i]],
            )
            for i in ranked
        ]

    def finish(self, *, top_k: int, min_score: float, show_progress: bool) -> VideoResult:
        """Compute the final scores, and the masks of the best tracks at the original size; closes the state.

        Raises:
            InputError: There was no frame.
            RuntimeError: The state is closed, or keeps no frames.
        """
        resizer = self.resizer
        store = self._store
        if store is None:
            raise RuntimeError("the state is closed or was started without keep_frames; there is no final result")
        pairs = rank_pairs(self.scores, store, top_k=top_k, min_score=min_score)
        tracks, pruned = pairs.tracks, pairs.pruned
        masks = _MaskWriter(self._temp_dir, resizer.original_size, (self.num_frames, len(tracks)))
        frames = range(self.num_frames)
        for index in tqdm(frames, desc="drawing masks", unit="frame", disable=not show_progress):
            wanted = np.unique(tracks[~pruned[index]])
            for track, logits in zip(wanted, store.mask_logits(index, wanted), strict=True):
                masks.write(index, (tracks == track) & ~pruned[index], resizer.mask(logits))
        self.close()
        return self._result(tracks, pairs.class_indices, pairs.scores, masks)

    def finish_image(self, frame: TrackedFrame, *, top_k: int, min_score: float) -> VideoResult:
        """Compute the image model's scores and masks of the only frame."""
        scores = image_scores(frame.class_probs, frame.iou, frame.object_logits, self.scores.config)
        tracks, class_indices, scores = top_pairs(scores, top_k)
        masks = _MaskWriter(self._temp_dir, self.resizer.original_size, (1, len(tracks)))
        quality = np.empty(len(tracks))
        for track in np.unique(tracks):
            rows, columns, region = self.resizer.positive_region(frame.mask_logits[track])
            positive = region[region > 0].astype(np.float64)
            # Matches the authors' code: the image model measures quality at the original size.
            quality[tracks == track] = np.sum(expit(positive)) / (positive.size + 1e-6)
            mask = np.zeros(self.resizer.original_size, bool, order="F")
            mask[rows, columns] = region > 0
            masks.write(0, tracks == track, mask)
        scores = scores * quality
        ranked = by_score(scores, min_score)
        return self._result(tracks[ranked], class_indices[ranked], scores[ranked], masks.select(ranked))

    def _result(
        self,
        tracks: Int[np.ndarray, " k"],
        class_indices: Int[np.ndarray, " k"],
        scores: Float[np.ndarray, " k"],
        masks: "_MaskWriter",
    ) -> VideoResult:
        height, width = self.resizer.original_size
        columns = (tracks.tolist(), class_indices.tolist(), scores.tolist(), masks.finish())
        named = [
            Track(track, index, self.class_names[index], score, segmentations)
            for track, index, score, segmentations in zip(*columns, strict=True)
        ]
        return VideoResult(named, self.class_names, height, width, self.num_frames)


class _MaskWriter:
    """Puts the masks of (track, class) pairs into a temporary file, frame by frame; a mask not written is empty."""

    def __init__(self, directory: Path | None, size: tuple[int, int], shape: tuple[int, int]) -> None:
        """Prepare for ``shape`` = (frames, pairs) masks of ``size`` = (height, width)."""
        self._size = size
        self._file = TempFile(directory)
        self._starts = np.zeros(shape, np.int64)
        self._lengths = np.zeros(shape, np.int32)
        self.write(slice(None), slice(None), np.zeros(size, bool))

    def write(self, frames: int | slice, pairs: slice | Bool[np.ndarray, " k"], mask: Bool[np.ndarray, "h w"]) -> None:
        """Write one mask, which several pairs may share."""
        counts = encode_rle(mask)["counts"].encode("ascii")
        self._starts[frames, pairs] = self._file.append(counts)
        self._lengths[frames, pairs] = len(counts)

    def select(self, pairs: Int[np.ndarray, " k2"]) -> "_MaskWriter":
        """Keep some pairs, in the order given."""
        self._starts, self._lengths = self._starts[:, pairs], self._lengths[:, pairs]
        return self

    def finish(self) -> list[StoredMasks]:
        """Return the masks of every pair."""
        return [
            StoredMasks(self._file, self._size, starts, lengths)
            for starts, lengths in zip(self._starts.T.copy(), self._lengths.T.copy(), strict=True)
        ]
