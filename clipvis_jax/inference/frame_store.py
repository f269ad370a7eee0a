"""What the end of a video needs of its past frames, kept on disk so that memory stays flat."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clipvis_jax.io.temp_file import TempFile
from clipvis_jax.masks.resize import pack_mask_logits, unpack_mask_logits


@dataclasses.dataclass(frozen=True)
class TrackedFrame:
    """A frame's predictions in track order (see ``structs.FramePredictions``), real classes only."""

    object_logits: Float[np.ndarray, "q 2"]
    iou: Float[np.ndarray, " q"]
    class_probs: Float[np.ndarray, "q c"]
    mask_logits: Float[np.ndarray, "q h4 w4"]
    mask_area: Float[np.ndarray, " q"]
    mask_prob_sum: Float[np.ndarray, " q"]


class FrameStore:
    """A temporary file of frames.

    A record holds the scores (objectness logits, mask area and probability sum per track), the class probabilities,
    where every packed mask ends, and the packed masks.
    """

    def __init__(self, num_tracks: int, num_classes: int, directory: Path | None = None) -> None:
        """Create the file; see ``TempFile``."""
        self._num_tracks, self._num_classes = num_tracks, num_classes
        self._file = TempFile(directory)
        self._starts: list[int] = []
        self._mask_size = (0, 0)

    def append(self, frame: TrackedFrame) -> None:
        """Add a frame.

        Raises:
            InputError: No space is left.
        """
        self._mask_size = frame.mask_logits.shape[1:]
        packed = pack_mask_logits(frame.mask_logits)
        scores = np.column_stack([frame.object_logits, frame.mask_area, frame.mask_prob_sum]).astype(np.float32)
        ends = np.cumsum([len(mask) for mask in packed])
        class_probs = frame.class_probs.astype(np.float32)
        parts = (scores.tobytes(), class_probs.tobytes(), ends.astype(np.int64).tobytes(), *packed)
        self._starts.append(self._file.append(b"".join(parts)))

    def scores(self, frame: int) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Read a frame's objectness logits, mask areas and mask probability sums."""
        table = self._array(self._starts[frame], np.float32, self._num_tracks * 4).reshape(-1, 4)
        return table[:, :2], table[:, 2], table[:, 3]

    def class_probs(self, frame: int) -> Float[np.ndarray, "q c"]:
        """Read a frame's class probabilities."""
        start = self._starts[frame] + 4 * 4 * self._num_tracks
        return self._array(start, np.float32, self._num_tracks * self._num_classes).reshape(self._num_tracks, -1)

    def mask_logits(self, frame: int, tracks: Int[np.ndarray, " k"]) -> list[Float[np.ndarray, "h4 w4"]]:
        """Read some tracks' mask logits in a frame; where only the sign matters they are 1 or -1."""
        start = self._starts[frame] + 4 * self._num_tracks * (4 + self._num_classes)
        ends = self._array(start, np.int64, self._num_tracks).tolist()
        begins = [0, *ends]
        start += 8 * self._num_tracks
        return [
            unpack_mask_logits(self._file.read(start + begins[track], ends[track] - begins[track]), self._mask_size)
            for track in tracks.tolist()
        ]

    def _array(self, start: int, dtype: type, count: int) -> Any:
        return np.frombuffer(self._file.read(start, np.dtype(dtype).itemsize * count), dtype)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
