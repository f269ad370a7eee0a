"""Model folders as single files, to be handed on: zip archives whose files are stored as they are."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

from clipvis_jax.errors import InputError, first_line
from clipvis_jax.io.files import atomic_folder, atomic_path, cache_folder, prepare_output_dir

SUFFIX = ".zip"
_MEMBER = re.compile(
    r"(config\.json|manifest\.json|model\.safetensors|(tokenizer|variables)(/(?!\.\.?(/|$))[\w.-]+)+)", re.ASCII
)
"""The files of a model folder, also of one from the hub: no path of them leads out of it."""
_MOST_MEMBERS = 10_000
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of all files, so that the same folder gives the same bytes."""


def pack(folder: Path, archive: Path) -> None:
    """Write a model folder as an archive, whole or not at all; what does not belong to the model is left out.

    Raises:
        InputError: It cannot be written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
        for name in filter(_MEMBER.fullmatch, names):
            member = zipfile.ZipInfo(name, _TIME)
            member.file_size = (folder / name).stat().st_size  # by which zipfile chooses the form for large files
            member.external_attr = 0o644 << 16
            with (folder / name).open("rb") as source, packed.open(member, "w") as target:
                shutil.copyfileobj(source, target)


def unpack(archive: Path) -> Path:
    """Unpack an archive in the cache folder, unless it was before; returns the model folder there.

    The archive's checksum is the folder's name.

    Raises:
        InputError: Not an archive of ``pack``, a damaged one, or the cache folder cannot be written.
    """
    try:
        with archive.open("rb") as file:
            folder = cache_folder() / "models" / hashlib.file_digest(file, "sha256").hexdigest()
            if folder.is_dir():
                return folder
            with zipfile.ZipFile(file) as packed:
                members = packed.infolist()
                _check(members, file.seek(0, 2))
                prepare_output_dir(folder.parent)
                with atomic_folder(folder) as temporary:
                    for member in members:
                        target = temporary / member.filename
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with packed.open(member) as source, target.open("xb") as copy:
                            shutil.copyfileobj(source, copy)
    except InputError as error:
        if folder.is_dir():  # another process was quicker
            return folder
        raise InputError(f"{archive}: {error}") from error
    except Exception as error:  # whatever broken bytes lead zipfile to
        raise InputError(
            f"{archive}: not a whole archive of 'clipvis pack' ({first_line(error)}); pack the model folder again"
        ) from error
    return folder


def _check(members: list[zipfile.ZipInfo], num_bytes: int) -> None:
    """Refuse archives that ``pack`` does not write, before anything is written: what they unpack to knows no bounds.

    Raises:
        InputError: The archive is one of these.
    """
    for member in members:
        if not _MEMBER.fullmatch(member.filename):
            raise InputError(f"holds {member.filename!r}, no file of a model; make it with 'clipvis pack'")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(f"{member.filename} is compressed or encrypted; make it with 'clipvis pack'")
    if len({member.filename.lower() for member in members}) < len(members) or len(members) > _MOST_MEMBERS:
        raise InputError("holds a file twice, or too many; make it with 'clipvis pack'")
    if sum(member.file_size for member in members) > num_bytes:
        raise InputError("its files overlap; make it with 'clipvis pack'")
