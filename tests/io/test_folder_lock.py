"""One process at a time in a folder, however the one before ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.io.folder_lock import locked_folder

HOLD = """
import sys
from clipvis_jax.io.folder_lock import locked_folder
with locked_folder(sys.argv[1], who="another run"):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        message = "another run is at work there; wait for it, or choose another folder"
        with pytest.raises(InputError, match=rf"^{folder}: {message}$"), locked_folder(folder, who="another run"):
            pytest.fail("two at once")
        first.send_signal(signal.SIGKILL)
        first.wait()
    # What the killed process left behind does not matter, and is locked again.
    for _ in range(2):
        with (
            locked_folder(folder, who="another run"),
            pytest.raises(InputError, match="at work"),
            locked_folder(folder, who="another run"),
        ):
            pytest.fail("two at once")
    assert [path.name for path in folder.iterdir()] == ["lock"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_errors_of_the_work_pass_and_release_the_lock(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="work"), locked_folder(tmp_path, who="another run"):
        raise error("work")
    with locked_folder(tmp_path, who="another run"):
        pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(InputError, match=r"lock: cannot be written \(Is a directory\); "):
        locked_folder(tmp_path, who="another run").__enter__()
    with pytest.raises(InputError, match="is a file, but a folder is needed"):
        locked_folder(Path(__file__), who="another run").__enter__()
