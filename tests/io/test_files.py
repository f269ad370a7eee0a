import ast
import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.io import files
from clipvis_jax.io.files import (
    atomic_path,
    cache_folder,
    output_error,
    prepare_output_dir,
    write_text,
    writing_together,
)


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_changes_when_the_block_fails(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "tracks.json"
    path.write_text("old")
    with pytest.raises(failure), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.touch()
    with atomic_path(atomic):
        pass
    assert atomic.stat().st_mode == plain.stat().st_mode


def test_a_link_keeps_pointing_to_the_file(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "target.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("make_path", "message"),
    [
        (lambda folder: folder / "missing" / "out.txt", "create its folder first"),
        (lambda folder: folder / "file" / "out.txt", "a part of the path is a file"),
        (lambda folder: folder / ("n" * 300), "choose a shorter name"),
        (lambda folder: folder, "not a regular file"),
        (lambda _: Path("/dev/null"), "not a regular file"),
    ],
)
def test_a_bad_path_is_refused_before_the_work(tmp_path: Path, make_path, message: str) -> None:
    (tmp_path / "file").touch()
    path = make_path(tmp_path)
    with pytest.raises(InputError, match=message) as caught, atomic_path(path):
        pytest.fail("the block was entered")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert Path("/dev/null").is_char_device()


def test_a_write_that_fails_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match=r"out\.txt: cannot be written"), atomic_path(path) as temporary:
            temporary.write_bytes(bytes(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    no_space = pytest.raises(InputError, match=r"\(No space left on device\); free some space")
    with no_space, atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8_whatever_the_locale_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    write_text(path, "— 猫\n")
    assert path.read_bytes() == "— 猫\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_bytes() == "— 猫\n".encode()


def without_encoding(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if call.func.attr == "open":
        mode = call.args[0] if call.args else ast.Constant("r")
        return isinstance(mode, ast.Constant) and re.fullmatch(r"[rwax]\+?", str(mode.value)) is not None
    return call.func.attr in ("read_text", "write_text")


def test_every_text_names_its_encoding() -> None:
    """Ruff's rule (PLW1514) sees only paths whose type is plain."""
    package = Path(__file__).parents[2] / "clipvis_jax"
    assert without_encoding(ast.parse("(folder / name).write_text(text)", mode="eval").body)
    assert [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Call) and without_encoding(node)
    ] == []


def test_an_error_of_another_file_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"other\.txt"), atomic_path(tmp_path / "out.txt"):
        (tmp_path / "other.txt").read_text()
    assert list(tmp_path.iterdir()) == []


def test_every_message_is_one_line_with_advice() -> None:
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EIO):
        message = str(output_error("out.txt", OSError(number, "Reason")))
        assert message.startswith("out.txt: cannot be written (Reason); ")
        assert "\n" not in message


def test_a_folder_is_created_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = prepare_output_dir(str(tmp_path / "a" / "b"))
    assert folder == prepare_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_file_is_not_an_output_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file, but a folder is needed"):
        prepare_output_dir(file)
    with pytest.raises(InputError, match="a part of the path is a file"):
        prepare_output_dir(file / "folder")


def test_a_folder_that_cannot_be_written_to_is_refused() -> None:
    # Not even root can create a file here.
    with pytest.raises(InputError, match="/proc/self/fdinfo: cannot be written"):
        prepare_output_dir("/proc/self/fdinfo")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_folder(address, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"bucket/run: is an address, but a folder is needed; mount it"):
        prepare_output_dir(kind(address))
    assert list(tmp_path.iterdir()) == []


def test_the_cache_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_user() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CLIPVIS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "clipvis_jax"
    monkeypatch.setattr(Path, "home", unknown_user)
    folder = cache_folder()
    assert folder == cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "clipvis_jax"


def test_files_of_an_earlier_run_go_with_it(tmp_path):
    (tmp_path / "overlay").write_text("the user's own")
    for content in ("first", "second"):
        with writing_together(tmp_path, "tracks", replaces=("overlay", "raw")) as stage:
            (stage / "tracks").write_text(content)
            if content == "first":
                (stage / "raw").write_text(content)
        assert (tmp_path / "overlay").exists() == (content == "first")
    assert [path.name for path in tmp_path.iterdir()] == ["tracks"]


def write_together(folder, *names):
    with writing_together(folder, "tracks") as stage:
        for name in names:
            (stage / name).touch()


def test_what_is_no_file_is_not_replaced_and_nothing_lost(tmp_path):
    (tmp_path / "tracks").write_text("first")
    (tmp_path / "overlay").mkdir()
    message = f"{tmp_path / 'overlay'}: exists and is not a regular file; choose another path"
    with pytest.raises(InputError, match=f"^{message}$"):
        write_together(tmp_path, "tracks", "overlay")
    assert (tmp_path / "tracks").read_text() == "first"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "tracks").unlink()
    (tmp_path / "tracks").symlink_to("pipe")
    with pytest.raises(InputError, match="tracks: exists and is not"):
        write_together(tmp_path, "tracks")
    assert (tmp_path / "pipe").is_fifo()


KILLED = """
import os, signal, sys
from pathlib import Path
from clipvis_jax.io.files import atomic_path, writing_together
with atomic_path(Path(sys.argv[1]) / "one.bin"), writing_together(Path(sys.argv[1]), "two") as stage:
    (stage / "two").touch()
    if len(sys.argv) > 2:
        print("ready", flush=True)
        sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_a_killed_process_left_is_removed(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    command = [sys.executable, "-c", KILLED, tmp_path, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        running = set(tmp_path.iterdir())
        assert not running.intersection(left)
        write_text(tmp_path / "text", "x")
        assert set(tmp_path.iterdir()) == running | {tmp_path / "text"}
        other.communicate("\n")
    (tmp_path / ".clipvis-notes").touch()  # not ours
    files._remove_dead.cache_clear()
    write_text(tmp_path / "text", "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".clipvis-notes", "text"]
