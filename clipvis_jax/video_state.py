"""What is known of a video while its frames come in, and what follows from it: tracks so far, tracks at the end.

Offline and streaming use share this core; it runs on the host and knows nothing of the network.
"""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from clipvis_jax.association import AssociationConfig, Memory, associate
from clipvis_jax.errors import InputError
from clipvis_jax.frame_store import FrameStore, TrackedFrame
from clipvis_jax.masks import MaskResizer, Rle, encode_rle
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.results import LiveTrack, Track, VideoResult
from clipvis_jax.scores import RunningScores, ScoreConfig, image_scores, mask_quality, pruned_frames, top_pairs
from clipvis_jax.structs import FramePredictions


class VideoState:
    """A video between its first and its last frame. Made by ``Segmenter.start``.

    Memory stays flat: past frames are summed up, or kept compressed in a file that goes with ``close`` or the end of
    a ``with`` block.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        classifier: TextClassifier,
        num_tracks: int,
        *,
        association: AssociationConfig,
        scores: ScoreConfig,
        temp_dir: Path | None = None,
    ) -> None:
        self.class_names = class_names
        self.classifier = classifier
        self.scores = RunningScores(num_tracks, len(class_names), scores)
        self._resizer: MaskResizer | None = None
        self._store = FrameStore(num_tracks, len(class_names), temp_dir)
        self._num_sized = 0
        self._association = association
        self._memory: Memory = ()
        self._mask_sums = np.zeros((2, num_tracks))

    def close(self) -> None:
        """Delete what is kept of past frames on disk."""
        self._store.close()

    def __enter__(self) -> "VideoState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return len(self._store)

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
        self._store.append(frame)
        return frame

    def live_tracks(self, frame: TrackedFrame, *, top_k: int, min_score: float) -> list[LiveTrack]:
        """Return all tracks as they stand, best first, with their masks in the newest frame.

        Scores are the final ones as if the video ended here, except that no frame is dropped from the masks' quality.
        """
        tracks, class_indices, scores = top_pairs(self.scores.scores(), top_k)
        prob_sum, area = self._mask_sums
        scores = scores * (prob_sum / (area + 1e-6))[tracks]
        ranked = _ranked(scores, min_score)
        masks = {track: self.resizer.mask(frame.mask_logits[track]) for track in np.unique(tracks[ranked])}
        return [
            LiveTrack(
                track_id=int(tracks[i]),
                class_index=int(class_indices[i]),
                class_name=self.class_names[class_indices[i]],
                score=float(scores[i]),
                mask=masks[tracks[i]],
            )
            for i in ranked
        ]

    def finish(self, *, top_k: int, min_score: float, show_progress: bool) -> VideoResult:
        """Compute the final scores, and the masks of the best tracks at the original size; closes the state.

        Raises:
            InputError: There was no frame.
        """
        resizer = self.resizer
        tracks, class_indices, scores = top_pairs(self.scores.scores(), top_k)
        shape = (self.num_frames, len(tracks))
        object_logits = np.empty((*shape, 2), np.float32)
        class_probs, area, prob_sum = (np.empty(shape, np.float32) for _ in range(3))
        for index in range(self.num_frames):
            class_probs[index] = self._store.class_probs(index)[tracks, class_indices]
            frame_logits, frame_area, frame_prob_sum = self._store.scores(index)
            object_logits[index] = frame_logits[tracks]
            area[index], prob_sum[index] = frame_area[tracks], frame_prob_sum[tracks]
        pruned = pruned_frames(class_probs, object_logits, scores)
        scores = scores * mask_quality(prob_sum, area, pruned)
        ranked = _ranked(scores, min_score)
        tracks, class_indices, scores = tracks[ranked], class_indices[ranked], scores[ranked]
        pruned = pruned[:, ranked]

        empty = encode_rle(np.zeros(resizer.original_size, bool))
        segmentations: list[list[Rle]] = [[] for _ in tracks]
        frames = range(self.num_frames)
        for index in tqdm(frames, desc="drawing masks", unit="frame", disable=not show_progress):
            wanted = np.unique(tracks[~pruned[index]])
            logits = self._store.mask_logits(index, wanted)
            masks = {track: encode_rle(resizer.mask(mask)) for track, mask in zip(wanted, logits, strict=True)}
            for pair, track in enumerate(tracks):
                segmentations[pair].append(empty if pruned[index, pair] else masks[track])
        self.close()
        return self._result(tracks, class_indices, scores, segmentations)

    def finish_image(self, frame: TrackedFrame, *, top_k: int, min_score: float) -> VideoResult:
        """Compute the image model's scores and masks of the only frame."""
        scores = image_scores(frame.class_probs, frame.iou, frame.object_logits, self.scores.config)
        tracks, class_indices, scores = top_pairs(scores, top_k)
        masks: dict[int, Rle] = {}
        quality: dict[int, float] = {}
        for track in np.unique(tracks):
            rows, columns, region = self.resizer.positive_region(frame.mask_logits[track])
            positive = region[region > 0].astype(np.float64)
            # Matches the authors' code: the image model measures quality at the original size.
            quality[track] = float(np.sum(1 / (1 + np.exp(-positive))) / (positive.size + 1e-6))
            mask = np.zeros(self.resizer.original_size, bool)
            mask[rows, columns] = region > 0
            masks[track] = encode_rle(mask)
        scores = scores * np.array([quality[track] for track in tracks])
        ranked = _ranked(scores, min_score)
        segmentations = [[masks[track]] for track in tracks[ranked]]
        return self._result(tracks[ranked], class_indices[ranked], scores[ranked], segmentations)

    def _result(
        self,
        tracks: Int[np.ndarray, " k"],
        class_indices: Int[np.ndarray, " k"],
        scores: Float[np.ndarray, " k"],
        segmentations: list[list[Rle]],
    ) -> VideoResult:
        height, width = self.resizer.original_size
        columns = (tracks.tolist(), class_indices.tolist(), scores.tolist(), segmentations)
        named = [
            Track(track, index, self.class_names[index], score, masks)
            for track, index, score, masks in zip(*columns, strict=True)
        ]
        return VideoResult(named, self.class_names, height, width, self.num_frames)


def _ranked(scores: Float[np.ndarray, " k"], min_score: float) -> Int[np.ndarray, " k2"]:
    """Return the positions of all scores that are high enough, best first."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= min_score]
