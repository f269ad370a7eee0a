"""The loop on a toy task: what happens when, resuming, stopping, numbers that are not finite."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.loop.checkpoints import TrainingCheckpoints
from clipvis_jax.loop.log import TrainingLog, read_log
from clipvis_jax.loop.loop import LoopConfig, train
from clipvis_jax.loop.run_folder import changed_settings, write_note


class ToyData:
    """Batches are their own numbers; position and closing can be looked at."""

    def __init__(self):
        self.position = 0
        self.is_closed = False

    def __next__(self):
        self.position += 1
        return np.float32(self.position)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def close(self):
        self.is_closed = True


@jax.jit
def toy_step(state, batch):
    value = state["value"] * 0.9 + batch
    return {"value": value, "seen": state["seen"] + 1}, {"loss": value, "step": state["seen"] + 1}


class ToyTask:
    """Adds up its batches."""

    beginning = "nothing"

    def __init__(self, num_steps=10, bad_step=None, on_step=None):
        self.num_steps, self.batch_size = num_steps, 4
        self.bad_step, self.on_step = bad_step, on_step
        self.data = ToyData()
        self.batches, self.evaluated, self.exported = [], [], None

    def init_state(self):
        return {"value": jnp.float32(0), "seen": jnp.int32(0)}

    def abstract_state(self):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.init_state())

    def open_data(self):
        return self.data

    def put(self, batch):
        return jnp.asarray(batch)

    def step(self, state, batch):
        self.batches.append(float(batch))
        state, metrics = toy_step(state, batch)
        if self.on_step is not None:
            self.on_step(int(state["seen"]))
        return state, metrics

    def problem(self, metrics):
        return "loss 'toy' is nan" if int(metrics["step"]) == self.bad_step else None

    def report(self, metrics, step):
        return {"loss/total": float(metrics["loss"]), "step_seen": float(step)}

    def flops_per_step(self):
        return 1e6

    def evaluate(self, state, folder):
        self.evaluated.append(folder.name)
        return {"AP": float(state["seen"] == 4), "other": 0.5}

    def picture(self, state, batch):
        return np.full((4, 6, 3), int(batch), np.uint8)

    def export(self, state, folder, source):
        self.exported = (float(state["value"]), folder, source)


def run(task, workdir, *, resume_from=None, description=None, **config):
    return train(
        task,
        LoopConfig(**({"log_every": 1, "checkpoint_every": 0} | config)),
        workdir,
        resume_from=resume_from,
        description=description,
        source={"by": "test"},
        show_progress=False,
    )


def expected(num_steps):
    value = np.float32(0)
    for batch in range(1, num_steps + 1):
        value = float(toy_step({"value": jnp.float32(value), "seen": jnp.int32(0)}, jnp.float32(batch))[0]["value"])
    return value


def steps_in(workdir):
    with TrainingCheckpoints(workdir / "checkpoints", is_read_only=True) as checkpoints:
        return checkpoints.steps


@pytest.mark.parametrize("best_step", [0, 4, 6])
def test_the_best_state_becomes_the_model_also_when_it_is_the_first(tmp_path, best_step):
    task = ToyTask(num_steps=6)
    task.evaluate = lambda state, folder: {"AP": float(state["seen"] == best_step)}
    assert run(task, tmp_path, evaluate_every=2, evaluate_first=True, export="best", keep_last=1)
    assert task.exported[0] == expected(best_step)
    scores = {record["step"]: record["evaluation/AP"] for record in read_log(tmp_path) if "evaluation/AP" in record}
    assert scores == {step: float(step == best_step) for step in (0, 2, 4, 6)}
    # The same again does nothing but export.
    again = ToyTask(num_steps=6)
    assert run(again, tmp_path, evaluate_every=2, evaluate_first=True, export="best", keep_last=1)
    assert (again.batches, again.evaluated, again.exported[0]) == ([], [], expected(best_step))


def test_scores_before_the_first_step_are_made_up_for(tmp_path):
    """Stopped while it computes them, the run has the checkpoint of step 0 and computes them when it goes on."""
    task = ToyTask(num_steps=2)

    def stopped(state, folder):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    task.evaluate = stopped
    assert not run(task, tmp_path, evaluate_every=2, evaluate_first=True)
    assert (steps_in(tmp_path), task.batches) == ([0], [])
    task = ToyTask(num_steps=2)
    assert run(task, tmp_path, evaluate_every=2, evaluate_first=True)
    assert task.evaluated == ["step_0000000", "step_0000002"]
    assert task.exported[0] == expected(2)


def test_the_best_state_needs_scores():
    with pytest.raises(InputError, match=r"^loop.export best: needs scores; set loop.evaluate_every"):
        LoopConfig(export="best")


def test_whole_run(tmp_path):
    task = ToyTask()
    assert run(task, tmp_path, log_every=2, checkpoint_every=4, evaluate_every=3, picture_every=5) is True
    assert task.batches == list(range(1, 11))
    assert task.exported == (expected(10), tmp_path / "model", {"by": "test"})
    assert task.data.is_closed
    records = read_log(tmp_path)
    assert [record["step"] for record in records if "loss/total" in record] == [2, 4, 6, 8, 10]
    first = records[0]
    assert first["loss/total"] == pytest.approx(expected(2))
    assert {"seconds/data", "seconds/step", "seconds/wait", "seconds/total", "images_per_second"} <= first.keys()
    assert first["teraflops_per_second_and_device"] > 0
    assert task.evaluated == [f"step_{step:07d}" for step in (3, 6, 9, 10)]
    assert [record["evaluation/AP"] for record in records if "evaluation/AP" in record] == [0, 0, 0, 0]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "predictions_0000005.png",
        "predictions_0000010.png",
    ]
    assert any((tmp_path / "tensorboard").iterdir())
    assert 10 in steps_in(tmp_path)
    assert len(steps_in(tmp_path)) == 3


def test_stopped_and_continued_equals_whole(tmp_path):
    assert run(ToyTask(), tmp_path, stop_after=3) is False
    assert steps_in(tmp_path) == [3]
    assert not (tmp_path / "model").exists()
    task = ToyTask()
    assert run(task, tmp_path) is True
    # What was fetched ahead when the run stopped is not lost.
    assert task.batches == list(range(4, 11))
    assert task.exported[0] == expected(10)
    losses = [record["step"] for record in read_log(tmp_path) if "loss/total" in record]
    assert losses == list(range(1, 11))


def test_best_checkpoint_is_kept(tmp_path):
    run(ToyTask(), tmp_path, evaluate_every=2, keep_last=1)
    assert steps_in(tmp_path) == [4, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(tmp_path, number):
    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(number)
    task = ToyTask(on_step=lambda step: os.kill(os.getpid(), number) if step == 4 else None)
    assert run(task, tmp_path) is False
    assert steps_in(tmp_path) == [4]
    assert task.exported is None
    assert signal.getsignal(number) is handler
    assert run(task := ToyTask(), tmp_path) is True
    assert task.exported[0] == expected(10)


def test_numbers_that_are_not_finite_stop_the_run(tmp_path):
    with pytest.raises(InputError, match=r"loss 'toy' is nan; training stopped, the checkpoint of step 4 is good"):
        run(ToyTask(bad_step=7), tmp_path, checkpoint_every=4)
    assert steps_in(tmp_path) == [4]
    with pytest.raises(InputError, match="there is no checkpoint yet"):
        run(ToyTask(bad_step=2), tmp_path / "other", checkpoint_every=4)


def test_resume_from_another_run(tmp_path):
    run(ToyTask(), tmp_path / "a", stop_after=6)
    task = ToyTask()
    config = LoopConfig(log_every=1, checkpoint_every=0)
    assert train(task, config, tmp_path / "b", resume_from=tmp_path / "a", show_progress=False)
    assert task.batches == [7, 8, 9, 10]
    assert task.exported[0] == expected(10)
    assert steps_in(tmp_path / "a") == [6]
    # The run's own checkpoint goes first.
    task = ToyTask(num_steps=11)
    assert train(task, config, tmp_path / "b", resume_from=tmp_path / "a", show_progress=False)
    assert task.batches == [11]


def describe(learning_rate, clip="a", **more):
    return {"config": {"optimizer": {"learning_rate": learning_rate, "clip": 1}}, "clip_sha256": clip, **more}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_changed_settings_are_told_and_noted(tmp_path, elsewhere):
    first, second = tmp_path / "first", tmp_path / ("second" if elsewhere else "first")
    source = first if elsewhere else None
    run(ToyTask(), first, stop_after=3, description=describe(1))
    with pytest.raises(InputError, match="first: is a run with another CLIP"):
        run(ToyTask(), second, resume_from=source, description=describe(1, clip="b"))
    with pytest.raises(InputError, match=r"first: is a run with another model to begin with \(init_from\); choose"):
        run(ToyTask(), second, resume_from=source, description=describe(1, decoders_sha256="c"))
    scored = {"evaluation_dataset": {"name": "val", "digest": "1"}}
    write_note(first, describe(1, **scored), [])
    other = {"evaluation_dataset": {"name": "val", "digest": "2"}}
    if elsewhere:
        with pytest.warns(UserWarning, match=r"settings than before: evaluation_dataset\.digest$"):
            assert changed_settings(first, describe(1, **other), keeps_scores=False)
    else:
        with pytest.raises(InputError, match="first: has scores on another data set; choose another folder"):
            run(ToyTask(), second, description=describe(1, **other))
    write_note(first, describe(1), [])
    with pytest.warns(UserWarning, match=r"first: .* settings than before: config\.optimizer\.learning_rate$"):
        run(ToyTask(), second, resume_from=source, stop_after=6, description=describe(2))
    # Once changed it stays noted, also by a run that changes nothing more.
    task = ToyTask()
    run(task, second, description=describe(2))
    note = describe(2) | {"changed_settings": ["config.optimizer.learning_rate"]}
    assert json.loads((second / "run.json").read_text()) == note
    assert task.exported[2] == note | {"by": "test"}


def test_a_refused_start_changes_no_note(tmp_path):
    def second(step):
        if step == 2:
            with pytest.raises(InputError, match="another run is at work there"):
                run(ToyTask(), tmp_path, description=describe(2))

    run(ToyTask(num_steps=3, on_step=second), tmp_path, description=describe(1))
    with pytest.raises(InputError, match=r"checkpoint is of step 3, beyond the 2 of the whole training"):
        run(ToyTask(num_steps=2), tmp_path, description=describe(1))
    assert json.loads((tmp_path / "run.json").read_text()) == describe(1)


def test_a_stopped_run_saves_and_does_nothing_else(tmp_path):
    task = ToyTask(on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    run(task, tmp_path, evaluate_every=4, picture_every=4)
    assert steps_in(tmp_path) == [4]
    assert task.evaluated == []
    assert not (tmp_path / "pictures").exists()


def test_a_state_is_safe_before_it_is_evaluated(tmp_path):
    """An evaluation that fails, or that is never come to, is made up for; nothing is trained twice."""
    failing = ToyTask()

    def fail(state, folder):
        assert steps_in(tmp_path) == [4]
        raise InputError("a frame is missing")

    failing.evaluate = fail
    with pytest.raises(InputError, match="a frame is missing"):
        run(failing, tmp_path, evaluate_every=4)
    stopped = ToyTask(on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 10 else None)
    assert run(stopped, tmp_path, evaluate_every=4) is False
    assert stopped.batches == list(range(5, 11))
    assert stopped.evaluated == ["step_0000004", "step_0000008"]
    last = ToyTask()
    assert run(last, tmp_path, evaluate_every=4) is True
    assert (last.batches, last.evaluated) == ([], ["step_0000010"])
    again = ToyTask()
    assert run(again, tmp_path, evaluate_every=4) is True
    assert again.evaluated == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_at_once(tmp_path, number):
    """The state is safe; the evaluation comes when the run goes on, before anything else."""
    task = ToyTask()

    def evaluate(state, folder):
        os.kill(os.getpid(), number)
        time.sleep(60)

    task.evaluate = evaluate
    start = time.monotonic()
    assert run(task, tmp_path, evaluate_every=4) is False
    assert run(task, tmp_path, evaluate_every=4) is False  # while it makes up for the evaluation
    assert time.monotonic() - start < 30
    assert task.batches == [1, 2, 3, 4]
    assert steps_in(tmp_path) == [4]
    last = ToyTask()
    assert run(last, tmp_path, evaluate_every=4) is True
    assert last.evaluated == [f"step_{step:07d}" for step in (4, 8, 10)]
    assert last.exported[0] == expected(10)


def test_scores_are_logged_once(tmp_path, monkeypatch):
    """Killed between the log's line and the checkpoint's score: the evaluation comes again, and so does its line."""

    def killed(self, step, score):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "set_score", killed)
        with pytest.raises(KeyboardInterrupt):
            run(ToyTask(), tmp_path, evaluate_every=4)
    assert run(ToyTask(), tmp_path, evaluate_every=4)
    assert [record["step"] for record in read_log(tmp_path) if "evaluation/AP" in record] == [4, 8, 10]
    assert [record["step"] for record in read_log(tmp_path) if "loss/total" in record] == list(range(1, 11))


def test_where_a_run_begins_is_said(tmp_path, capsys):
    for workdir, source in (("a", None), ("a", None), ("b", "a"), ("b", "a")):
        train(
            ToyTask(),
            LoopConfig(stop_after=2 if workdir == "a" else 4),
            tmp_path / workdir,
            resume_from=None if source is None else tmp_path / source,
        )
    assert capsys.readouterr().out.splitlines() == [
        "begins with nothing",
        f"goes on from {tmp_path}/a/checkpoints/2",
        f"goes on from {tmp_path}/a/checkpoints/2",
        f"goes on from {tmp_path}/b/checkpoints/4",
    ]


def test_evaluation_is_not_counted_as_training_time(tmp_path):
    task = ToyTask(num_steps=4)
    task.evaluate = lambda state, folder: time.sleep(2) or {"AP": 0.0}
    run(task, tmp_path, evaluate_every=2, log_every=4)
    (times,) = (record for record in read_log(tmp_path) if "loss/total" in record)
    assert times["seconds/other"] > 0.5
    assert times["seconds/total"] < 0.5
    # Nor is one that is made up for.
    (tmp_path / "checkpoints" / "scores.json").unlink()
    task.num_steps = 8
    run(task, tmp_path, evaluate_every=2, log_every=8)
    times = next(record for record in read_log(tmp_path) if record["step"] == 8)
    assert times["seconds/other"] > 0.5
    assert times["seconds/total"] < 0.5


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a training run"):
        train(ToyTask(), LoopConfig(), tmp_path / "b", resume_from=tmp_path / "a", show_progress=False)


def test_folder_in_use(tmp_path):
    def second(step):
        if step == 2:
            with pytest.raises(InputError, match="another run is at work there"):
                run(ToyTask(), tmp_path)

    assert run(ToyTask(num_steps=3, on_step=second), tmp_path) is True


def test_finished_run_does_nothing_but_export(tmp_path):
    run(ToyTask(), tmp_path)
    task = ToyTask()
    assert run(task, tmp_path) is True
    assert task.batches == []
    assert task.exported[0] == expected(10)


def test_data_that_fails_stops_the_run(tmp_path):
    task = ToyTask()

    def broken(batch):
        raise InputError("more than 0 frames cannot be used")

    task.put = broken
    with pytest.raises(InputError, match="more than 0 frames"):
        run(task, tmp_path)
    assert task.data.is_closed


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("log_every", -1, "loop.log_every -1: must be 0"),
        ("keep_last", 0, "loop.keep_last 0: must be 1 or more"),
        ("stop_after", 0, "loop.stop_after 0: must be 1 or more"),
    ],
)
def test_unusable_settings(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LoopConfig(), **{field: value})


def test_log_forgets_what_comes_again(tmp_path):
    with TrainingLog(tmp_path, first_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2, "bad": float("nan")})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the power went
    with TrainingLog(tmp_path, first_step=2) as log:
        log.write(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.5, "bad": None},
        {"step": 2, "loss": 1.0, "bad": None},
        {"step": 3, "loss": 9.0},
    ]


def test_log_that_is_not_enabled_writes_nothing(tmp_path):
    with TrainingLog(tmp_path / "log", first_step=0, enabled=False) as log:
        log.write(1, {"loss": 1.0})
        log.picture(1, "a", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("last", [3, 9])
def test_steps_are_profiled(tmp_path, monkeypatch, last):
    traced = []
    task = ToyTask(num_steps=4, on_step=lambda step: traced.append((step, is_on[-1])))
    is_on = [False]
    monkeypatch.setattr(jax.profiler, "start_trace", is_on.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: is_on.append(False))
    assert train(task, LoopConfig(), tmp_path, profile=range(2, last), show_progress=False)
    folder = tmp_path / "profile"
    assert traced == [(step, folder if 2 <= step < last else False) for step in range(1, 5)]
    assert is_on == [False, folder, False]


def test_steps_to_profile_that_are_not_done_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"profile 4:6: none of these steps is to be done; .* step 0 and ends at 3"):
        train(ToyTask(num_steps=3), LoopConfig(), tmp_path, profile=range(4, 6), show_progress=False)
    assert not (tmp_path / "run.json").exists()


def test_a_profile_is_written(tmp_path):
    assert train(ToyTask(num_steps=3), LoopConfig(), tmp_path, profile=range(2, 3), show_progress=False)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # The same command again finds it.
    assert train(ToyTask(num_steps=3), LoopConfig(), tmp_path, profile=range(2, 3), show_progress=False)
