"""Where the records of an annotation file lie: one pass checks the whole file and keeps only places and sizes."""

import dataclasses
from array import array
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from clipvis_jax.data.formats import Format, recognize_format
from clipvis_jax.data.formats.parts import read_category
from clipvis_jax.data.json_file import JsonFile, Signature
from clipvis_jax.data.records import Category, Mask
from clipvis_jax.errors import InputError
from clipvis_jax.masks.rle import measure

_CHUNK = 2048
"""Masks measured together: enough to make numpy's overhead small."""

_DELAY = 3
"""Seconds before a progress bar appears; most files are read by then."""


@dataclasses.dataclass(frozen=True)
class AnnotationIndex:
    """The places (in bytes) of an annotation file's records, videos in the order of their ids.

    Attributes:
        format: The file's.
        signature: Size and time of change of the very file whose places these are.
        digest: SHA-256 of the file, as hexadecimal digits.
        categories: In the order of their ids.
        sizes: Height, width and number of frames.
        video_places: Start and stop of each video's record.
        instance_places: Start and stop of each instance's record, video by video, in the order of the file.
        first_instance: Number of the first instance of each video, and at the end the number of instances.
        has_annotations: Whether the file has any instance.
    """

    format: Format
    signature: Signature
    digest: str
    categories: tuple[Category, ...]
    sizes: Int[np.ndarray, "v 3"]
    video_places: Int[np.ndarray, "v 2"]
    instance_places: Int[np.ndarray, "i 2"]
    first_instance: Int[np.ndarray, " v1"]
    has_annotations: bool


def index_annotations(
    path: Path, expected: Format | None = None, drop_frequencies: Collection[str] = (), *, show_progress: bool = False
) -> AnnotationIndex:
    """Read and check an annotation file once, from beginning to end.

    Args:
        path: The file.
        expected: The format that it must have; told from its keys if not given.
        drop_frequencies: Leave out the instances of classes with one of these frequencies (``r``, ``c``, ``f``).
        show_progress: Show a progress bar if it takes more than some seconds.

    Raises:
        InputError: The file cannot be read or has another format, a record or field is missing or wrong, an id
            appears twice or refers to nothing, a mask differs in size from its video or an instance in length.
    """
    file = JsonFile(path)
    pass_ = _Pass(file, recognize_format(file.members, str(path), expected))
    pass_.take_all(show_progress)
    return pass_.finish(drop_frequencies)


class _Pass:
    """What one pass collects: numbers of videos and instances, in the order of the file."""

    def __init__(self, file: JsonFile, annotation_format: Format) -> None:
        self._file = file
        self._source = str(file.path)
        self._format = annotation_format
        self._categories: list[Category] = []
        # Six numbers per video: id, height, width, number of frames, start, stop.
        self._videos = array("q")
        # Eight numbers per instance: id, video, category, number of masks, height and width of its run lengths (0 if
        # it has none), start, stop.
        self._instances = array("q")
        self._counts = _CountsCheck()

    def take_all(self, show_progress: bool) -> None:
        """Take note of all records of the file."""
        layout, file = self._format, self._file
        for number, text in enumerate(file.records("categories")):
            self._categories.append(read_category(text, f"{self._source}: categories[{number}]"))
        records: list[tuple[str, Callable[[msgspec.Raw, str], None]]] = [(layout.videos, self._take_video)]
        if layout.annotations is not None and layout.annotations in file.members:  # test sets may have none
            records.append((layout.annotations, self._take_instance))
        for key, take in records:
            texts = file.records(key)
            for number, text in enumerate(tqdm(texts, f"reading {key}", delay=_DELAY, disable=not show_progress)):
                take(text, f"{self._source}: {key}[{number}]")
        self._counts.flush()

    def _take_video(self, text: msgspec.Raw, where: str) -> None:
        video = self._format.read_video(text, where)
        self._videos.extend((video.id, video.height, video.width, video.length, *self._file.place(text)))
        for instance in video.instances:
            self._counts.add(instance.masks, video.height * video.width, where)
            number = len(self._instances) // 8
            size = (video.length, video.height, video.width)
            self._instances.extend((number, video.id, instance.category_id, *size, 0, 0))

    def _take_instance(self, text: msgspec.Raw, where: str) -> None:
        assert self._format.read_instance is not None
        video_id, instance, size = self._format.read_instance(text, where)
        height, width = size or (0, 0)
        self._counts.add(instance.masks, height * width, where)
        self._instances.extend(
            (instance.id, video_id, instance.category_id, len(instance.masks), height, width, *self._file.place(text))
        )

    def finish(self, drop_frequencies: Collection[str]) -> AnnotationIndex:
        """Check how the records fit together."""
        categories = tuple(sorted(self._categories, key=lambda category: category.id))
        category_ids = np.array([category.id for category in self._categories], np.int64)
        videos = np.frombuffer(self._videos, np.int64).reshape(-1, 6)
        instances = np.frombuffer(self._instances, np.int64).reshape(-1, 8)
        for key, ids in (
            ("categories", category_ids),
            (self._format.videos, videos[:, 0]),
            (self._format.annotations or "tracks", instances[:, 0]),
        ):
            self._check_unique(ids, key)
        videos = videos[np.argsort(videos[:, 0])]
        self._check_instances(instances, videos, category_ids)
        rows = np.searchsorted(videos[:, 0], instances[:, 1])
        kept = self._kept(instances[:, 2], drop_frequencies)
        order = np.argsort(rows[kept], kind="stable")
        counts = np.bincount(rows[kept], minlength=len(videos))
        return AnnotationIndex(
            self._format,
            self._file.signature,
            self._file.digest,
            categories,
            sizes=videos[:, 1:4].copy(),
            video_places=videos[:, 4:].copy(),
            instance_places=instances[kept][order, 6:].copy(),
            first_instance=np.concatenate([[0], np.cumsum(counts)]),
            has_annotations=len(instances) > 0,
        )

    def _check_unique(self, ids: Int[np.ndarray, " n"], key: str) -> None:
        order = np.argsort(ids, kind="stable")
        again = order[1:][np.diff(ids[order]) == 0]
        if len(again):
            place = int(again.min())
            raise InputError(f"{self._source}: {key}[{place}].id is {ids[place]}, which an earlier record has already")

    def _check_instances(
        self, instances: Int[np.ndarray, "i 8"], videos: Int[np.ndarray, "v 6"], category_ids: Int[np.ndarray, " c"]
    ) -> None:
        """Check what instances refer to, and their lengths and sizes."""
        what = "image" if self._format.videos == "images" else "video"
        for column, known, name in ((1, videos[:, 0], f"{what}_id"), (2, category_ids, "category_id")):
            for place in np.flatnonzero(~np.isin(instances[:, column], known)):
                number, kind = instances[place, column], name.removesuffix("_id")
                raise InputError(f"{self._where(instances, place)}.{name} is {number}, but there is no such {kind}")
        of_video = videos[np.searchsorted(videos[:, 0], instances[:, 1])]
        for place in np.flatnonzero(instances[:, 3] != of_video[:, 3]):
            raise InputError(
                f"{self._where(instances, place)}.segmentations has {instances[place, 3]} masks, but {what} "
                f"{instances[place, 1]} has {of_video[place, 3]} frames"
            )
        differs = (instances[:, 4] > 0) & np.any(instances[:, 4:6] != of_video[:, 1:3], axis=1)
        for place in np.flatnonzero(differs):
            field = "segmentation" if what == "image" else "segmentations"
            raise InputError(
                f"{self._where(instances, place)}.{field}: size is {instances[place, 4:6].tolist()}, but {what} "
                f"{instances[place, 1]} has {of_video[place, 1:3].tolist()}"
            )

    def _where(self, instances: Int[np.ndarray, "i 8"], place: int | np.integer) -> str:
        if self._format.annotations is None:
            return f"{self._source}: a track of video {instances[place, 1]}"
        return f"{self._source}: {self._format.annotations}[{place}]"

    def _kept(self, category_of: Int[np.ndarray, " i"], drop_frequencies: Collection[str]) -> Bool[np.ndarray, " i"]:
        if not drop_frequencies:
            return np.ones(len(category_of), bool)
        for category in self._categories:
            if category.frequency is None:
                raise InputError(
                    f"{self._source}: category {category.id} has no 'frequency', by which classes are left out"
                )
        dropped = [category.id for category in self._categories if category.frequency in drop_frequencies]
        return ~np.isin(category_of, dropped)


class _CountsCheck:
    """Checks compressed run lengths, many together, which is much faster than one by one."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._pixels: list[int] = []
        self._places: list[tuple[str, int]] = []

    def add(self, masks: Sequence[Mask | None], pixels: int, where: str) -> None:
        """Note the masks of an instance; ``pixels`` is the number that each must describe."""
        for frame, mask in enumerate(masks):
            if isinstance(mask, str):
                self._texts.append(mask)
                self._pixels.append(pixels)
                self._places.append((where, frame))
        if len(self._texts) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Check what was noted.

        Raises:
            InputError: Counts are broken, or do not describe as many pixels as they must.
        """
        if self._texts:
            _, totals = measure(self._texts)
            for place in np.flatnonzero(totals != self._pixels):
                where, frame = self._places[place]
                raise InputError(
                    f"{where}: the mask of frame {frame} is damaged; its counts do not describe "
                    f"{self._pixels[place]} pixels"
                )
        self._texts, self._pixels, self._places = [], [], []
