"""Write files so that a crash, a full disk or Ctrl-C never leaves half of one behind; the cache folder."""

import ctypes
import errno
import functools
import os
import re
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipvis_jax.errors import InputError

_ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EFBIG: "raise the file size limit or write to another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}
NPZ_ERRORS = (
    *(OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, RecursionError, NotImplementedError),
    *(OverflowError, MemoryError, zipfile.BadZipFile, zlib.error),
)
"""What numpy, zipfile and json raise of .npz files that hold something else."""


def output_error(path: str | Path, error: OSError) -> InputError:
    """Say in one line why `path` cannot be written and what to do about it."""
    advice = _ADVICE.get(error.errno or 0, "choose another path")
    return InputError(f"{path}: cannot be written ({error.strerror or error}); {advice}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path` when the block ends well.

    The temporary file lies in the same folder (a rename is atomic only within a file system), is hidden and
    keeps the suffix (writers such as `np.savez` go by it). It exists already when the block starts, so that a
    folder that cannot be written to is noticed before the work and not after it. It is removed on every
    exception, Ctrl-C included; an older file at `path` then stays as it was. A link at `path` is followed.

    Raises:
        InputError: the file cannot be written (no space, no permission, no such folder, not a regular file).
    """
    target = Path(path).resolve()
    temporary = target.with_name(_temporary_name(target.parent) + target.suffix)
    try:
        if target.exists() and not target.is_file():
            # Renaming would also replace a device such as /dev/null.
            raise InputError(f"{path}: exists and is not a regular file; choose another path")
        # Not tempfile.mkstemp, whose files only their owner may read, whatever the umask says.
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        # The block may also fail on a file that it reads; that is not for this message.
        if error.filename is None or Path(os.fsdecode(error.filename)) in (temporary, target):
            raise output_error(path, error) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well; otherwise it is removed.

    Raises:
        InputError: Something is at `path` already, or nothing can be written there.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise InputError(f"{path}: exists already; choose another folder, or remove it")
    temporary = target.with_name(_temporary_name(target.parent))
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    except OSError as error:
        # The block may also fail on a file that it reads; that is not for this message.
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            raise output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing_together(folder: Path, last: str, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Give a temporary folder whose files move to `folder` when the block ends well, all of them or none.

    Of the names that it `replaces`, files of an earlier block go, also where this one has written none.

    No system moves several files in one step: while they move, or if the process is killed just then, `last` is
    missing. Where it is there, everything beside it is of the same block.

    Raises:
        InputError: A file cannot be written; the message names it as if it were in `folder` already.
    """
    stage = folder / _temporary_name(folder)
    try:
        stage.mkdir()
        yield stage
        written = {path.name for path in stage.iterdir()}
        # Without the last file the others are the user's own.
        outdated = set(replaces) - written if (folder / last).exists() else set()
        for name in written | outdated:
            target = (folder / name).resolve()
            if target.exists() and not target.is_file():
                raise InputError(f"{folder / name}: exists and is not a regular file; choose another path")
        (folder / last).resolve().unlink(missing_ok=True)
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
            target = (folder / path.name).resolve()
            try:
                path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise output_error(target, error) from error
                with atomic_path(target) as temporary:  # a link to another file system
                    shutil.copyfile(path, temporary)
    except InputError as error:
        raise InputError(str(error).replace(str(stage), str(folder))) from error
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == stage:
            raise output_error(folder / last, error) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change places in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchanged = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchanged) == 0


def _temporary_name(folder: Path) -> str:
    """Return a name for what is being written in a folder; what killed processes left there is removed first."""
    _remove_dead(folder)
    return f".clipvis-{_mark(os.getpid())}-{secrets.token_hex(4)}"


def _mark(pid: str | int) -> str:
    """Tell a running process from all others, past ones included; where the system does not, nothing."""
    with suppress(OSError, IndexError):
        start = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}.{pid}.{start}"
    return ""


@functools.cache
def _remove_dead(folder: Path) -> None:
    own = _mark(os.getpid()).split(".")
    try:
        paths = [path for path in folder.iterdir() if path.name.startswith(".clipvis-")]
    except OSError:
        return
    for path in paths:
        mark = path.name.split("-")[1].split(".")
        with suppress(OSError):
            # Of another machine, another container or another user nobody knows here whether they run.
            if len(mark) != 4 or mark[:2] != own[:2] or path.lstat().st_uid != os.getuid():
                continue
            now = _mark(mark[2])
            if now != ".".join(mark) if now else not Path("/proc", mark[2]).exists():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for the user alone among the system's temporary ones, which is removed when the block ends.

    What killed processes left is removed by the next block.

    Raises:
        InputError: The folder cannot be made.
    """
    parent = Path(tempfile.gettempdir()).resolve()
    folder = parent / _temporary_name(parent)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise output_error(parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, as UTF-8, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def prepare_output_dir(path: str | Path) -> Path:
    """Create a folder for outputs, with its parents, and make sure that files can be written there.

    Raises:
        InputError: `path` is a file or an address such as gs://..., or nothing can be written there.
    """
    folder = Path(path)
    if re.match("[a-z][a-z0-9]+:/", str(path)):  # a Path has only one slash left of two
        raise InputError(f"{path}: is an address, but a folder is needed; mount it, and give the folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits say little (root, read-only mounts, quotas): only writing tells.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except FileExistsError as error:
        raise InputError(f"{path}: is a file, but a folder is needed; choose another path") from error
    except OSError as error:
        raise output_error(path, error) from error
    return folder


def cache_folder() -> Path:
    """Return the folder for what can be had again: class embeddings, compiled programs, copies of remote files.

    ``CLIPVIS_CACHE`` names it; otherwise it lies in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``). A
    user without a home, as in containers with any uid, has one that goes with the process.
    """
    if folder := os.environ.get("CLIPVIS_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipvis_jax"
    except RuntimeError:
        return Path(_passing_folder().name)


@functools.cache
def _passing_folder() -> tempfile.TemporaryDirectory:
    # Not a fixed place that all users can write to: compiled programs are loaded from a cache.
    return tempfile.TemporaryDirectory(prefix="clipvis-cache-")
