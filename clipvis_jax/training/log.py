"""What a training run says of itself: a file of JSON lines, TensorBoard, and a line on the terminal."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter

from clipvis_jax.files import atomic_path, output_error, prepare_output_dir


class TrainingLog:
    """Writes numbers and pictures of a run into ``log.jsonl``, ``tensorboard/`` and ``pictures/`` of its folder.

    A run that goes on from an earlier step forgets what was logged after it, since these steps come again.
    """

    def __init__(self, workdir: Path, *, first_step: int, enabled: bool = True) -> None:
        """Open the log; one that is not enabled writes nothing (of several processes one writes).

        Raises:
            InputError: Nothing can be written there.
        """
        self._enabled = enabled
        if not enabled:
            return
        self._path = prepare_output_dir(workdir) / "log.jsonl"
        self._pictures = workdir / "pictures"
        _forget_after(self._path, first_step)
        try:
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step, write_to_disk=True)
        except OSError as error:
            raise output_error(self._path, error) from error

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._enabled:
            self._board.close()
            self._file.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Note numbers of a step, by names such as ``loss/mask/3``. Those that are not finite become null.

        Raises:
            InputError: The disk is full.
        """
        if not self._enabled:
            return
        record: dict[str, Any] = {"step": step}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise output_error(self._path, error) from error
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

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
        self._board.add_image(name, picture, step, dataformats="HWC")


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log; a last line that was cut off is left out."""
    records = []
    path = workdir / "log.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def _forget_after(path: Path, step: int) -> None:
    if path.is_file():
        kept = [record for record in read_log(path.parent) if record["step"] <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
