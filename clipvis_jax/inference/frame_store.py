"""What the end of a video needs of its past frames, kept on disk so that memory stays flat."""

import os
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clipvis_jax.errors import InputError
from clipvis_jax.inference.scores import FrameScores
from clipvis_jax.inference.tracker import FrameQueries
from clipvis_jax.io.files import output_error
from clipvis_jax.masks.resize import pack_mask_logits, unpack_mask_logits

_MEASURED_FRAMES = 16
"""After so many, the space that a whole video will take is estimated."""
_MUCH_GIB = 5


class FrameStore:
    """A temporary file of frames without a name: the system deletes it with its last user, or with the process.

    A record holds a float32 table with a row per track (2 objectness logits, mask area, mask probability sum, class
    probabilities), where every packed mask ends (int64), and the packed masks.
    """

    def __init__(self, num_tracks: int, num_classes: int, directory: Path | None = None) -> None:
        """Create the file in ``directory`` (default: the system's folder for temporary files).

        Raises:
            InputError: The file cannot be created.
        """
        self._table_shape = (num_tracks, 4 + num_classes)
        self._directory = directory or Path(tempfile.gettempdir())
        self._starts: list[int] = []
        self._mask_size = (0, 0)
        self._num_expected = 0
        try:
            # Unbuffered: what could not be written must not be tried again when the file is closed.
            self._file = tempfile.TemporaryFile(dir=self._directory, prefix="clipvis-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise output_error(self._directory, error) from error
        weakref.finalize(self, self._file.close)  # a state that nobody closed is no fault

    @property
    def closed(self) -> bool:
        """Whether the file is gone."""
        return self._file.closed

    def expect(self, num_frames: int | None) -> None:
        """Tell how many frames there will be, so that a lack of space shows after some of them; None: unknown."""
        self._num_expected = num_frames or 0

    def check_next(self, number: int) -> None:
        """Make sure that the next frame has this number, counted from 0.

        Raises:
            RuntimeError: The file is closed, or has this frame already.
        """
        if self.closed:
            raise RuntimeError("the state is closed; start another")
        if number != len(self._starts):
            raise RuntimeError(
                f"frame {number} follows on an old state, whose video is at frame {len(self._starts)}; go on with the "
                "newest state, or start with keep_frames=False"
            )

    def append(self, number: int, frame: FrameQueries) -> None:
        """Add a frame in track order.

        Args:
            number: The frame's number.
            frame: Its predictions.

        Raises:
            InputError: No space is left.
            RuntimeError: See ``check_next``.
        """
        self.check_next(number)
        height, width = frame.mask_logits.shape[1:]
        self._mask_size = height, width
        packed = pack_mask_logits(frame.mask_logits)
        columns = [frame.object_logits, frame.mask_area, frame.mask_prob_sum, frame.class_probs]
        table = np.column_stack(columns).astype(np.float32)
        ends = np.cumsum([len(mask) for mask in packed], dtype=np.int64)
        record = memoryview(b"".join((table.tobytes(), ends.tobytes(), *packed)))
        try:
            start = self._file.seek(0, os.SEEK_END)
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            raise output_error(self._directory, error) from error
        self._starts.append(start)
        if len(self._starts) == _MEASURED_FRAMES < self._num_expected:
            self._check_space(self._file.tell() / _MEASURED_FRAMES)

    def _check_space(self, bytes_per_frame: float) -> None:
        needed = (self._num_expected - len(self._starts)) * bytes_per_frame / 2**30
        free = shutil.disk_usage(self._directory).free / 2**30
        where = f"{self._directory}: temporary files of {self._num_expected} frames"
        if needed > free:
            raise InputError(
                f"{where} will take some {needed:.1f} GiB, and {free:.1f} are free; free some space, or take fewer "
                "frames or classes"
            )
        if needed > _MUCH_GIB:
            warnings.warn(f"{where} will take some {needed:.0f} GiB; {free:.0f} are free", stacklevel=2)

    def scores(self, frame: int) -> FrameScores:
        """Read what final scores need of a frame."""
        table = np.frombuffer(self._read(self._starts[frame], self._table_bytes), np.float32)
        table = table.reshape(self._table_shape)
        return FrameScores(table[:, :2], table[:, 2], table[:, 3], table[:, 4:])

    def mask_logits(self, frame: int, tracks: Int[np.ndarray, " k"]) -> list[Float[np.ndarray, "h4 w4"]]:
        """Read some tracks' mask logits in a frame; where only the sign matters they are 1 or -1."""
        start = self._starts[frame] + self._table_bytes
        length = 8 * self._table_shape[0]
        ends = np.frombuffer(self._read(start, length), np.int64).tolist()
        begins = [0, *ends]
        start += length
        return [
            unpack_mask_logits(self._read(start + begins[track], ends[track] - begins[track]), self._mask_size)
            for track in tracks.tolist()
        ]

    @property
    def _table_bytes(self) -> int:
        return 4 * self._table_shape[0] * self._table_shape[1]

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(length)
        if len(data) != length:
            raise EOFError(f"temporary file in {self._directory}: {length} bytes wanted, {len(data)} found")
        return data

    def close(self) -> None:
        """Delete the file now."""
        self._file.close()
