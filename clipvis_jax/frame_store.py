"""What the end of a video needs of its past frames, kept on disk so that memory stays flat."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clipvis_jax.files import output_error
from clipvis_jax.masks import pack_mask_logits, unpack_mask_logits


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
    """An append-only file of frames, which the system deletes when it is closed or the process ends.

    A record holds the scores (objectness logits, mask area and probability sum per track), the class probabilities,
    the length of every packed mask, and the packed masks.
    """

    def __init__(self, num_tracks: int, num_classes: int, directory: Path | None = None) -> None:
        """Create the file in ``directory`` (default: the system's folder for temporary files).

        Raises:
            InputError: The file cannot be created.
        """
        self._directory = directory or Path(tempfile.gettempdir())
        self._num_tracks, self._num_classes = num_tracks, num_classes
        self._starts: list[int] = []
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._directory, prefix="clipvis-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise output_error(self._directory, error) from error

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._starts)

    def append(self, frame: TrackedFrame) -> None:
        """Add a frame.

        Raises:
            InputError: No space is left.
        """
        self._mask_size = frame.mask_logits.shape[1:]
        packed = pack_mask_logits(frame.mask_logits)
        scores = np.column_stack([frame.object_logits, frame.mask_area, frame.mask_prob_sum])
        lengths = np.array([len(mask) for mask in packed])
        parts = [scores.astype("<f4").tobytes(), frame.class_probs.astype("<f4").tobytes()]
        record = b"".join([*parts, lengths.astype("<i8").tobytes(), *packed])
        try:
            self._file.seek(self._end)
            # An unbuffered file may write less than it is given.
            view = memoryview(record)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise output_error(self._directory, error) from error
        self._starts.append(self._end)
        self._end += len(record)

    def scores(self, frame: int) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Read a frame's objectness logits, mask areas and mask probability sums."""
        table = self._read(self._starts[frame], "<f4", self._num_tracks * 4).reshape(-1, 4)
        return table[:, :2], table[:, 2], table[:, 3]

    def class_probs(self, frame: int) -> Float[np.ndarray, "q c"]:
        """Read a frame's class probabilities."""
        start = self._starts[frame] + 4 * 4 * self._num_tracks
        return self._read(start, "<f4", self._num_tracks * self._num_classes).reshape(self._num_tracks, -1)

    def mask_logits(self, frame: int, tracks: Int[np.ndarray, " k"]) -> list[Float[np.ndarray, "h4 w4"]]:
        """Read some tracks' mask logits in a frame; where only the sign matters they are 1 or -1."""
        start = self._starts[frame] + 4 * self._num_tracks * (4 + self._num_classes)
        ends = np.cumsum(self._read(start, "<i8", self._num_tracks))
        start += 8 * self._num_tracks
        masks = []
        for track in tracks:
            begin = ends[track - 1] if track > 0 else 0
            packed = self._read(int(start + begin), "u1", int(ends[track] - begin)).tobytes()
            masks.append(unpack_mask_logits(packed, self._mask_size))
        return masks

    def _read(self, start: int, dtype: str, count: int) -> np.ndarray:
        self._file.seek(start)
        return np.fromfile(self._file, dtype, count)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
