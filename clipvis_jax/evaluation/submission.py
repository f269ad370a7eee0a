"""The archive that evaluation servers take: results.json at the root of a zip."""

import zipfile
from pathlib import Path

from clipvis_jax.errors import InputError
from clipvis_jax.files import atomic_path

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""A fixed time, so that the same results give the same archive."""


def write_submission(path: Path, results: Path, *, max_megabytes: float | None = None) -> None:
    """Compress a results file for an evaluation server.

    Args:
        path: The archive to write.
        results: Results in YouTube-VIS format.
        max_megabytes: The server's limit, in units of 10**6 bytes; None if there is none.

    Raises:
        InputError: The archive is larger than the server takes (none is left then), or cannot be written.
    """
    with atomic_path(path) as temporary:
        entry = zipfile.ZipInfo("results.json", _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        with (
            zipfile.ZipFile(temporary, "w", compresslevel=9) as archive,
            results.open("rb") as source,
            archive.open(entry, "w", force_zip64=True) as target,
        ):
            while block := source.read(1 << 20):
                target.write(block)
        size = temporary.stat().st_size / 1e6
        if max_megabytes is not None and size > max_megabytes:
            raise InputError(
                f"{path}: would have {size:.1f} MB, but the server takes {max_megabytes:g} MB; "
                "lower --top-k, or raise --max-zip-mb if the server takes more"
            )
