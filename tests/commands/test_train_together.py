"""train.py on several devices and in several processes: the losses of one, and errors that end them all."""

import textwrap

import numpy as np
import pytest
from free_port import free_port
from small_videos import write_videos
from tiny import one_layer_model_folder
from training_processes import assert_same_bits, finish, finish_all, losses_of, pictures_of, start, write_config

from clipvis_jax.config import load_config
from clipvis_jax.loop.checkpoints import TrainingCheckpoints
from clipvis_jax.loop.log import read_log
from clipvis_jax.training.task import ClipVisTask
from clipvis_jax.weights.model_folder import load_model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return one_layer_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def config(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("training")
    return write_config(folder / "tiny.py", clip, write_videos(folder))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs compiled by the processes of these tests."""
    return tmp_path_factory.mktemp("cache")


# Sums in another order differ by 1e-7. Steps of the usual length let that grow, until it turns a decision (a pixel of
# an attention mask, a match) and the losses part. Steps this short do not; steps longer by a tenth would still change
# the losses by 1e-4 to 1e-3.
TWENTY_STEPS = ["--optimizer.num-steps", 20, "--optimizer.learning-rate", 1e-6]


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory, cache, config, clip):
    workdir = tmp_path_factory.mktemp("twenty")
    finish(start(cache, config, "--workdir", workdir, "--clip", clip, *TWENTY_STEPS))
    return workdir


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(twenty_steps, cache, config, clip, tmp_path):
    options = ["--workdir", tmp_path, "--clip", clip, *TWENTY_STEPS, "--loop.picture-every", 20, "--fsdp", 2]
    finish(start(cache, config, *options, devices=8))
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(twenty_steps), rtol=1e-5)
    assert pictures_of(tmp_path) == ["predictions_0000020.png"]


def start_two(cache, config, *options):
    """Start two processes with two devices each, which train together."""
    port = free_port()
    shared = ["--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", 2, *options]
    return [start(cache, config, *shared, "--distributed.process-id", i, devices=2) for i in range(2)]


def unlike(config, folder, changes):
    """Write a configuration whose two processes do something else at some place."""
    path = folder / "unlike.py"
    path.write_text(
        config.read_text()
        + textwrap.dedent(
            """
            import itertools, time
            import jax
            from clipvis_jax.errors import InputError
            from clipvis_jax.training import task
            put, predict_dataset, count = ClipVisTask.put, task.predict_dataset, itertools.count(1)
            """
        )
        + textwrap.dedent(changes)
    )
    return path


LATE = """
def late_put(self, batch):
    if next(count) == 1 and jax.process_index() == 1:
        time.sleep(61)
    return put(self, batch)

def late_predict_dataset(*given):
    if jax.process_index() == 0:
        time.sleep(61)
    return predict_dataset(*given)

ClipVisTask.put, task.predict_dataset = late_put, late_predict_dataset
"""

FAILING = """
def failing_put(self, batch):
    if next(count) == 3 and jax.process_index() == 1:
        raise InputError("frame: is damaged")
    return put(self, batch)

ClipVisTask.put = failing_put
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other(cache, config, clip, tmp_path):
    """Which waits for it in the middle of a step."""
    options = ["--workdir", tmp_path / "run", "--clip", clip, *TWENTY_STEPS, "--data.num-workers", 1]
    processes = start_two(cache, unlike(config, tmp_path, FAILING), *options)
    errors = [error for _, error in finish_all(*processes, expected_code=2)]
    # Lines of XLA may stand among them.
    said = [[line for line in error.splitlines() if line.startswith(("clipvis: ", "Traceback"))] for error in errors]
    assert said == [["clipvis: error: process 1: frame: is damaged"], ["clipvis: error: frame: is damaged"]]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(twenty_steps, cache, config, clip, tmp_path):
    """Also when one has its first batch a minute later than the other, and is a minute earlier with its evaluation."""
    config = unlike(config, tmp_path, LATE)
    options = ["--workdir", tmp_path, "--clip", clip, *TWENTY_STEPS, "--loop.evaluate-every", 20]
    finish(*start_two(cache, config, *options, "--loop.picture-every", 20))
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(twenty_steps), rtol=1e-5)
    assert pictures_of(tmp_path) == ["predictions_0000020.png"]
    assert read_log(tmp_path)[-1].keys() >= {"evaluation/AP"}
    # One process alone restores the checkpoint.
    model = load_model(tmp_path / "model")
    task = ClipVisTask(load_config(config), clip=clip)
    with TrainingCheckpoints(tmp_path / "checkpoints", is_read_only=True) as checkpoints:
        restored = checkpoints.restore(task.abstract_state())
    assert restored.step == 20
    assert_same_bits(model.params, restored.state.params)
    assert_same_bits(model.clip_vars, load_model(clip).clip_vars)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".clipvis-")] == []
