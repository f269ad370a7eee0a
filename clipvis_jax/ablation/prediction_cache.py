"""Per-frame predictions of a data set on disk, and videos replayed from them without running the network."""

import dataclasses
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import expit

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig, History, associate
from clipvis_jax.inference.scores import (
    FrameScores,
    RankedPairs,
    ScoreConfig,
    ScoreSums,
    by_score,
    image_scores,
    rank_pairs,
    top_pairs,
)
from clipvis_jax.inference.tracker import FrameQueries
from clipvis_jax.io.files import atomic_path
from clipvis_jax.masks.resize import MaskResizer, Rle, encode_rle, pack_mask_logits, unpack_mask_logits


@dataclasses.dataclass(frozen=True)
class CachedVideo:
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

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.iou)


def collect_video(frames: Iterable[tuple[FrameQueries, MaskResizer]], *, is_image: bool = False) -> CachedVideo:
    """Gather the predictions of a video, as ``Segmenter.run_network`` gives them.

    Raises:
        InputError: There is no frame.
    """
    fields = ("object_logits", "iou", "query_embed", "visual_embed", "mask_area", "mask_prob_sum")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in fields}
    packed: list[bytes] = []
    sizes = []
    for frame, resizer in frames:
        for name in fields:
            columns[name].append(np.array(getattr(frame, name)))
        packed += pack_mask_logits(frame.mask_logits)
        if is_image:
            regions = [resizer.positive_region(mask)[2] for mask in frame.mask_logits]
            positive = [region[region > 0].astype(np.float64) for region in regions]
            columns["mask_area"][-1] = np.array([values.size for values in positive], np.float64)
            columns["mask_prob_sum"][-1] = np.array([np.sum(expit(values)) for values in positive])
        sizes = [resizer.logits_size, resizer.padded_size, resizer.valid_size, resizer.original_size]
    if not sizes:
        raise InputError("the video has no frame; nothing to segment")
    num_frames = len(columns["iou"])
    return CachedVideo(
        **{name: np.stack(arrays) for name, arrays in columns.items()},
        masks=np.frombuffer(b"".join(packed), np.uint8),
        mask_ends=np.cumsum([len(mask) for mask in packed]).reshape(num_frames, -1),
        mask_sizes=np.array(sizes, np.int64),
    )


def save_video(path: Path, video: CachedVideo) -> None:
    """Write a video's predictions.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        np.savez(temporary, **dataclasses.asdict(video))


def load_video(path: Path) -> CachedVideo:
    """Read a video's predictions.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return CachedVideo(**{field.name: arrays[field.name] for field in dataclasses.fields(CachedVideo)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run the same command again") from error


class VideoReplay:
    """A cached video or image under one vocabulary, to be associated and scored in different ways.

    A query's mask at the original size is drawn once, however many settings use it.
    """

    def __init__(self, video: CachedVideo, class_probs: Float[np.ndarray, "t q c"], *, is_image: bool = False) -> None:
        self._video, self._class_probs, self._is_image = video, class_probs, is_image
        self._resizer = MaskResizer(*(tuple(size) for size in video.mask_sizes.tolist()))
        self._drawn: dict[tuple[int, int], Rle] = {}
        self._empty = encode_rle(np.zeros(self._resizer.original_size, bool))

    def run(
        self, association: AssociationConfig, scores: ScoreConfig, *, top_k: int, video_id: int, category_ids: list[int]
    ) -> list[dict[str, Any]]:
        """Associate and score the video; the results are those of ``Segmenter.predict`` with these settings.

        Returns:
            Results in YouTube-VIS format, best first.
        """
        if self._is_image:
            orders, pairs = [np.arange(self._class_probs.shape[1])], self._rank_image(scores, top_k)
        else:
            orders, pairs = self._rank_video(association, scores, top_k)
        return [
            {
                "video_id": video_id,
                "category_id": category_ids[class_index],
                "score": score,
                "segmentations": [
                    self._empty if pairs.pruned[frame, pair] else self._mask(frame, int(orders[frame][track]))
                    for frame in range(self._video.num_frames)
                ],
            }
            for pair, (track, class_index, score) in enumerate(
                zip(pairs.tracks.tolist(), pairs.class_indices.tolist(), pairs.scores.tolist(), strict=True)
            )
        ]

    def _rank_video(
        self, association: AssociationConfig, scores: ScoreConfig, top_k: int
    ) -> tuple[list[Int[np.ndarray, " q"]], RankedPairs]:
        """Return the query of every track by frame, and the best pairs."""
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
        columns = (video.object_logits, video.mask_area, video.mask_prob_sum, self._class_probs)
        tracked = (FrameScores(*(column[frame][order] for column in columns)) for frame, order in enumerate(orders))
        return orders, rank_pairs(sums, tracked, top_k=top_k, min_score=0.0)

    def _rank_image(self, config: ScoreConfig, top_k: int) -> RankedPairs:
        video = self._video
        all_scores = image_scores(self._class_probs[0], video.iou[0], video.object_logits[0], config)
        tracks, class_indices, scores = top_pairs(all_scores, top_k)
        scores = scores * (video.mask_prob_sum[0] / (video.mask_area[0] + 1e-6))[tracks]
        best = by_score(scores, 0.0)
        return RankedPairs(tracks[best], class_indices[best], scores[best], np.zeros((1, len(best)), bool))

    def _mask(self, frame: int, query: int) -> Rle:
        key = frame, query
        if key not in self._drawn:
            number = frame * self._video.mask_ends.shape[1] + query
            ends = self._video.mask_ends.ravel()
            start = int(ends[number - 1]) if number else 0
            packed = self._video.masks[start : int(ends[number])].tobytes()
            logits = unpack_mask_logits(packed, self._resizer.logits_size)
            self._drawn[key] = encode_rle(self._resizer.mask(logits))
        return self._drawn[key]
