"""The log of a run: what TensorBoard reads, and disks that are full."""

import errno
import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from clipvis_jax.errors import InputError
from clipvis_jax.loop.log import TrainingLog, read_log
from clipvis_jax.loop.run_folder import changed_settings

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def event_files(workdir):
    return sorted((workdir / "tensorboard").iterdir())


def read_events(path):
    """Read a file of events; how records are framed is compared with tensorboardX elsewhere."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def shown(workdir):
    """What TensorBoard shows: a new session hides events of its first step and later ones that came before it."""
    values = []
    for event in (event for path in event_files(workdir) for event in read_events(path)):
        if event.session_log.status == SessionLog.START:
            values = [value for value in values if value[0] < event.step]
        values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return values


def test_tensorboards_files(tmp_path):
    """Byte for byte what tensorboardX makes of the same events."""
    with TrainingLog(tmp_path, first_step=0) as log:
        log.write(1, {"loss/mask/3": 0.5, "seconds/total": 2.0})
        log.picture(1, "predictions", PICTURE)
    (path,) = event_files(tmp_path)
    assert path.name.startswith("events.out.tfevents.")
    events = read_events(path)
    assert events[0].file_version == "brain.Event:2"
    assert [(value.tag, value.simple_value) for value in events[2].summary.value] == [
        ("loss/mask/3", 0.5),
        ("seconds/total", 2.0),
    ]
    assert (events[3].summary.value[0].image.height, events[3].summary.value[0].image.width) == (4, 4)
    assert all(event.wall_time > 1.7e9 for event in events)
    writer = RecordWriter(str(tmp_path / "again"))
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_a_resumed_run_keeps_its_last_step(tmp_path):
    """What was logged at the step of the checkpoint, such as its score, stays; later steps come again."""
    with TrainingLog(tmp_path, first_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
        log.write(2, {"evaluation/AP": 0.5})
    with TrainingLog(tmp_path, first_step=2) as log:
        log.write(3, {"loss": 9.0})
    assert shown(tmp_path) == [(1, "loss", 1.0), (2, "loss", 2.0), (2, "evaluation/AP", 0.5), (3, "loss", 9.0)]
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 2, 3]


def test_events_are_on_the_disk_at_once(tmp_path):
    with TrainingLog(tmp_path, first_step=0) as log:
        log.write(1, {"loss": 1.0})
        assert shown(tmp_path) == [(1, "loss", 1.0)]


@pytest.fixture
def small_files():
    """Make files of more than some bytes impossible."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("num_before", "file"), [(0, r"events\.out\.tfevents\S*"), (2900, r"log\.jsonl")])
def test_full_disk(tmp_path, small_files, num_before, file):
    """The run ends with one line, whichever file is full first; it does not wait for a thread that is no more."""

    def run():
        with TrainingLog(tmp_path, first_step=0) as log:
            small_files(3000)
            for step in range(1, 1000):
                log.write(step, {"n": 1.0})

    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 0, "text": "x" * num_before}) + "\n")
    with pytest.raises(InputError, match=rf"{file}: cannot be written \(File too large\); [^\n]*$"):
        run()
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(len(records)))


def test_full_disk_of_a_picture(tmp_path, small_files):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with TrainingLog(tmp_path, first_step=0) as log:
        small_files(200)
        with pytest.raises(InputError, match=r"name_0000001\.png: cannot be written"):
            log.picture(1, "name", picture)


def test_a_disk_that_is_full_from_the_start(tmp_path, small_files):
    small_files(10)
    with pytest.raises(InputError, match=r"events\.out\.tfevents\S*: cannot be written"):
        TrainingLog(tmp_path, first_step=0)


class FullWhenClosed:
    """A file whose disk says only at the end that it is full."""

    def __init__(self, file):
        self._file = file
        self.write = file.write

    def close(self):
        self._file.close()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_when_closed(monkeypatch):
    open_file = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **options: FullWhenClosed(open_file(path, *args, **options)))


def test_a_disk_that_is_full_at_the_end(tmp_path, full_when_closed):
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        TrainingLog(tmp_path, first_step=0).close()


def test_closing_hides_no_earlier_error(tmp_path, full_when_closed):
    with pytest.raises(KeyboardInterrupt), TrainingLog(tmp_path, first_step=0):
        raise KeyboardInterrupt


def test_a_log_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "log.jsonl").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be written \(Permission denied\)"):
        TrainingLog(tmp_path, first_step=0)


@pytest.mark.parametrize("line", ["5", "[]", "null", "{", "", '{"loss": 1.0}', '{"step": {}}', "[" * 10_000])
def test_damaged_line(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(InputError, match=r"^[^\n]*log\.jsonl: line 2[^\n]*; delete the line$"):
        TrainingLog(tmp_path, first_step=1)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '{"changed_settings": [[]]}', '{"changed_settings": 5}'])
def test_damaged_note_of_a_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*run\.json: [^\n]*; delete it to go on all the same$"):
        changed_settings(tmp_path, {})
