"""Checkpoints of a run: whole or not there, damage noticed, best and newest kept."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from free_port import free_port
from jax.sharding import NamedSharding, PartitionSpec

from clipvis_jax.errors import InputError
from clipvis_jax.loop.checkpoints import TrainingCheckpoints, checksum
from clipvis_jax.loop.sharding import make_mesh

# Orbax leaves some behind when it meets damage; when they are noticed depends on the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
"""Where processes find this file and the helpers that it imports."""


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def make_state(step, sharding=None):
    params = {"layer": {"kernel": jnp.arange(64.0).reshape(8, 8) + step}, "bias": jnp.full(3, step, jnp.bfloat16)}
    state = State(jnp.int32(step), params, optax.adamw(1e-3).init(params))
    return state if sharding is None else jax.device_put(state, sharding)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def fill(folder, steps, **options):
    with TrainingCheckpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"batches": step})


def test_nothing_there(tmp_path):
    with TrainingCheckpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))) is None
        assert checkpoints.steps == []


def test_what_is_saved_comes_back(tmp_path):
    fill(tmp_path, [1, 2])
    with TrainingCheckpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0)))
    assert restored.step == 2
    assert restored.data_state == {"batches": 2}
    assert same(restored.state, make_state(2))


def test_other_devices(tmp_path):
    """Written from one device, read onto eight."""
    fill(tmp_path, [1])
    mesh = make_mesh(fsdp=8)
    spread = jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec("fsdp") if x.shape == (8, 8) else PartitionSpec()), make_state(0)
    )
    with TrainingCheckpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0, spread)))
    assert same(restored.state, make_state(1))
    assert restored.state.params["layer"]["kernel"].sharding.spec == PartitionSpec("fsdp")


def test_newest_and_best_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: None, 5: 0.3, 6: None}
    with TrainingCheckpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(step), {})
            if score is not None:
                checkpoints.set_score(step, score)
        checkpoints.wait()
        assert checkpoints.steps == [2, 5, 6]
    fill(tmp_path, [7, 8], keep_last=1, keep_best=1)  # scores outlive the process
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 8]


def test_a_score_is_that_of_the_newest_attempt(tmp_path):
    fill(tmp_path, [1, 2])
    with TrainingCheckpoints(tmp_path) as checkpoints:
        checkpoints.set_score(1, 0.25)
        checkpoints.set_score(2, 0.5)
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))).score == 0.5
    damage(tmp_path / "2")
    with TrainingCheckpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert checkpoints.restore(abstract(make_state(0))).score == 0.25
        checkpoints.save(2, make_state(2), {})
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))).score is None


def test_a_score_touches_no_checkpoint(tmp_path):
    """Also on a full disk and if the process is killed meanwhile: the only checkpoint may be that of this score."""
    fill(tmp_path, [1])
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(tmp_path / "1")}
    with TrainingCheckpoints(tmp_path) as checkpoints:
        checkpoints.set_score(1, 0.5)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(tmp_path / "1")} == before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrainingCheckpoints(tmp_path) as checkpoints:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
            with pytest.raises(InputError, match=r"scores\.json: cannot be written \(File too large\)"):
                checkpoints.set_score(1, 0.75)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))).score == 0.5


def test_what_was_not_written_to_its_end_is_told(tmp_path):
    fill(tmp_path, [1])
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    with TrainingCheckpoints(tmp_path, is_read_only=True):
        assert half.is_dir()
    with pytest.warns(UserWarning, match=r"/2\.orbax-checkpoint-tmp: was not written to its end; it is removed"):
        opened = TrainingCheckpoints(tmp_path)
    with opened as checkpoints:
        assert checkpoints.steps == [1]
    assert not half.exists()


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("number", range(10))
def test_damage_is_noticed(tmp_path, number):
    """Whichever file is damaged: either it does not matter, or the checkpoint before is taken, with a warning."""
    fill(tmp_path, [1, 2])
    path = files_of(tmp_path / "2")[number]
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 7):
        content[position] ^= 0x55
    path.write_bytes(content)
    with TrainingCheckpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        restored = checkpoints.restore(abstract(make_state(0)))
    assert same(restored.state, make_state(restored.step))


def damage(checkpoint):
    """Change the values of a checkpoint and nothing else."""
    for path in files_of(checkpoint / "state" / "d"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_damaged_values_fall_back_and_say_so(tmp_path):
    fill(tmp_path, [1, 2])
    damage(tmp_path / "2")
    before = files_of(tmp_path / "2")
    with TrainingCheckpoints(tmp_path) as checkpoints:
        with (
            pytest.warns(UserWarning, match=r"/2: damaged or not readable, passed over"),
            pytest.warns(UserWarning, match=r"/2: damaged, kept as 2\.damaged"),
        ):
            restored = checkpoints.restore(abstract(make_state(0)))
        assert restored.step == 1
        assert checkpoints.steps == [1]
        checkpoints.save(2, make_state(2), {})
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))).step == 2
    assert len(files_of(tmp_path / "2.damaged")) == len(before)


def test_changed_notes_are_not_believed(tmp_path):
    fill(tmp_path, [1, 2])
    (notes,) = (path for path in (tmp_path / "2").rglob("*") if path.is_file() and b"data_state" in path.read_bytes())
    notes.write_text(notes.read_text().replace("kernel", "kernal"))
    with (
        TrainingCheckpoints(tmp_path) as checkpoints,
        pytest.warns(UserWarning, match=r"/2: damaged or not readable, passed over .*its notes have changed"),
        pytest.warns(UserWarning, match=r"/2: damaged, kept as 2\.damaged"),
    ):
        assert checkpoints.restore(abstract(make_state(0))).step == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"a": 1}', b'{"1": null}', b"null", b'{"1": {}}'])
def test_damaged_scores(tmp_path, content):
    fill(tmp_path, [1])
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*scores\.json: [^\n]*; delete it to go on without the scores"):
        TrainingCheckpoints(tmp_path)


def test_a_full_disk_is_an_error_in_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"large": jnp.asarray(np.random.default_rng(0).random((1024, 512)))}

    def save():
        with TrainingCheckpoints(tmp_path) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            checkpoints.save(1, large, {})

    try:
        with pytest.raises(InputError, match="a checkpoint cannot be written") as caught:
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)


def failing_load(monkeypatch, checkpoints, steps, error):
    """Let the arrays of some steps fail to load."""
    load = checkpoints._checkpointer.load_checkpointables

    def load_or_fail(step, wanted):
        if step in steps:
            raise error
        return load(step, wanted)

    monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", load_or_fail)


def test_what_could_not_be_read_once_is_kept(tmp_path, monkeypatch):
    """A disk that fails for a moment costs no checkpoint: under its old name it is as good as before."""
    fill(tmp_path, [1, 2, 3])
    (tmp_path / "3.damaged").mkdir()  # of an earlier time
    with TrainingCheckpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        failing_load(monkeypatch, checkpoints, [2, 3], OSError(errno.EIO, "Input/output error"))
        assert checkpoints.restore(abstract(make_state(0))).step == 1
    assert names_in(tmp_path) == ["1", "2.damaged", "3.damaged", "3.damaged-2"]
    (tmp_path / "3.damaged-2").rename(tmp_path / "3")
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert same(checkpoints.restore(abstract(make_state(0))).state, make_state(3))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes."),
        ExceptionGroup("two arrays", [ValueError("RESOURCE_EXHAUSTED: Out of memory")]),
    ],
)
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, error):
    fill(tmp_path, [1, 2])
    wrapped = ValueError("cannot load")
    wrapped.__cause__ = error
    with TrainingCheckpoints(tmp_path) as checkpoints:
        failing_load(monkeypatch, checkpoints, [2], wrapped)
        with pytest.raises(InputError, match=r"/2: not enough memory to read it"):
            checkpoints.restore(abstract(make_state(0)))
    assert names_in(tmp_path) == ["1", "2"]


def test_what_is_passed_over_cannot_be_renamed(tmp_path, monkeypatch):
    def refuse(path, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    fill(tmp_path, [1, 2])
    damage(tmp_path / "2")
    with TrainingCheckpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(Path, "rename", refuse)
        with (
            pytest.warns(UserWarning, match="passed over"),
            pytest.raises(InputError, match=r"/2: cannot be written \(Permission denied\)"),
        ):
            checkpoints.restore(abstract(make_state(0)))
    assert names_in(tmp_path) == ["1", "2"]


def test_no_whole_checkpoint(tmp_path):
    fill(tmp_path, [1])
    for path in files_of(tmp_path / "1" / "state"):
        path.unlink()
    with (
        TrainingCheckpoints(tmp_path) as checkpoints,
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(InputError, match="no checkpoint is whole"),
    ):
        checkpoints.restore(abstract(make_state(0)))


def test_another_architecture(tmp_path):
    fill(tmp_path, [1])
    other = make_state(0)
    other.params["layer"]["kernel"] = jnp.zeros((8, 9))
    with (
        TrainingCheckpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"another model .*params/layer/kernel \(float32\[8, 8\] in the checkpoint"),
    ):
        checkpoints.restore(abstract(other))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        TrainingCheckpoints(tmp_path / "file" / "checkpoints")


def test_reading_leaves_a_folder_as_it_is(tmp_path):
    fill(tmp_path, [1])
    fill(tmp_path, [2])
    damage(tmp_path / "2")
    before = files_of(tmp_path)
    with (
        TrainingCheckpoints(tmp_path, is_read_only=True) as checkpoints,
        pytest.warns(UserWarning, match="passed over"),
    ):
        assert checkpoints.restore(abstract(make_state(0))).step == 1
    assert files_of(tmp_path) == before


def test_checksum():
    state = make_state(3)
    assert checksum(state) == checksum(make_state(3))
    swapped = make_state(3)
    kernel = swapped.params["layer"]["kernel"]
    swapped.params["layer"]["kernel"] = kernel.at[0, 0].set(kernel[0, 1]).at[0, 1].set(kernel[0, 0])
    assert checksum(swapped) != checksum(state)
    spread = jax.device_put(state.params["layer"]["kernel"], NamedSharding(make_mesh(fsdp=8), PartitionSpec("fsdp")))
    assert checksum(spread) == checksum(state.params["layer"]["kernel"])


WRITER = """
import sys
sys.path[:0] = {folders!r}
from pathlib import Path
import logging
logging.disable()
from test_training_checkpoints import TrainingCheckpoints, make_state
with TrainingCheckpoints(Path(sys.argv[1])) as checkpoints:
    start = max(checkpoints.steps, default=0)
    for step in range(start + 1, start + 1000):
        checkpoints.save(step, make_state(step), {{"batches": step}})
        if step % 2:
            checkpoints.wait()
            checkpoints.set_score(step, 1 / step)
        if step == start + 2:
            print("ready", flush=True)
"""


@pytest.mark.slow
def test_killed_while_writing(tmp_path):
    """Killed at 8 random moments of writing; what remains is always whole."""
    rng = np.random.default_rng(0)
    last = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER.format(folders=FOLDERS), tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was not written to its end", UserWarning)
            opened = TrainingCheckpoints(tmp_path)
        with opened as checkpoints:
            restored = checkpoints.restore(abstract(make_state(0)))
            assert checkpoints.steps[0] == 1  # the best
        assert restored.step > last
        assert restored.data_state == {"batches": restored.step}
        assert same(restored.state, make_state(restored.step))
        last = restored.step


PROCESS = """
import json, logging, sys, warnings
sys.path[:0] = {folders!r}
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
folder, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{{port}}", 2, number)
logging.disable()
warnings.simplefilter("ignore")
from clipvis_jax.distributed import wait_for_all
from test_training_checkpoints import TrainingCheckpoints, abstract, damage, make_mesh, make_state
everywhere = NamedSharding(make_mesh(), PartitionSpec())
def state_of_all(step):
    put = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: np.asarray(x)[index])
    return jax.tree.map(put, make_state(step))
with TrainingCheckpoints(folder, keep_last=4) as checkpoints:
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state_of_all(step), {{}})
wait_for_all("written")
if number == 0:
    damage(folder / "4")
wait_for_all("damaged")
with TrainingCheckpoints(folder, keep_last=4) as checkpoints:
    # Process 1 cannot read the notes of step 3 and the arrays of step 2; process 0 finds both whole.
    metadata, load = checkpoints._checkpointer.metadata, checkpoints._checkpointer.load_checkpointables
    def failing_metadata(step):
        if number == 1 and step == 3:
            raise OSError("Stale file handle")
        return metadata(step)
    def failing_load(step, wanted):
        loaded = load(step, wanted)
        if number == 1 and step == 2:
            raise OSError("Stale file handle")
        return loaded
    checkpoints._checkpointer.metadata = failing_metadata
    checkpoints._checkpointer.load_checkpointables = failing_load
    restored = checkpoints.restore(abstract(state_of_all(0)))
    steps = checkpoints.steps
    checkpoints.save(2, state_of_all(7), {{}})
    checkpoints.wait()
    again = TrainingCheckpoints(folder).restore(abstract(state_of_all(0)))
    print(json.dumps([restored.step, steps, again.step, int(again.state.step)]), flush=True)
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_is_whole(tmp_path):
    """Whatever one of them cannot read all pass over, and they go on together."""
    port = free_port()
    script = PROCESS.format(folders=FOLDERS)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, str(port), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            output, error = process.communicate(timeout=300)
            assert process.returncode == 0, error.decode()
            assert json.loads(output.splitlines()[-1]) == [1, [1], 2, 7]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert names_in(tmp_path) == ["1", "2", "2.damaged", "3.damaged", "4.damaged"]
