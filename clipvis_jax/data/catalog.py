"""Data sets by name: where their files lie and what is known of them; and drawn ones."""

import dataclasses
import difflib
from pathlib import Path

from clipvis_jax.data.dataset_info import DatasetInfo, Server
from clipvis_jax.data.formats import BURST, COCO, YOUTUBE_VIS, Format
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.data.records import Dataset
from clipvis_jax.data.shapes.dataset import ShapesDataset, shapes_info
from clipvis_jax.data.shapes.splits import SPLITS, ShapesConfig
from clipvis_jax.data.shapes.writing import split_of_file
from clipvis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """A known data set.

    Attributes:
        name: What the command line calls it.
        format: The format of its annotation file.
        annotations: Where that file may lie below the data root; the first that exists is used.
        images: The folders that its images may lie in, likewise.
        info: What is known of it.
        drop_frequencies: Instances of classes with these frequencies are left out.
    """

    name: str
    format: Format
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    info: DatasetInfo
    drop_frequencies: tuple[str, ...] = ()


_ANNOTATIONS = ("annotations.json", "instances.json")
"""What the annotation file of a data set that is given as a folder is called."""

_CODALAB = "https://codalab.lisn.upsaclay.fr/competitions"
_YTVIS19_SERVER = Server("CodaLab YouTube-VIS 2019", f"{_CODALAB}/6064")
_YTVIS21_SERVER = Server("CodaLab YouTube-VIS 2021", f"{_CODALAB}/7680")
_OVIS_SERVER = Server("CodaLab OVIS", f"{_CODALAB}/4763")
_LVVIS_SERVER = Server("Codabench LV-VIS", "https://www.codabench.org/competitions/1748/")

# There is no official split. The authors' script tells novel classes by a list of words that broke names at spaces,
# so that earless_seal and flying_disc count as base there.
_YTVIS19_EFFECTIVE = ("sedan", "ape", "snake", "hand", "leopard", "fox")
_YTVIS21_EFFECTIVE = ("fox", "leopard", "snake", "whale")
_YTVIS19_NOVEL = (*_YTVIS19_EFFECTIVE, "earless_seal")
_YTVIS21_NOVEL = (*_YTVIS21_EFFECTIVE, "earless_seal", "flying_disc")


def _ytvis(year: str, split: str) -> CatalogEntry:
    folder = f"ytvis20{year}"
    return CatalogEntry(
        f"ytvis{year}_{split}",
        YOUTUBE_VIS,
        (f"{folder}/{split}.json", f"{folder}/{split}/instances.json"),
        (f"{folder}/{split}/JPEGImages", f"{folder}/{split}"),
        DatasetInfo(
            protocol="ytvis",
            server=None if split == "train" else _YTVIS19_SERVER if year == "19" else _YTVIS21_SERVER,
            published_as=f"ytvis{year}" if split == "valid" else None,
            novel_names=_YTVIS19_NOVEL if year == "19" else _YTVIS21_NOVEL,
            authors_novel_names=_YTVIS19_EFFECTIVE if year == "19" else _YTVIS21_EFFECTIVE,
        ),
    )


def _ovis(split: str) -> CatalogEntry:
    return CatalogEntry(
        f"ovis_{split}",
        YOUTUBE_VIS,
        (f"ovis/annotations_{split}.json", f"ovis/annotations/{split}.json", f"ovis/{split}.json"),
        (f"ovis/{split}/JPEGImages", f"ovis/{split}"),
        DatasetInfo(
            protocol="ytvis",
            server=None if split == "train" else _OVIS_SERVER,
            published_as="ovis" if split == "valid" else None,
        ),
    )


def _lvvis(split: str, *files: str) -> CatalogEntry:
    return CatalogEntry(
        f"lvvis_{split}",
        YOUTUBE_VIS,
        tuple(f"lvvis/{split}/{file}" for file in files),
        (f"lvvis/{split}/JPEGImages",),
        DatasetInfo(
            protocol="lvvis",
            server=_LVVIS_SERVER if split == "test" else None,
            published_as=None if split == "train" else f"lvvis_{split}",
        ),
    )


def _burst(split: str, *files: str, is_converted: bool = False) -> CatalogEntry:
    return CatalogEntry(
        f"burst_{split}_converted" if is_converted else f"burst_{split}",
        YOUTUBE_VIS if is_converted else BURST,
        files,
        (f"burst/frames/{split}", f"burst/{split}"),
        DatasetInfo(
            # The authors' protocol needs fields that only their conversion writes. BURST's own is another kind of
            # score (``evaluation.burst_official``), so of those here none is official.
            protocol="burst_clipvis" if is_converted else None,
            published_as="burst" if split == "val" else None,
        ),
    )


def _lvis(name: str, split: str, drop_frequencies: tuple[str, ...] = ()) -> CatalogEntry:
    info = DatasetInfo(media="images", protocol="lvis")
    return CatalogEntry(name, COCO, (f"lvis/lvis_v1_{split}.json",), ("coco",), info, drop_frequencies)


def _coco(split: str) -> CatalogEntry:
    info = DatasetInfo(media="images", protocol="coco")
    annotations = f"coco/annotations/instances_{split}2017.json"
    return CatalogEntry(f"coco_{split}", COCO, (annotations,), (f"coco/{split}2017",), info)


def _raw_burst_files(split: str) -> tuple[str, ...]:
    names = ("train.json", "all_classes.json") if split == "train" else ("all_classes.json",)
    return tuple(f"burst/{folder}{split}/{name}" for folder in ("", "annotations/") for name in names)


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        *(_ytvis(year, split) for year in ("19", "21") for split in ("train", "valid", "test")),
        *(_ovis(split) for split in ("train", "valid", "test")),
        _lvvis("train", "train_ytvis_style.json", "train_instances.json"),
        _lvvis("val", "val_instances_.json", "val_instances.json"),
        _lvvis("test", "test_instances.json"),
        *(_burst(split, *_raw_burst_files(split)) for split in ("train", "val", "test")),
        _burst("val", "burst/val/b2y_val.json", "burst/b2y_val.json", is_converted=True),
        _lvis("lvis_train", "train"),
        _lvis("lvis_train_norare", "train", drop_frequencies=("r",)),
        _lvis("lvis_val", "val"),
        *(_coco(split) for split in ("train", "val")),
    )
}
"""All published data sets by name."""


@dataclasses.dataclass(frozen=True)
class DrawnEntry:
    """A data set of the Shapes world, which is drawn when it is asked for and needs no files.

    Attributes:
        name: What the command line calls it.
        config: Which videos.
        count: How many.
    """

    name: str
    config: ShapesConfig
    count: int


DRAWN: dict[str, DrawnEntry] = {
    entry.name: entry
    for entry in (
        # Images, as decoders are trained on images in the paper.
        DrawnEntry("shapes_train", ShapesConfig(split="train", frames=1), 10_000),
        *(
            DrawnEntry(f"shapes_{split}", ShapesConfig(split=split), SPLITS[split].default_count)
            for split in ("val", "test", "fast", "occlusion")
        ),
    )
}
"""All drawn data sets by name."""


def check_held_out(dataset: Dataset) -> None:
    """Make sure that nothing is evaluated on a data set that models are trained on.

    Raises:
        InputError: It would be.
    """
    if dataset.info.purpose == "training":
        held_out = ", ".join(name for name in DRAWN if name != "shapes_train")
        raise InputError(f"data set '{dataset.name}': is for training; evaluate on one of {held_out}")


def check_for_training(dataset: Dataset) -> None:
    """Make sure that nothing is trained on a data set that models are evaluated on.

    Raises:
        InputError: It would be.
    """
    if dataset.info.purpose == "evaluation":
        raise InputError(f"data set '{dataset.name}': is for evaluation; train on shapes_train")


def open_dataset(
    name_or_path: str | Path | Dataset,
    data_root: str | Path | None = None,
    images: str | Path | None = None,
    *,
    check_images: bool = True,
    show_progress: bool = False,
) -> Dataset:
    """Open a known data set, your own, or a prepared one.

    Args:
        name_or_path: A name of `CATALOG` or `DRAWN`; or an annotation file, whose format is told from its keys; or a
            folder that holds one called annotations.json or instances.json; or a folder that ``clipvis prepare``
            wrote, also in an object store. An open data set is returned as it is.
        data_root: The folder with all known data sets; needed for a name of `CATALOG`.
        images: The folder that file names of frames start from. Default: the known one; for an annotation file
            ``JPEGImages`` beside it, or else the folder that it lies in.
        check_images: False if only the annotations are wanted; then the image folder may be missing.
        show_progress: Show a progress bar if reading the annotation file takes more than some seconds.

    Raises:
        InputError: There is no such data set, a file or folder is missing, or the annotation file cannot be used.
    """
    if isinstance(name_or_path, Dataset):
        return name_or_path
    name = str(name_or_path)
    if name in DRAWN:
        return ShapesDataset(DRAWN[name].config, DRAWN[name].count)
    if name in CATALOG:
        if data_root is None:
            raise InputError(f"data set '{name}': give data_root, the folder that holds the data sets")
        dataset = _open_entry(CATALOG[name], Path(data_root), None if images is None else Path(images), show_progress)
    else:
        is_folder = Path(name).is_dir()
        beside = [path for path in (Path(name) / file for file in _ANNOTATIONS) if is_folder and path.is_file()]
        if not beside and ("://" in name or is_folder):
            # tensorflow-datasets takes a moment to import, which whoever reads published files need not wait for.
            from clipvis_jax.data.prepared import open_prepared  # noqa: PLC0415

            return open_prepared(name)
        if len(beside) > 1:
            raise InputError(f"{name}: holds {' and '.join(_ANNOTATIONS)}; name one of them")
        dataset = _open_file(
            beside[0] if beside else Path(name_or_path), None if images is None else Path(images), show_progress
        )
    if check_images:
        dataset.check_images()
    return dataset


def _open_entry(entry: CatalogEntry, data_root: Path, images: Path | None, show_progress: bool) -> RawDataset:
    if not data_root.is_dir():
        raise InputError(f"{data_root}: is not a folder; give the folder that holds the data sets")
    annotations = [data_root / path for path in entry.annotations]
    found = [path for path in annotations if path.exists()]
    if not found:
        others = "".join(f" (or {path.relative_to(data_root)} beside it)" for path in annotations[1:2])
        raise InputError(f"{annotations[0]}: does not exist{others}; data set '{entry.name}' needs its annotation file")
    folders = [data_root / path for path in entry.images]
    folder = images or next((folder for folder in folders if folder.is_dir()), folders[0])
    return RawDataset(
        found[0],
        folder,
        annotation_format=entry.format,
        name=entry.name,
        info=entry.info,
        drop_frequencies=entry.drop_frequencies,
        show_progress=show_progress,
    )


def _open_file(path: Path, images: Path | None, show_progress: bool) -> RawDataset:
    if not path.exists():
        known = [*CATALOG, *DRAWN]
        close = difflib.get_close_matches(str(path), known, n=3, cutoff=0.5)
        names = f"the closest names are {', '.join(close)}" if close else f"the names are {', '.join(known)}"
        raise InputError(f"{path}: is neither a known data set nor an existing file; {names}")
    if images is None:
        images = path.parent / "JPEGImages"
        if not images.is_dir():
            images = path.parent
    split = split_of_file(path)
    if split is None:
        return RawDataset(path, images, show_progress=show_progress)
    return RawDataset(path, images, name=f"shapes_{split}", info=shapes_info(split), show_progress=show_progress)
