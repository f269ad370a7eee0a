"""Two real processes that train a toy task together, found through SLURM's variables; one of them is told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from free_port import free_port
from training_processes import finish_all as finish

from clipvis_jax.commands.interrupt import STOPPED
from clipvis_jax.distributed import DistributedConfig, start_processes, wait_for_all
from clipvis_jax.errors import InputError
from clipvis_jax.loop.log import read_log

SLURM_PORTS = range(61440, 65536)
"""JAX makes the port of process 0 of the number of the job: the first of these plus its remainder by 4096."""

NUM_STEPS = 400

# Each device adds to its own number what all of them have; so a step needs the other process.
PROCESS = """
import json, logging, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from clipvis_jax.distributed import DistributedConfig, largest_of_all, start_processes, wait_for_all
from clipvis_jax.errors import InputError
from clipvis_jax.loop.loop import LoopConfig, train
from clipvis_jax.loop.sharding import make_mesh
from test_training_loop import ToyTask
folder, seconds_per_step = Path(sys.argv[1]), float(sys.argv[2])
try:
    start_processes(DistributedConfig(auto=True))
except InputError as error:
    sys.exit(str(error))
logging.disable()
mesh = make_mesh()
cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((mesh.axis_names,), ()))
def step(state, batch):
    value = state["value"] + 0.01 * jnp.sin(batch + state["value"]).mean()
    return {{"value": value, "seen": state["seen"] + 1}}, {{"loss": value.sum(), "step": state["seen"] + 1}}
step = jax.jit(step, out_shardings=({{"value": cut, "seen": whole}}, whole))
class SharedTask(ToyTask):
    def init_state(self):
        start = np.linspace(0, 1, mesh.size, dtype=np.float32)
        value = jax.make_array_from_callback(start.shape, cut, lambda index: start[index])
        return {{"value": value, "seen": jax.device_put(jnp.int32(0), whole)}}
    def put(self, batch):
        return batch
    def step(self, state, batch):
        time.sleep(seconds_per_step)
        self.batches.append(int(batch))
        return step(state, batch)
    def export(self, state, folder, source):
        self.exported = b"".join(np.asarray(shard.data).tobytes() for shard in state["value"].addressable_shards).hex()
task = SharedTask({num_steps})
number, largest = jax.process_index(), largest_of_all(10 * (jax.process_index() + 1))
time.sleep(0.5 * number)
began = time.time()
wait_for_all("toy step")
ended = time.time()
is_complete = train(task, LoopConfig(log_every=1, checkpoint_every=0), folder, show_progress=False)
place = {{"count": jax.process_count(), "index": number, "largest": largest, "devices": jax.device_count()}}
place |= {{"began": began, "ended": ended}}
run = {{"is_complete": is_complete, "first": task.batches[0], "last": task.batches[-1], "result": task.exported}}
print(json.dumps(place | run), flush=True)
"""


def start(folder, *, seconds_per_step=0, **surroundings):
    job = ("SLURM_", "OMPI_", "JAX_")  # that the tests themselves may be part of
    environment = {name: value for name, value in os.environ.items() if not name.startswith(job)}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"} | surroundings
    script = PROCESS.format(tests=str(Path(__file__).parent), num_steps=NUM_STEPS)
    command = [sys.executable, "-c", script, folder, str(seconds_per_step)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(folder, **options):
    """Start two processes as ``srun --ntasks 2`` does; returns what to wait for."""
    job_id = 3 * len(SLURM_PORTS) + free_port(SLURM_PORTS) - SLURM_PORTS[0]
    job = {"SLURM_JOB_ID": str(job_id), "SLURM_STEP_NODELIST": "localhost,other", "SLURM_NTASKS": "2"}
    return [start(folder, **options, **job, SLURM_PROCID=str(number), SLURM_LOCALID=str(number)) for number in range(2)]


def results_of(processes):
    return [json.loads(output.splitlines()[-1]) for output, _ in finish(*processes)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What both processes say after a training that nothing stopped."""
    return results_of(start_two(tmp_path_factory.mktemp("whole")))


@pytest.mark.slow
def test_processes_find_each_other_by_slurm(whole):
    for number, said in enumerate(whole):
        assert {name: said[name] for name in ("count", "index", "largest", "devices")} == {
            "count": 2,
            "index": number,
            "largest": 20,
            "devices": 4,
        }


@pytest.mark.slow
def test_nobody_goes_on_before_all_have_compiled(whole):
    assert max(said["began"] for said in whole) <= min(said["ended"] for said in whole)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(whole, tmp_path):
    """First to process 1, then to process 0; the rest is done as if nothing had happened."""
    last = 0
    for number in (1, 0):
        processes = start_two(tmp_path, seconds_per_step=0.1)
        deadline = time.monotonic() + 200
        while len(read_log(tmp_path)) < last + 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[number].send_signal(signal.SIGTERM)
        stopped = results_of(processes)
        assert [said["first"] for said in stopped] == [last + 1] * 2
        last = stopped[0]["last"]
        assert [(said["is_complete"], said["last"], said["result"]) for said in stopped] == [(False, last, None)] * 2
        assert last < NUM_STEPS
        assert (tmp_path / "checkpoints" / str(last)).is_dir()
    finished = results_of(start_two(tmp_path))
    assert [(said["is_complete"], said["first"]) for said in finished] == [(True, last + 1)] * 2
    assert [said["result"] for said in finished] == [said["result"] for said in whole]
    assert [record["step"] for record in read_log(tmp_path)] == list(range(1, NUM_STEPS + 1))


ENDING = """
import sys, time
from clipvis_jax.distributed import DistributedConfig, end_all, largest_of_all, start_processes, wait_for_all
number, failing = int(sys.argv[2]), int(sys.argv[3])
start_processes(DistributedConfig(coordinator=sys.argv[1], num_processes=3, process_id=number))
print(largest_of_all(number), flush=True)
try:
    if number != failing:
        wait_for_all("never")
    raise ValueError("no more data")
except ValueError as error:
    end_all(str(error), 7, "says it itself" if failing else None)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_all(failing):
    address = f"localhost:{free_port()}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING, address, str(number), str(failing)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [7 if number == failing else 2 for number in range(3)]
    assert [output for output, _ in said] == ["2\n"] * 3
    last = [error.splitlines()[-1] for _, error in said]
    assert last.pop(failing) == ("says it itself" if failing else "ValueError: no more data")
    assert last == [f"clipvis: error: process {failing}: no more data"] * 2


STOPPING = """
import sys
from threading import Event
import jax
from clipvis_jax import distributed
from clipvis_jax.commands.interrupt import stopping_at_once
class Coordinator:
    def __init__(self, failures):
        self.failures = failures
    def key_value_set(self, key, value):
        assert key == "clipvis/error/first" and value == "0 130 stopped", (key, value)
    def key_value_dir_get(self, folder):
        return self.failures if folder == "clipvis/error/" else []
coordinator = Coordinator([("clipvis/error/first", sys.argv[1])] if sys.argv[1:] else [])
jax.process_count, jax.process_index, distributed._coordinator = lambda: 2, lambda: 0, lambda: coordinator
distributed._FAREWELL_S = 0 if sys.argv[1:] else 3600
with stopping_at_once():
    distributed._watch_others()
    print("ready", file=sys.stderr, flush=True)
    while True:
        Event().wait(0.1)
"""


def start_stopping(*failure):
    return subprocess.Popen([sys.executable, "-c", STOPPING, *failure], stderr=subprocess.PIPE, text=True)


def test_a_second_ctrl_c_does_not_wait_for_the_others():
    process = start_stopping()
    for line in ("ready", STOPPED):
        assert f"{line}\n" in iter(process.stderr.readline, "")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    finish(process, expected_code=130)


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        ("1 130 stopped", 130, "clipvis: process 1: stopped"),
        ("1 1 no more data", 2, "clipvis: error: process 1: no more data"),
    ],
)
def test_what_another_process_says_decides_the_exit_code(failure, code, line):
    ((_, error),) = finish(start_stopping(failure), expected_code=code)
    assert error.splitlines()[-1] == line


def test_processes_that_meet_at_different_points(monkeypatch):
    class Coordinator:
        @staticmethod
        def key_value_set(key, value):
            """Process 1 has its own."""

        @staticmethod
        def key_value_dir_get(folder):
            return [(f"{folder}0", '["scored", "here"]'), (f"{folder}1", '["predicted", "here"]')]

    monkeypatch.setattr("clipvis_jax.distributed._coordinator", Coordinator)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(InputError, match=r"^distributed: process 1 is at 'predicted', and process 0 at 'scored'"):
        wait_for_all("scored")


def test_nothing_is_recognised(tmp_path):
    _, error = finish(start(tmp_path), expected_code=1)[0]
    assert error.count("\n") == 1
    assert error.startswith("distributed: the processes did not find each other (coordinator_address should be")
    assert error.endswith("give the coordinator instead\n")


@pytest.mark.parametrize("coordinator", ["localhost", "localhost:", "localhost:http", ":1", "localhost:65536", "::1:1"])
def test_an_address_without_a_port(coordinator):
    with pytest.raises(InputError, match=f"^distributed.coordinator {coordinator}: give HOST:PORT of process 0$"):
        DistributedConfig(coordinator=coordinator, num_processes=2, process_id=0)


@pytest.fixture
def joined(monkeypatch):
    """What JAX is told to join, which nobody does."""
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *given: joined.append(given))
    return joined


@pytest.fixture
def port():
    """A socket that nobody can connect to before it listens."""
    with socket.socket() as port:
        port.bind(("localhost", 0))
        port.settimeout(10)
        yield port


def test_process_0_does_not_answer(joined, port, monkeypatch):
    monkeypatch.setattr("clipvis_jax.distributed._PATIENCE_S", 0)
    address = f"localhost:{port.getsockname()[1]}"
    reason = r"process 0 does not answer there \(Connection refused\); start it, or check the address"
    with pytest.raises(InputError, match=f"^distributed.coordinator {address}: {reason}$"):
        start_processes(DistributedConfig(coordinator=address, num_processes=2, process_id=1))
    assert joined == []


def test_process_0_may_come_later(joined, port):
    address = f"localhost:{port.getsockname()[1]}"
    timer = threading.Timer(0.2, port.listen)
    timer.start()
    start_processes(DistributedConfig(coordinator=address, num_processes=2, process_id=1))
    timer.join()
    assert joined == [(address, 2, 1)]
    port.accept()[0].close()  # it was tried
