"""Checkpoints of a training run: parameters, optimizer and place in the data, whole or not there.

Orbax writes them in the background and gives a checkpoint its name when it is complete. A checksum that does not depend
on how arrays are spread over devices tells later whether a file has changed since.
"""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from clipvis_jax.errors import InputError
from clipvis_jax.files import output_error

_STATE = "state"
_SCORE = "score"
_KNUTH = np.uint32(2654435761)
"""An odd number that spreads positions over 32 bits, so that exchanged values do not cancel out."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read: the step it was written after, the state, and what else was kept with it."""

    step: int
    state: Any
    data_state: dict[str, Any]


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
            InputError: The folder cannot be written.
        """
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_SCORE], n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self.folder = folder.resolve()
        self._is_read_only = is_read_only
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                # The training loop decides; whatever it hands in is saved.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=not is_read_only,
            )
        except OSError as error:
            raise output_error(folder, error) from error
        self._pending: Any = None

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any, data_state: dict[str, Any], *, score: float | None = None) -> None:
        """Begin to write a checkpoint; returns when the state is copied, and may be changed.

        Args:
            step: Number of steps done.
            state: Arrays, in any tree.
            data_state: Place in the data, as JSON.
            score: How good the state is; decides which are the best.

        Raises:
            InputError: This checkpoint, or the one before, cannot be written.
        """
        self.wait()
        notes = {"data_state": data_state, "checksum": checksum(state), "arrays": _describe(state)}
        try:
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                {_STATE: state},
                overwrite=True,
                metrics=None if score is None else {_SCORE: score},
                custom_metadata=notes,
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

    def restore(self, abstract_state: Any) -> Restored | None:
        """Read the newest checkpoint that is whole; damaged ones are named in a warning and passed over.

        Args:
            abstract_state: The tree of shapes, types and shardings that the state must have.

        Returns:
            The checkpoint; None if there is none at all.

        Raises:
            InputError: A checkpoint is of another model (names the first arrays that differ), or none is whole.
        """
        steps = self.steps
        for number in reversed(steps):
            try:
                notes = self._checkpointer.metadata(number).custom_metadata
                self._check_same_tree(number, notes["arrays"], _describe(abstract_state))
                loaded = self._checkpointer.load_checkpointables(number, {_STATE: abstract_state})[_STATE]
                if checksum(loaded) != notes["checksum"]:
                    raise ValueError("its values have changed since it was written")
            except InputError:
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for missing and damaged files
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                warnings.warn(f"{self.folder / str(number)}: damaged, passed over ({reason})", stacklevel=2)
                continue
            if not self._is_read_only:
                self._drop_after(number)
            return Restored(number, loaded, notes["data_state"])
        if steps:
            raise InputError(f"{self.folder}: no checkpoint is whole; start again in another --workdir")
        return None

    def _check_same_tree(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        different = [
            f"{name} ({saved.get(name, 'missing')} in the checkpoint, {wanted.get(name, 'missing')} here)"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if different:
            raise InputError(
                f"{self.folder / str(step)}: is a checkpoint of another model or optimizer; the first of "
                f"{len(different)} differences: {'; '.join(different[:3])}; use its own config, or another --workdir"
            )

    def _drop_after(self, step: int) -> None:
        """Remove the damaged checkpoints after a step: training will come to their steps again."""
        if jax.process_index() == 0:
            for number in self.steps:
                if number > step:
                    shutil.rmtree(self.folder / str(number), ignore_errors=True)
        self._checkpointer.reload()

    def _write_error(self, error: Exception) -> InputError:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return InputError(f"{self.folder}: a checkpoint cannot be written ({reason}); free some space and start again")


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
