"""Annotations of other tools, written as YouTube-VIS or COCO files with their pictures."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clipvis_jax.data.importing.coco_files import read_cvat, read_roboflow
from clipvis_jax.data.importing.cvat_xml import read_cvat_xml
from clipvis_jax.data.importing.found import Found, check_frames
from clipvis_jax.data.importing.label_studio import read_label_studio
from clipvis_jax.data.importing.mask_pictures import read_davis, read_mots
from clipvis_jax.data.importing.writing import write_found
from clipvis_jax.data.importing.yolo import read_yolo
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_folder

IMPORTERS: dict[str, Callable[[list[Path], Path | None, Counter[str]], Found]] = {
    "cvat-coco": read_cvat,
    "cvat-xml": read_cvat_xml,
    "mots": read_mots,
    "labelstudio": read_label_studio,
    "yolo-seg": read_yolo,
    "roboflow": read_roboflow,
    "davis": read_davis,
}
"""What reads each format: takes the sources, where the pictures are (None: where the format has them), and notes of
what is changed; see the functions."""


def import_annotations(
    format_: str,
    sources: list[Path],
    out: Path,
    *,
    images: Path | None = None,
    link: bool = False,
    show_progress: bool = False,
) -> list[str]:
    """Write a data set of what another tool exported; see ``writing.write_found``.

    Args:
        format_: One of ``IMPORTERS``.
        sources: Folders or files; for what is where in them, see the functions.
        out: Folder for the data set; it must not exist yet.
        images: Folder of the pictures, or the video that was annotated; None: where the format has them.
        link: Make hard links to pictures in place of copies.
        show_progress: Show a progress bar.

    Returns:
        What was written and what was changed, line by line.

    Raises:
        InputError: A source or picture cannot be used, or the folder exists or cannot be written; nothing was written.
    """
    if images is not None and not images.exists():
        raise InputError(f"{images}: does not exist; give the folder of the pictures, or the video")
    notes: Counter[str] = Counter()
    with atomic_folder(out) as folder:
        found = IMPORTERS[format_](sources, images, notes)
        first = found.videos[0].frames[0] if found.videos else None
        if first is not None and first.number is not None and first.path == images and len(found.videos) > 1:
            raise InputError(f"{images}: is one video, but the source has {len(found.videos)}; import each by itself")
        check_frames(found)
        counts = write_found(found, folder, link=link, show_progress=show_progress)
    written = [f"wrote {out / name}: {text}" for name, text in counts.items()]
    return written + [f"{note}: {count}" for note, count in notes.items()]
