"""The training loop: the same for whatever is trained.

One step after the other; logs, pictures, scores and checkpoints at their times; an end that can be continued.
"""

import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from clipvis_jax.distributed import wait_for_all
from clipvis_jax.errors import InputError
from clipvis_jax.io.prefetch import prefetch
from clipvis_jax.io.terminal import print_lines
from clipvis_jax.loop.checkpoints import TrainingCheckpoints
from clipvis_jax.loop.log import SCORE_PREFIX, TrainingLog
from clipvis_jax.loop.profile import StepProfile
from clipvis_jax.loop.run_folder import changed_settings, lock_folder, write_note
from clipvis_jax.loop.stop_signal import StopSignal


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When the loop does what, in steps; 0 means never.

    Attributes:
        log_every: Write losses and times.
        checkpoint_every: Write a checkpoint, besides those at the end and when stopped.
        keep_last: How many of the newest checkpoints are kept.
        keep_best: How many of the best by score are kept besides.
        evaluate_every: Compute scores on the evaluation data, and write a checkpoint with them.
        evaluate_first: Do so before the first step, too.
        picture_every: Draw predictions beside targets.
        stop_after: End after this step as if the run had been stopped; it can be continued. None: at the last step.
        export: Which state becomes the model: the last one, or the one with the best score, which may be the first.
    """

    log_every: int = 20
    checkpoint_every: int = 5000
    keep_last: int = 3
    keep_best: int = 1
    evaluate_every: int = 0
    evaluate_first: bool = False
    picture_every: int = 0
    stop_after: int | None = None
    export: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_best", "evaluate_every", "picture_every"):
            if getattr(self, name) < 0:
                raise InputError(f"loop.{name} {getattr(self, name)}: must be 0 (never) or more")
        if self.keep_last < 1:
            raise InputError(f"loop.keep_last {self.keep_last}: must be 1 or more")
        if self.stop_after is not None and self.stop_after < 1:
            raise InputError(f"loop.stop_after {self.stop_after}: must be 1 or more")
        if self.export == "best" and not (self.evaluate_every and self.keep_best):
            raise InputError("loop.export best: needs scores; set loop.evaluate_every and loop.keep_best to 1 or more")


@runtime_checkable  # needed by the type checks in tests
class Data(Protocol):
    """An endless iterator over batches on the host, whose place can be kept and found again."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict[str, Any]:
        """Return the place as JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        ...

    def close(self) -> None:
        """End worker processes."""
        ...


@runtime_checkable
class Task(Protocol):
    """What is trained: everything that the loop does not know.

    Attributes:
        num_steps: Length of the whole training.
        batch_size: Examples per step, over all processes.
        beginning: What the state before the first step is, in words.
    """

    num_steps: int
    batch_size: int
    beginning: str

    def init_state(self) -> Any:
        """Return the state before the first step, on the devices."""
        ...

    def abstract_state(self) -> Any:
        """Return shapes, types and shardings of the state."""
        ...

    def open_data(self) -> Data:
        """Start the stream of batches."""
        ...

    def put(self, batch: Any) -> Any:
        """Put a batch on the devices."""
        ...

    def step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Do a step; returns the state and metrics, both still being computed. Uses the given state up."""
        ...

    def problem(self, metrics: Any) -> str | None:
        """Say what is not finite in a step's metrics, if anything is; the state is then that of before."""
        ...

    def report(self, metrics: Any, step: int) -> dict[str, float]:
        """Return a step's metrics as named numbers."""
        ...

    def flops_per_step(self) -> float | None:
        """Return the floating-point operations of a step per device, None if unknown."""
        ...

    def evaluate(self, state: Any, folder: Path) -> dict[str, float]:
        """Compute scores; the first is what "best" means."""
        ...

    def picture(self, state: Any, batch: Any) -> UInt8[np.ndarray, "h w 3"]:
        """Draw predictions beside targets."""
        ...

    def export(self, state: Any, folder: Path, source: Mapping[str, Any]) -> None:
        """Write the trained model for use; all processes take part."""
        ...


PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Floating-point operations per second in bfloat16, by the makers' data sheets, by JAX's name of the device."""


def train(
    task: Task,
    config: LoopConfig,
    workdir: Path,
    *,
    resume_from: Path | None = None,
    description: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    profile: range | None = None,
    show_progress: bool = True,
) -> bool:
    """Train, from where the run stands.

    Where a run begins, the first that applies: (1) the newest whole checkpoint in ``workdir``; (2) the newest whole
    checkpoint of the run in ``resume_from``; (3) the task's own beginning.

    Args:
        task: What to train.
        config: When to do what.
        workdir: Folder of the run: ``checkpoints``, ``run.json``, ``log.jsonl``, ``tensorboard``, ``pictures``,
            ``evaluation``, and ``model`` at the end.
        resume_from: Folder of another run.
        description: What the run depends on, as JSON; kept in ``run.json`` and in the trained model, together with the
            names of what has changed since the run began.
        source: What else the trained model says of where it comes from.
        profile: Steps of which JAX's profiler writes a trace into ``profile`` of the first process's run.
        show_progress: Say where the run begins, and show a progress bar with the time left.

    Returns:
        Whether training is complete; False if it was stopped and can be continued.

    Raises:
        InputError: The folder is in use or cannot be written, a checkpoint or the data cannot be used, the run that
            it goes on from had another CLIP or other data, none of the steps to profile is to be done, or a loss was
            not finite.
    """
    is_first = jax.process_index() == 0
    with (
        lock_folder(workdir),
        TrainingCheckpoints(
            workdir / "checkpoints", keep_last=config.keep_last, keep_best=config.keep_best
        ) as checkpoints,
        closing(task.open_data()) as data,
    ):
        begin = _begin(task, checkpoints, data, workdir=workdir, resume_from=resume_from, description=description or {})
        state, first_step = begin.state, begin.step
        last_step = task.num_steps if config.stop_after is None else min(task.num_steps, config.stop_after)
        # The same command goes on with a run that has its trace.
        if profile and not ((profile[0] <= last_step and profile[-1] > first_step) or (workdir / "profile").exists()):
            raise InputError(
                f"profile {profile.start}:{profile.stop}: none of these steps is to be done; the run is at step "
                f"{first_step} and ends at {last_step}, so give others"
            )
        note = write_note(workdir, description or {}, begin.changed) if is_first else {}
        if show_progress and is_first:
            print_lines(begin.place)
        first_data_state = data.get_state()
        is_stopped = False
        with (
            TrainingLog(workdir, first_step=first_step, is_scored=begin.score is not None, enabled=is_first) as log,
            closing(prefetch(_batches(data), 1)) as batches,
            StopSignal() as stop,
            StepProfile(workdir / "profile", profile if is_first else None) as profiled,
            tqdm(
                total=task.num_steps,
                initial=first_step,
                desc="training",
                unit="step",
                disable=not (show_progress and is_first),
            ) as bar,
        ):
            reporter = _Reporter(task, config, log, bar, checkpoints)

            def evaluate(step: int, state: Any) -> bool:
                """Score a state; False if a signal ended that. The run makes up for it when it goes on."""
                with reporter.timed("other"):
                    checkpoints.wait()
                    try:
                        with stop.interrupting():
                            scores = task.evaluate(state, workdir / "evaluation" / f"step_{step:07d}")
                    except KeyboardInterrupt:
                        if not stop.is_set:
                            raise
                        return False
                    log.write(step, {SCORE_PREFIX + name: value for name, value in scores.items()})
                    checkpoints.set_score(step, next(iter(scores.values())))
                return True

            if begin.score is None and _is_evaluated(first_step, config, task):
                if not checkpoints.steps:
                    checkpoints.save(first_step, state, first_data_state)
                is_stopped = not evaluate(first_step, state)
            for step in range(first_step + 1, last_step + 1):
                if is_stopped:
                    break
                profiled.begin(step)
                with reporter.timed("data"):
                    host_batch, data_state = next(batches)
                    batch = task.put(host_batch)
                # The first one is compiled meanwhile.
                with reporter.timed("other" if step == first_step + 1 else "step"):
                    state, metrics = task.step(state, batch)
                profiled.end(step, metrics)
                # The numbers of the step before are read while the device computes this one.
                reporter.settle()
                reporter.add(step, metrics)
                bar.update()
                is_stopped = stop.requested(step)
                # A machine that is taken away leaves time to save, and for nothing else.
                if _is_due(step, config.picture_every) and not is_stopped:
                    with reporter.timed("other"):
                        log.picture(step, "predictions", task.picture(state, batch))
                is_evaluated = _is_evaluated(step, config, task)
                if is_stopped or step == last_step or is_evaluated or _is_due(step, config.checkpoint_every):
                    reporter.settle()
                    with reporter.timed("other"):
                        checkpoints.save(step, state, data_state)
                if is_evaluated and not is_stopped:
                    is_stopped = not evaluate(step, state)
            reporter.settle()
        checkpoints.wait()
        is_complete = last_step == task.num_steps and not is_stopped
        if is_complete:
            best = checkpoints.best() if config.export == "best" else None
            if best is not None and best != last_step:
                state = checkpoints.restore_step(best, task.abstract_state()).state
            task.export(state, workdir / "model", {**(source or {}), **note})
        wait_for_all("trained")
    return is_complete


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _is_evaluated(step: int, config: LoopConfig, task: Task) -> bool:
    if not step:
        return config.evaluate_first
    return _is_due(step, config.evaluate_every) or (config.evaluate_every > 0 and step == task.num_steps)


class _Begin(NamedTuple):
    """Where a run begins: in words, a state, the step that it is of and its score.

    ``changed`` are the names of settings that changed on the way there.
    """

    place: str
    state: Any
    step: int = 0
    score: float | None = None
    changed: list[str] = []  # noqa: RUF012 (never written to)


def _begin(
    task: Task,
    checkpoints: TrainingCheckpoints,
    data: Data,
    *,
    workdir: Path,
    resume_from: Path | None,
    description: Mapping[str, Any],
) -> _Begin:
    """Find the state to go on from, and put the data in its place."""
    restored, changed, source = None, [], checkpoints.folder
    if checkpoints.newest() is not None:
        changed = changed_settings(workdir, description)
        restored = checkpoints.restore(task.abstract_state())
    if restored is None and resume_from is not None:
        folder = resume_from / "checkpoints"
        if not folder.is_dir():
            raise InputError(f"{resume_from}: is not the folder of a training run; it has no 'checkpoints'")
        changed = changed_settings(resume_from, description, keeps_scores=False)
        with TrainingCheckpoints(folder, is_read_only=True) as others:
            restored = others.restore(task.abstract_state())
        if restored is None:
            raise InputError(f"{folder}: holds no checkpoint to resume from")
        source = folder
    if restored is None:
        return _Begin(f"begins with {task.beginning}", task.init_state())
    if restored.step > task.num_steps:
        raise InputError(
            f"{workdir}: the checkpoint is of step {restored.step}, beyond the {task.num_steps} of the whole training; "
            "give more steps, or choose another folder"
        )
    data.set_state(restored.data_state)
    place = f"goes on from {source / str(restored.step)}"
    return _Begin(place, restored.state, restored.step, restored.score, changed)


def _batches(data: Data) -> Generator[tuple[Any, dict[str, Any]], None, None]:
    """Go through the batches; with each comes the place in the data after it."""
    while True:
        batch = next(data)
        yield batch, data.get_state()


class _Reporter:
    """Reads the metrics of steps one step late, stops at numbers that are not finite, and logs."""

    def __init__(
        self, task: Task, config: LoopConfig, log: TrainingLog, bar: tqdm, checkpoints: TrainingCheckpoints
    ) -> None:
        self._task, self._config, self._log, self._bar, self._checkpoints = task, config, log, bar, checkpoints
        self._pending: tuple[int, Any] | None = None
        self._seconds = {"data": 0.0, "step": 0.0, "wait": 0.0, "other": 0.0}
        self._since = time.perf_counter()
        self._num_steps = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measure a part of a step; "other" is what is not done for the step itself."""
        start = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - start

    def add(self, step: int, metrics: Any) -> None:
        """Take the metrics of a step that may still be computed."""
        self._pending = step, metrics

    def settle(self) -> None:
        """Wait for the step that was added last, look at its numbers, and log them if it is time.

        Raises:
            InputError: A number is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        with self.timed("wait"):
            metrics = jax.device_get(metrics)
        if problem := self._task.problem(metrics):
            # That of a step that may still be written is not waited for: its number is known.
            steps = [number for number in self._checkpoints.steps if number < step]
            kept = f"the checkpoint of step {steps[-1]} is good" if steps else "there is no checkpoint yet"
            raise InputError(
                f"step {step}: {problem}; training stopped, {kept}; lower optimizer.learning_rate or look at the data"
            )
        self._num_steps += 1
        if _is_due(step, self._config.log_every):
            report = self._task.report(metrics, step)
            self._log.write(step, report | self._times())
            shown = {name: f"{report[name]:.4g}" for name in list(report)[:1]}
            self._bar.set_postfix(shown | {"data": f"{self._share('data'):.0%}"}, refresh=False)
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._since, self._num_steps = time.perf_counter(), 0

    def _share(self, part: str) -> float:
        return self._seconds[part] / max(self._elapsed(), 1e-9)

    def _elapsed(self) -> float:
        """Return the seconds since the last report, without pictures, evaluation and checkpoints."""
        return time.perf_counter() - self._since - self._seconds["other"]

    def _times(self) -> dict[str, float]:
        """Return seconds per step, by parts, and what follows from them."""
        seconds = self._elapsed() / self._num_steps
        times = {f"seconds/{part}": total / self._num_steps for part, total in self._seconds.items()}
        times |= {"seconds/total": seconds, "images_per_second": self._task.batch_size / seconds}
        flops, peak = self._task.flops_per_step(), PEAK_FLOPS.get(jax.devices()[0].device_kind)
        if flops is not None:
            times["teraflops_per_second_and_device"] = flops / seconds / 1e12
            if peak is not None:
                times["utilisation_of_bfloat16_peak"] = flops / seconds / peak
        return times
