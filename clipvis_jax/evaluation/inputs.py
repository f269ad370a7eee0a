"""Ground truth of data sets, and results in YouTube-VIS format: checked and ready to be scored."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from clipvis_jax.data.fields import field, integer_field, list_field, load_json, number_field
from clipvis_jax.data.records import Category, Dataset, Mask
from clipvis_jax.errors import InputError, show
from clipvis_jax.masks.rle import measure, to_counts


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """Size in pixels and number of frames of a video, and the classes that `VideoRecord` says more of."""

    id: int
    height: int
    width: int
    length: int
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()

    @property
    def size(self) -> list[int]:
        """Height and width."""
        return [self.height, self.width]


@dataclasses.dataclass(frozen=True, slots=True)
class MaskTrack:
    """The masks of one instance in all frames of its video.

    ``counts`` are compressed run lengths, None where there is no mask; ``areas`` are in pixels. ``mean_area`` is over
    frames with a mask that is not empty. Frames where ``counted`` is False take no part in the overlap with masks
    (compatible mode only, see `parse_results`).
    """

    counts: list[str | None]
    areas: Int[np.ndarray, " t"]
    counted: Bool[np.ndarray, " t"]
    mean_area: float


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """A true instance. ``areas`` are the data set's, which need not agree with the masks; None if it has none."""

    id: int
    video_id: int
    category_id: int
    is_crowd: bool
    areas: list[float | None] | None
    track: MaskTrack


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A predicted instance under one class; ``score`` is any finite number."""

    video_id: int
    category_id: int
    score: float
    track: MaskTrack


Record = TypeVar("Record", Annotation, Result)


def by_video(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Group by video, in their order, which is also that of the videos; one without any has an empty list."""
    groups: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.video_id].append(record)
    return groups


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """True instances of a set of videos. ``categories`` are their fields by id; ``source`` names the data set."""

    source: str
    videos: dict[int, Video]
    categories: dict[int, Mapping[str, Any]]
    annotations: list[Annotation]


def ground_truth_from(dataset: Dataset, count: int | None = None, *, may_be_empty: bool = False) -> GroundTruth:
    """Read the true instances of a data set's first videos, of all by default.

    Args:
        dataset: The data set.
        count: Number of videos; None: all.
        may_be_empty: Accept a data set without annotations, as test sets. Results can be checked against its videos
            and categories, but not scored.

    Raises:
        InputError: The data set has no annotations, or boxes and no masks; or counts of a mask do not add up to its
            size.
    """
    if not dataset.has_annotations and not may_be_empty:
        raise InputError(f"{dataset.name}: has no annotations, as test sets; scores need ground truth")
    videos, annotations, pending = {}, [], []
    count = len(dataset) if count is None else count
    check_masks(dataset, count)
    for index in range(count):
        record = dataset[index]
        classes = record.neg_category_ids, record.not_exhaustive_category_ids
        video = Video(record.id, record.height, record.width, record.length, *classes)
        videos[record.id] = video
        for instance in record.instances:
            where = f"{dataset.name}: annotation {instance.id}"
            masks = [_plain_mask(mask, video.size) for mask in instance.masks]
            pending.append(_Pending(where, video, masks))
            areas = None if instance.areas is None else list(instance.areas)
            annotations.append((instance.id, record.id, instance.category_id, instance.is_crowd, areas))
    tracks = _read_tracks(pending, compatible=False)
    return GroundTruth(
        dataset.name,
        videos,
        {category.id: category_fields(category) for category in dataset.categories},
        [Annotation(*fields, track) for fields, track in zip(annotations, tracks, strict=True)],
    )


def check_masks(dataset: Dataset, count: int) -> None:
    """Make sure that some instance of a data set's first videos has a mask; reads no further than to the first.

    Raises:
        InputError: There are boxes and no mask with a pixel; or counts of a mask do not add up to its size.
    """
    has_boxes = False
    for index in range(count):
        record = dataset[index]
        video = Video(record.id, record.height, record.width, record.length)
        for instance in record.instances:
            masks = [_plain_mask(mask, video.size) for mask in instance.masks]
            pending = _Pending(f"{dataset.name}: annotation {instance.id}", video, masks)
            if _read_tracks([pending], compatible=False)[0].areas.any():
                return
            has_boxes |= any(box is not None for box in instance.boxes or ())
    if has_boxes:
        raise InputError(
            f"{dataset.name}: its annotations have boxes, but no mask with a pixel; scores need masks (run lengths, or "
            "polygons of at least three points, x and y of each)"
        )


def _plain_mask(mask: Mask | None, size: list[int]) -> Any:
    if mask is None:
        return None
    return {"size": size, "counts": mask} if isinstance(mask, str) else [list(part) for part in mask]


def category_fields(category: Category) -> dict[str, Any]:
    """Return what is known of a class, as annotation files have it."""
    return {name: value for name, value in dataclasses.asdict(category).items() if value not in (None, ())}


def load_results(
    path: str | Path, ground_truth: GroundTruth, *, compatible: bool = False, other_videos: Collection[int] = ()
) -> list[Result]:
    """Read results: a YouTube-VIS results file, or the tracks.json of ``clipvis predict``.

    Raises:
        InputError: See `parse_results`; or the file cannot be read; or it says itself which class an id means
            (tracks.json does), and the ground truth says otherwise.
    """
    data = load_json(path)
    if isinstance(data, Mapping):
        records = field(data, "results", f"{path}:")
        _check_names(data, ground_truth, str(path))
    else:
        records = data
    return parse_results(records, ground_truth, str(path), compatible=compatible, other_videos=other_videos)


def parse_results(
    records: Any,
    ground_truth: GroundTruth,
    source: str = "results",
    *,
    compatible: bool = False,
    other_videos: Collection[int] = (),
) -> list[Result]:
    """Check results in YouTube-VIS format, or of images in COCO format.

    A record needs ``video_id``, ``category_id``, ``score`` and ``segmentations``, one per frame of the video, each
    null or a mask; of an image ``image_id`` and ``segmentation`` will do.

    Args:
        records: The content of the JSON file; it may be empty.
        ground_truth: What the results will be compared with.
        source: What messages call the results.
        compatible: Accept what the official code accepts, with its consequences: of a track whose length differs
            from its video's, only the frames that both have count; a mask of another size leaves its frame out;
            results of unknown classes are dropped.
        other_videos: Ids of videos that the ground truth leaves out; their results are dropped.

    Raises:
        InputError: A record or field is missing or wrong, a score is not finite, an id refers to nothing, the
            counts of a mask do not add up to its size; or, unless `compatible`, a length or size differs.
    """
    if not isinstance(records, list | tuple):
        raise InputError(f"{source}: is {show(records)}, not a list of results")
    results, pending = [], []
    for index, record in enumerate(records):
        where = f"{source}: results[{index}]"
        is_coco = isinstance(record, Mapping) and "image_id" in record
        video_field = "image_id" if is_coco else "video_id"
        video_id, category_id = (integer_field(record, name, where) for name in (video_field, "category_id"))
        if video_id in other_videos or (compatible and category_id not in ground_truth.categories):
            continue
        if video_id not in ground_truth.videos:
            raise InputError(
                f"{where}.{video_field} is {video_id}; {ground_truth.source} has no such {video_field[:-3]}"
            )
        if category_id not in ground_truth.categories:
            raise InputError(f"{where}.category_id is {category_id}; {ground_truth.source} has no such category")
        video = ground_truth.videos[video_id]
        results.append((video_id, category_id, number_field(record, "score", where)))
        masks = [field(record, "segmentation", where)] if is_coco else list_field(record, "segmentations", where)
        pending.append(_Pending(where, video, masks, is_image=is_coco))
    tracks = _read_tracks(pending, compatible)
    return [Result(*fields, track) for fields, track in zip(results, tracks, strict=True)]


def _numbered(records: object, where: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Go through records with an id each: the id, how messages call the record, the record."""
    if not isinstance(records, list):
        raise InputError(f"{where} is {show(records)}; a list is needed")
    seen = set()
    for index, record in enumerate(records):
        number = integer_field(record, "id", f"{where}[{index}]")
        if number in seen:
            raise InputError(f"{where}[{index}].id is {number}, which an earlier record has already")
        seen.add(number)
        yield number, f"{where}[{index}]", record


def _check_names(data: Mapping[str, Any], ground_truth: GroundTruth, source: str) -> None:
    """Compare the categories that results bring along with those of the ground truth, where both have names."""
    for number, where, record in _numbered(data.get("categories", []), f"{source}: categories"):
        name = ground_truth.categories.get(number, {}).get("name")
        own = [field(record, "name", where), *(list_field(record, "synonyms", where) if "synonyms" in record else [])]
        if name is not None and _plain(name) not in map(_plain, own):
            raise InputError(
                f"{where}.name is {show(own[0])}, but class {number} of {ground_truth.source} is {show(name)}; "
                "predict with the ground truth's classes, in the order of their ids, which must count from 1"
            )


def _plain(name: object) -> str:
    return str(name).replace("_", " ").strip().lower()


@dataclasses.dataclass(frozen=True, slots=True)
class _Pending:
    """A track as the file has it; `where` names its record, ``is_image`` says that its one mask is in no list."""

    where: str
    video: Video
    segmentations: list[Any]
    is_image: bool = False

    @property
    def owner(self) -> str:
        return f"{'image' if self.is_image else 'video'} {self.video.id}"

    def field(self, frame: int) -> str:
        """Name the mask of a frame as its file does."""
        return f"{self.where}.segmentation" + ("" if self.is_image else f"s[{frame}]")


def _read_tracks(pending: Sequence[_Pending], compatible: bool) -> list[MaskTrack]:
    """Read the masks of many tracks; their areas are measured together, which is much faster than one by one."""
    read = [_read_masks(track, compatible) for track in pending]
    areas, totals = measure([counts for frames, _ in read for counts in frames if counts is not None])
    tracks, start = [], 0
    for track, (frames, other_sizes) in zip(pending, read, strict=True):
        present = np.array([counts is not None for counts in frames], bool)
        stop = start + int(np.count_nonzero(present))
        frame_areas = np.zeros(len(frames), np.int64)
        frame_areas[present] = areas[start:stop]
        pixels = np.full(len(frames), track.video.height * track.video.width)
        for index, (height, width) in other_sizes.items():
            pixels[index] = height * width
        for frame in np.flatnonzero(present)[totals[start:stop] != pixels[present]]:
            raise InputError(
                f"{track.field(int(frame))}.counts ({track.owner}) are damaged: they do not describe {pixels[frame]} "
                "pixels"
            )
        tracks.append(_fit(frames, frame_areas, other_sizes, track.video.length))
        start = stop
    return tracks


def _read_masks(track: _Pending, compatible: bool) -> tuple[list[str | None], dict[int, list[int]]]:
    """Return the counts of all frames, and the sizes of masks that do not have their video's."""
    video = track.video
    if len(track.segmentations) != video.length and not compatible:
        raise InputError(
            f"{track.where}.segmentations has {len(track.segmentations)} masks, but video {video.id} has "
            f"{video.length} frames"
        )
    size = video.size
    frames, other_sizes = [], {}
    for frame, mask in enumerate(track.segmentations):
        try:
            counts, own_size = to_counts(mask, size)
        except ValueError as error:
            raise InputError(f"{track.field(frame)} ({track.owner}) {error}") from error
        if own_size is not size:
            if not compatible:
                raise InputError(f"{track.field(frame)}.size is {own_size}, but {track.owner} has {size}")
            other_sizes[frame] = own_size
        frames.append(counts)
    return frames, other_sizes


def _fit(
    frames: list[str | None], areas: Int[np.ndarray, " n"], other_sizes: Mapping[int, list[int]], length: int
) -> MaskTrack:
    """Bring a track to the length of its video."""
    visible = areas[areas > 0]
    # Matches the official code: the mean area is over all frames, also those that the video does not have.
    mean_area = float(visible.mean()) if len(visible) else 0.0
    shared = min(len(frames), length)
    fitted_areas, counted = np.zeros(length, np.int64), np.zeros(length, bool)
    fitted_areas[:shared] = areas[:shared]
    counted[:shared] = True
    counted[[frame for frame in other_sizes if frame < length]] = False
    counts = [None if frame in other_sizes else text for frame, text in enumerate(frames[:length])]
    return MaskTrack(counts + [None] * (length - shared), fitted_areas, counted, mean_area)
