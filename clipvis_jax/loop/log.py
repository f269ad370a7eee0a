"""What a training run says of itself: a file of JSON lines, TensorBoard, and a line on the terminal."""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path, output_error, prepare_output_dir, write_text
from clipvis_jax.io.json_text import decode

SCORE_PREFIX = "evaluation/"
"""What the names of scores begin with."""


class TrainingLog:
    """Writes numbers and pictures of a run into ``log.jsonl``, ``tensorboard/`` and ``pictures/`` of its folder.

    A run that goes on from an earlier step forgets what was logged after it, since these steps come again.
    """

    def __init__(self, workdir: Path, *, first_step: int, is_scored: bool = True, enabled: bool = True) -> None:
        """Open the log of a run that has done ``first_step`` steps.

        Args:
            workdir: Folder of the run.
            first_step: Number of steps done; what was logged after them is forgotten.
            is_scored: Whether the scores of ``first_step`` stay; if not, they are forgotten too.
            enabled: Whether anything is written; of several processes one writes.

        Raises:
            InputError: Nothing can be written there.
        """
        self._enabled = enabled
        self._files = ExitStack()
        if not enabled:
            return
        path = prepare_output_dir(workdir) / "log.jsonl"
        self._pictures = workdir / "pictures"
        _forget_after(path, first_step, is_scored=is_scored)
        with ExitStack() as files:
            self._lines = files.enter_context(closing(_LogFile(path)))
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._events = files.enter_context(closing(_LogFile(prepare_output_dir(workdir / "tensorboard") / name)))
            self._events.append(_event(0, file_version="brain.Event:2"))
            # TensorBoard hides what earlier files say of this step and those after it.
            self._events.append(_event(first_step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._files = files.pop_all()

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except InputError:
            # What has ended the run already says more than a file that cannot be closed.
            if kind is None:
                raise

    def close(self) -> None:
        """Close the files.

        Raises:
            InputError: The disk is full, which some file systems say only now.
        """
        self._files.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Note numbers of a step, by names such as ``loss/mask/3``. Those that are not finite become null.

        Raises:
            InputError: The disk is full.
        """
        if not self._enabled:
            return
        record: dict[str, Any] = {"step": step}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.append((json.dumps(record) + "\n").encode())
        numbers = Summary()
        for name, value in values.items():
            numbers.MergeFrom(summary.scalar(name, value))
        self._events.append(_event(step, summary=numbers))

    def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Keep a picture.

        Raises:
            InputError: It cannot be written.
        """
        if not self._enabled:
            return
        path = prepare_output_dir(self._pictures) / f"{name}_{step:07d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        self._events.append(_event(step, summary=summary.image(name, picture, dataformats="HWC")))


class _LogFile:
    """A file that grows at its end, without a buffer: what cannot be written is known at once, and only once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise output_error(path, error) from error

    def append(self, data: bytes) -> None:
        """Write data.

        Raises:
            InputError: It cannot be written.
        """
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise output_error(self._path, error) from error

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: What was written did not come through.
        """
        try:
            self._file.close()
        except OSError as error:
            raise output_error(self._path, error) from error


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log; a last line that was cut off is left out.

    Raises:
        InputError: A line is no record.
    """
    path = workdir / "log.jsonl"
    records = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for number, line in enumerate(lines[:-1], 1):
        where = f"{path}: line {number}"
        decode(line, _Step, where, "delete the line")
        records.append(decode(line, dict[str, Any], where, "delete the line"))
    return records


class _Step(msgspec.Struct):
    """What every record has."""

    step: int


def _forget_after(path: Path, step: int, *, is_scored: bool) -> None:
    if path.is_file():
        try:
            records = read_log(path.parent)
        except OSError as error:
            raise output_error(path, error) from error
        kept = [
            record
            for record in records
            if record["step"] < step or (record["step"] == step and (is_scored or not _has_scores(record)))
        ]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _has_scores(record: Mapping[str, Any]) -> bool:
    return any(name.startswith(SCORE_PREFIX) for name in record)


def _event(step: int, **content: Any) -> bytes:
    """Frame an event as TensorBoard reads it: its length and its bytes, each with a checksum.

    tensorboardX has writers of its own, but they work in a thread. When the disk is full that thread dies, and the run
    then waits for it without end.
    """
    event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
