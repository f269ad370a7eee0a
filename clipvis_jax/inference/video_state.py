"""A video while its frames come in: its tracks so far, and its tracks at the end.

Offline and streaming use share this; it runs on the host and is given the network's predictions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.inference.frame_store import FrameStore
from clipvis_jax.inference.results import LiveTrack, Track, TrackMasks, VideoResult
from clipvis_jax.inference.scores import by_score, image_scores, pruned_frames, rank_pairs, top_pairs, unit_length
from clipvis_jax.inference.tracker import FrameQueries, TrackerState, update
from clipvis_jax.masks.resize import MaskResizer, encode_rle
from clipvis_jax.models.text_classifier import TextClassifier


@dataclasses.dataclass(frozen=True, eq=False)
class VideoState:
    """A video after some of its frames: a value, of which every frame makes a new one. Made by ``Segmenter.start``.

    Memory stays flat: past frames are summed up in ``tracker``. All states of a video share one ``store``, which goes
    with ``close`` or the end of a ``with`` block.

    Attributes:
        class_names: The vocabulary.
        classifier: The vocabulary, encoded.
        tracker: The tracks so far.
        store: Past frames, compressed, on disk; None where none are kept, so that there is no final result.
        sizes: The sizes of all frames; None before the first.
        background: Names behind the vocabulary in ``classifier``, which are left out of results.
        asked_background: What ``Segmenter.start`` was asked for: "auto", or names.
    """

    class_names: tuple[str, ...]
    classifier: TextClassifier
    tracker: TrackerState
    store: FrameStore | None = None
    sizes: MaskResizer | None = None
    background: tuple[str, ...] = ()
    asked_background: Sequence[str] = ()

    def close(self) -> None:
        """Delete what is kept of past frames on disk."""
        if self.store is not None:
            self.store.close()

    def __enter__(self) -> "VideoState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return self.tracker.sums.num_frames

    def advance(self, predictions: FrameQueries, sizes: MaskResizer) -> tuple["VideoState", FrameQueries]:
        """Take the next frame's predictions, as ``Segmenter.run_network`` gives them.

        Returns:
            The state with this frame, and the predictions in track order.
        """
        tracker, tracked = update(self.tracker, predictions)
        if self.store is not None:
            self.store.append(self.num_frames, tracked)
        return dataclasses.replace(self, tracker=tracker, sizes=sizes), tracked

    def live_tracks(self, tracked: FrameQueries, *, top_k: int, min_score: float) -> list[LiveTrack]:
        """Return all tracks as they stand, best first, with their masks in the newest frame.

        Scores are the final ones as if the video ended here, except that no frame is dropped from the masks' quality.
        A mask is empty where the method would drop it.
        """
        resizer = self.known_sizes()
        tracks, class_indices, scores = top_pairs(self.tracker.sums.scores(), top_k)
        pruned = pruned_frames(tracked.class_probs[tracks, class_indices], tracked.object_logits[tracks], scores)
        scores = scores * (self.tracker.mask_prob_sum / (self.tracker.mask_area + 1e-6))[tracks]
        ranked = by_score(scores, min_score)
        visible = ranked[~pruned[ranked]]
        masks = {track: resizer.mask(tracked.mask_logits[track]) for track in np.unique(tracks[visible])}
        empty = np.zeros(resizer.original_size, bool)
        embeddings = self.tracker.sums.embeddings()
        return [
            LiveTrack(
                track_id=int(tracks[i]),
                class_index=int(class_indices[i]),
                class_name=self.class_names[class_indices[i]],
                score=float(scores[i]),
                mask=empty if pruned[i] else masks[tracks[i]],
                embedding=embeddings[tracks[i]],
            )
            for i in ranked
        ]

    def final_result(self, *, top_k: int, min_score: float, show_progress: bool = False) -> VideoResult:
        """Compute the final scores, and the masks of the best tracks at the original size; closes the state.

        Raises:
            InputError: There was no frame.
            RuntimeError: The state is closed, or keeps no frames.
        """
        resizer = self.known_sizes()
        store = self.store
        if store is None or store.closed:
            raise RuntimeError("the state is closed or was started without keep_frames; there is no final result")
        frames = range(self.num_frames)
        pairs = rank_pairs(self.tracker.sums, map(store.scores, frames), top_k=top_k, min_score=min_score)
        tracks = pairs.tracks
        empty = _run_lengths(np.zeros(resizer.original_size, bool))
        rows = []
        for index in tqdm(frames, desc="drawing masks", unit="frame", disable=not show_progress):
            kept = ~pairs.pruned[index]
            wanted = np.unique(tracks[kept])
            logits = store.mask_logits(index, wanted)
            drawn = {
                track: _run_lengths(resizer.mask(mask)) for track, mask in zip(wanted.tolist(), logits, strict=True)
            }
            rows.append(
                [drawn[track] if keep else empty for track, keep in zip(tracks.tolist(), kept.tolist(), strict=True)]
            )
        self.close()
        masks = [TrackMasks(resizer.original_size, counts) for counts in zip(*rows, strict=True)]
        return self._result(tracks, pairs.class_indices, pairs.scores, masks, self.tracker.sums.embeddings())

    def image_result(self, tracked: FrameQueries, *, top_k: int, min_score: float) -> VideoResult:
        """Compute the image model's scores and masks of the only frame."""
        resizer = self.known_sizes()
        scores = image_scores(tracked.class_probs, tracked.iou, tracked.object_logits, self.tracker.sums.config)
        tracks, class_indices, scores = top_pairs(scores, top_k)
        quality = np.empty(len(tracks))
        drawn = {}
        for track in np.unique(tracks).tolist():
            rows, columns, region = resizer.positive_region(tracked.mask_logits[track])
            positive = region[region > 0].astype(np.float64)
            # Matches the authors' code: the image model measures quality at the original size.
            quality[tracks == track] = np.sum(expit(positive)) / (positive.size + 1e-6)
            mask = np.zeros(resizer.original_size, bool, order="F")
            mask[rows, columns] = region > 0
            drawn[track] = TrackMasks(resizer.original_size, [_run_lengths(mask)])
        scores = scores * quality
        ranked = by_score(scores, min_score)
        tracks = tracks[ranked]
        masks = [drawn[track] for track in tracks.tolist()]
        return self._result(tracks, class_indices[ranked], scores[ranked], masks, unit_length(tracked.visual_embed))

    def known_sizes(self) -> MaskResizer:
        """Return the sizes of all frames.

        Raises:
            InputError: There was no frame.
        """
        if self.sizes is None:
            raise InputError("the video has no frame; nothing to segment")
        return self.sizes

    def _result(
        self,
        tracks: Int[np.ndarray, " k"],
        class_indices: Int[np.ndarray, " k"],
        scores: Float[np.ndarray, " k"],
        masks: list[TrackMasks],
        embeddings: Float[np.ndarray, "q e"],
    ) -> VideoResult:
        height, width = self.known_sizes().original_size
        columns = (tracks.tolist(), class_indices.tolist(), scores.tolist(), masks)
        named = [
            Track(track, index, self.class_names[index], score, segmentations, embeddings[track])
            for track, index, score, segmentations in zip(*columns, strict=True)
        ]
        return VideoResult(named, self.class_names, height, width, self.num_frames, self.background)


def _run_lengths(mask: Bool[np.ndarray, "h w"]) -> str:
    return encode_rle(mask)["counts"]
