"""Checkpoints of a training run: parameters, optimizer and place in the data, whole or not there.

Orbax writes them in the background and gives a checkpoint its name when it is complete. A checksum that does not depend
on how arrays are spread over devices tells later whether a file has changed since. Scores come later than checkpoints
and stand in a file of their own, so that no checkpoint is ever written twice.
"""

import dataclasses
import enum
import hashlib
import itertools
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from clipvis_jax.distributed import largest_of_all
from clipvis_jax.errors import InputError, first_line
from clipvis_jax.io.files import output_error, write_text
from clipvis_jax.io.json_text import read_json

_STATE = "state"
_SCORES = "scores.json"
_DIGEST = "notes_sha256"
_KNUTH = np.uint32(2654435761)
"""An odd number that spreads positions over 32 bits, so that exchanged values do not cancel out."""


class _Verdict(enum.IntEnum):
    """What a process finds when it reads a checkpoint; of several processes the worst counts."""

    WHOLE = 0
    DAMAGED = 1
    """Or not readable, which looks the same from here: an older one is taken."""
    UNUSABLE = 2
    """Nothing is wrong with the checkpoint itself, and an older one would fare no better: the run ends."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read: the step it was written after, the state, and what else was kept with it."""

    step: int
    state: Any
    data_state: dict[str, Any]
    score: float | None


class TrainingCheckpoints:
    """The checkpoints of one run, in a folder of their own.

    The newest ``keep_last`` are kept, and the ``keep_best`` best by score.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 3,
        keep_best: int = 1,
        is_read_only: bool = False,
    ) -> None:
        """Open or make the folder; what an earlier process left unfinished is removed, unless it is read only.

        Raises:
            InputError: The folder cannot be written, or its scores are damaged.
        """
        policies = ocp.training.preservation_policies
        self.folder = folder.resolve()
        self._is_read_only = is_read_only
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not is_read_only and jax.process_index() == 0:
                for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                    warnings.warn(f"{path}: was not written to its end; it is removed", stacklevel=2)
                    shutil.rmtree(path)  # orbax would in a thread, which may outlive this object
            self._scores = _read_scores(self.folder / _SCORES)
            kept = [policies.LatestN(keep_last), _Best(keep_best, self._scores)]
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                # The training loop decides; whatever it hands in is saved.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
            )
        except OSError as error:
            raise output_error(folder, error) from error
        self._pending: Any = None

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            InputError: It cannot be written.
        """
        failure = None
        try:
            self.wait()
        except InputError as error:
            failure = error
        try:
            self._checkpointer.close()
        except (OSError, ValueError) as error:  # orbax says it once more
            failure = failure or self._write_error(error)
        if failure is not None:
            raise failure

    @property
    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any, data_state: dict[str, Any]) -> None:
        """Begin to write a checkpoint; returns when the state is copied, and may be changed.

        Args:
            step: Number of steps done.
            state: Arrays, in any tree.
            data_state: Place in the data, as JSON.

        Raises:
            InputError: This checkpoint, or the one before, cannot be written.
        """
        self.wait()
        if self._scores.pop(step, None) is not None:  # of a checkpoint that was not whole
            self._write_scores()
        notes = json.loads(
            json.dumps({"data_state": data_state, "checksum": checksum(state), "arrays": _describe(state)})
        )
        try:
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                {_STATE: state},
                custom_metadata=notes | {_DIGEST: _digest(notes)},
            )
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            InputError: It cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except (OSError, ValueError) as error:
                raise self._write_error(error) from error

    def set_score(self, step: int, score: float) -> None:
        """Keep how good the state of a checkpoint is, which decides which are the best.

        Raises:
            InputError: It cannot be written.
        """
        if math.isfinite(score):  # what is no number is no better than any
            self._scores[step] = score
            self._write_scores()

    def _write_scores(self) -> None:
        if jax.process_index() == 0:
            write_text(self.folder / _SCORES, json.dumps(self._scores) + "\n")

    def newest(self) -> int | None:
        """Return the newest step that any process knows a checkpoint of; all processes have to ask."""
        return self._newest_before(sys.maxsize)

    def best(self) -> int | None:
        """Return the step with the best score of those that have a checkpoint; of equal ones the later."""
        scored = [step for step in self.steps if step in self._scores]
        return max(scored, key=lambda step: (self._scores[step], step), default=None)

    def restore_step(self, step: int, abstract_state: Any) -> Restored:
        """Read the checkpoint of a step; see ``restore``.

        Raises:
            InputError: There is none that is whole, or it is of another model.
        """
        restored = self._read(step, abstract_state) if step in self.steps else None
        if restored is None:
            steps = ", ".join(map(str, self.steps)) or "none"
            raise InputError(f"{self.folder / str(step)}: is no whole checkpoint; the steps that have one: {steps}")
        return restored

    def restore(self, abstract_state: Any) -> Restored | None:
        """Read the newest checkpoint that is whole; what cannot be read is named in a warning and passed over.

        What was passed over is renamed to ``STEP.damaged``, unless the folder is read only: training comes to these
        steps again, and the disk may have been at fault rather than the files. Several processes take a checkpoint only
        when it is whole for all of them.

        Args:
            abstract_state: The tree of shapes, types and shardings that the state must have.

        Returns:
            The checkpoint; None if there is none at all.

        Raises:
            InputError: A checkpoint is of another model (names the first arrays that differ), there is not enough
                memory for it, none is whole, or those that are not cannot be renamed.
        """
        below = sys.maxsize
        while (number := self._newest_before(below)) is not None:
            restored = self._read(number, abstract_state)
            if restored is not None:
                if not self._is_read_only:
                    self._set_aside_after(number)
                return restored
            below = number
        if below < sys.maxsize:
            raise InputError(
                f"{self.folder}: no checkpoint is whole; try again if the disk was at fault, or take another folder"
            )
        return None

    def _newest_before(self, step: int) -> int | None:
        """Return the newest step before another one that any process knows a checkpoint of."""
        newest = largest_of_all(max((number for number in self.steps if number < step), default=-1))
        return None if newest < 0 else newest

    def _read(self, step: int, abstract_state: Any) -> Restored | None:
        """Read a checkpoint; None if it is not whole.

        All processes have to end one part well before any begins the next, since reading and adding up arrays is work
        that they do together.

        Raises:
            InputError: It cannot be used.
        """
        notes = self._try_together(step, lambda: self._read_notes(step, abstract_state))
        if notes is None:
            return None
        loaded = self._try_together(step, lambda: self._read_arrays(step, abstract_state))
        if loaded is None or self._try_together(step, lambda: _check_values(loaded, notes)) is None:
            return None
        return Restored(step, loaded, notes["data_state"], self._scores.get(step))

    def _read_notes(self, step: int, abstract_state: Any) -> dict[str, Any]:
        notes = dict(self._checkpointer.metadata(step).custom_metadata)
        # Checkpoints of older versions have none.
        if notes.pop(_DIGEST, None) not in (None, _digest(notes)):
            raise ValueError("its notes have changed since it was written")
        self._check_same_tree(step, notes["arrays"], _describe(abstract_state))
        return {name: notes[name] for name in ("checksum", "data_state")}

    def _read_arrays(self, step: int, abstract_state: Any) -> Any:
        return self._checkpointer.load_checkpointables(step, {_STATE: abstract_state})[_STATE]

    def _try_together(self, step: int, part: Callable[[], Any]) -> Any:
        """Do a part of reading; returns what it returns, or None, with a warning, if it failed in any process.

        Raises:
            InputError: The checkpoint cannot be used.
        """
        path = self.folder / str(step)
        result, verdict, message = None, _Verdict.WHOLE, ""
        try:
            result = part()
        except InputError as error:
            verdict, message = _Verdict.UNUSABLE, str(error)
        except Exception as error:  # orbax and tensorstore raise many kinds for missing and damaged files
            # Only words are kept: the exception would hold on to the arrays, and the next checkpoint needs their place.
            reason = first_line(error)
            if _is_out_of_memory(error):
                verdict = _Verdict.UNUSABLE
                message = (
                    f"{path}: not enough memory to read it ({reason}); free some or use more devices, then try again"
                )
            else:
                verdict = _Verdict.DAMAGED
                message = f"{path}: damaged or not readable, passed over ({reason})"
        worst = _Verdict(largest_of_all(verdict))
        if worst > verdict:
            message = f"{path}: passed over, since another process cannot read it whole"
            if worst is _Verdict.UNUSABLE:
                message = f"{path}: another process cannot use it; see what that one says"
        if worst is _Verdict.UNUSABLE:
            raise InputError(message)
        if worst is _Verdict.DAMAGED:
            warnings.warn(message, stacklevel=4)
            return None
        return result

    def _check_same_tree(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        different = [
            f"{name} ({saved.get(name, 'missing')} in the checkpoint, {wanted.get(name, 'missing')} here)"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if different:
            raise InputError(
                f"{self.folder / str(step)}: is a checkpoint of another model or optimizer; the first of "
                f"{len(different)} differences: {'; '.join(different[:3])}; use its own config, or another folder"
            )

    def _set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after a step, none of which is whole: training will come to their steps again.

        All processes have to take part.

        Raises:
            InputError: They cannot be renamed.
        """
        moved, problem = {}, ""
        if jax.process_index() == 0:
            for path in [self.folder / str(number) for number in self.steps if number > step]:
                aside = _free_name(path.with_name(f"{path.name}.damaged"))
                try:
                    path.rename(aside)
                except OSError as error:
                    problem = str(output_error(path, error))
                    break
                moved[path] = aside
        # Nobody gets past this before process 0 has come to it, so all of them find the folder in its new state.
        if largest_of_all(int(bool(problem))):
            raise InputError(problem or f"{self.folder}: process 0 cannot rename damaged checkpoints; see what it says")
        for path, aside in moved.items():
            warnings.warn(f"{path}: damaged, kept as {aside.name}; remove it if nobody misses it", stacklevel=3)
        self._checkpointer.reload()

    def _write_error(self, error: Exception) -> InputError:
        return InputError(
            f"{self.folder}: a checkpoint cannot be written ({first_line(error)}); free some space and start again"
        )


@dataclasses.dataclass(frozen=True)
class _Best(ocp.training.preservation_policies.PreservationPolicy):
    """Keeps the ``count`` best of the steps that have a score; of equal ones the later."""

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = [checkpoint.step for checkpoint in checkpoints if checkpoint.step in self.scores]
        best = sorted(scored, key=lambda step: (-self.scores[step], -step))[: self.count]
        return [checkpoint.step in best for checkpoint in checkpoints]


def _read_scores(path: Path) -> dict[int, float]:
    """Return the scores by step; none if there is no such file.

    Raises:
        InputError: The file is damaged.
    """
    if not path.exists():
        return {}
    return read_json(path, dict[int, float], "delete it to go on without the scores so far")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, says that the host's or a device's memory is full."""
    if error is None:
        return False
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in str(error)
        or any(_is_out_of_memory(origin) for origin in (*parts, error.__cause__ or error.__context__))
    )


def _digest(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _check_values(state: Any, notes: dict[str, Any]) -> bool:
    if checksum(state) != notes["checksum"]:
        raise ValueError("its values have changed since it was written")
    return True


def _free_name(path: Path) -> Path:
    """Return the path, with a number behind it if there is something of this name already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def checksum(tree: Any) -> int:
    """Return a checksum of a tree's values, the same however they are spread over devices.

    A sum of whole numbers modulo 2**32, so the order of summation does not matter.
    """
    sums = [_leaf_checksum(leaf) for leaf in jax.tree.leaves(tree)]
    return sum((2 * number + 1) * int(value) for number, value in enumerate(sums)) % 2**32


@jax.jit
def _leaf_checksum(leaf: Array) -> UInt32[Array, ""]:
    words = _words(leaf)
    positions = jax.lax.iota(jnp.uint32, words.size).reshape(words.shape)
    return jnp.sum(words * (positions * _KNUTH * 2 + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> Array:
    """Return an array's bits as 32-bit words, those of small types one by one."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _describe(tree: Any) -> dict[str, str]:
    """Describe every leaf by its path: shape and type."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in flat}
