"""Read frames from videos, animations, folders of images and images.

Frames are 8-bit RGB in numpy. Only a few decoded frames exist at a time.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipvis_jax.errors import InputError
from clipvis_jax.media.images import (
    MAX_PIXELS,
    is_image,
    list_images,
    page_durations_ms,
    read_image,
    read_pages,
    rgb_of,
)
from clipvis_jax.media.video_decoder import VideoDecoder


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a source are used: `start`, `start + every`, ... below `end`.

    Attributes:
        start: first frame number, from 0.
        end: first frame number that is left out; None: the source's end.
        every: distance between frames, from 1.
    """

    start: int = 0
    end: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0:
            raise InputError(f"start {self.start}: frame numbers begin at 0; use 0 or more")
        if self.end is not None and self.end <= self.start:
            raise InputError(f"end {self.end}: leaves no frame; use more than the start, which is {self.start}")
        if self.every < 1:
            raise InputError(f"every {self.every}: must be 1 (each frame) or more")

    def numbers(self, frames: int) -> range:
        """Frame numbers selected from a source of `frames` frames."""
        return range(self.start, frames if self.end is None else min(self.end, frames), self.every)


@runtime_checkable  # needed by the type checks in tests
class FrameSource(Protocol):
    """Frames of one video, folder or image; each iteration reads them anew.

    Iteration gives (frame number in the source, frame) and raises InputError at the first unusable frame.

    Attributes:
        name: file or folder name, without its path.
        kind: what the frames come from.
        height: frame height in pixels, as displayed (rotation applied).
        width: frame width in pixels, as displayed.
        fps: frames per second of the source, before `every`; None for folders and images, and if not known.
        expected_frames: number of selected frames; exact for folders and images, by the header for
            videos, which may be a little wrong; None if the header does not say.
        pixel_aspect: width of a pixel on the screen over its height.
        frame_times_s: for each selected frame, by its number, when it is shown: seconds since the source's first
            frame. Known once a video was read; empty for folders and images. Frames that had to be skipped lack.
        skipped_frames: numbers of selected frames that could not be decoded, in the latest reading.
    """

    name: str
    kind: Literal["video", "folder", "image"]
    height: int
    width: int
    fps: float | None = None
    expected_frames: int | None
    pixel_aspect: Fraction = Fraction(1)
    frame_times_s: Mapping[int, float] = MappingProxyType({})
    skipped_frames: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]: ...


def open_frames(
    path: str | Path,
    selection: FrameSelection | None = None,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    max_pixels: int = MAX_PIXELS,
) -> FrameSource:
    """Open a video file, an animation, a folder of images or an image.

    The first frame is decoded to find the size, so most unusable inputs fail here.

    * Videos: the containers named in `video_decoder` (MP4, MOV, MKV, WebM, AVI, MPEG and others), with any codec that
      FFmpeg decodes. Frame number = index of the frame. Of several video streams
      the film is read, not a cover picture or a preview.
    * Animations (GIF, PNG, WebP, AVIF) and TIFFs of several pages are videos of all their pages.
    * Images and animations are known by their suffix, or else by their first bytes.
    * Folders: their images in natural order (2.jpg before 10.jpg); hidden files, other files and subfolders
      are ignored. Frame number = position in that order.
    * Rotation and mirroring (a phone video's display matrix, an image's EXIF orientation) are applied.
    * Transparent pixels are blended with black: what hides below them may be anything.

    Args:
        path: the file or folder.
        selection: which frames are used; by default all.
        on_error: what happens where a video cannot be decoded or is cut off: "stop" raises InputError there; "skip"
            goes on after it, and a warning names the missing frames.
        max_pixels: a larger frame is refused before it is decoded; Pillow itself opens images up to 179 million.

    Raises:
        InputError: the input cannot be used; one line that names the file and says what to do.
    """
    path = Path(path)
    selection = selection or FrameSelection()
    try:
        size = path.stat().st_size
        if path.is_dir():
            return _ImageSource("folder", path.resolve().name, list_images(path), selection, max_pixels)
        is_moving = path.is_file() and not is_image(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder; give a video, an image or a folder of images")
    if size == 0:
        raise InputError(f"{path}: is empty (0 bytes); copy or download it again")
    if is_moving:
        return _VideoSource(path, selection, on_error, max_pixels)
    durations_ms = page_durations_ms(path, max_pixels)
    if len(durations_ms) > 1:
        return _PageSource(path, durations_ms, selection, max_pixels)
    return _ImageSource("image", path.name, [path], selection, max_pixels)


class FramesInMemory(FrameSource):
    """Frames that are there already: a Pillow image, an array (RGB, 8 bits) or a list of either; see FrameSource.

    An array of shape (height, width, 3) and a single image are an image; one of (frames, height, width, 3) and a list
    are a video.
    """

    def __init__(self, images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray]) -> None:
        """Look at the first frame.

        Raises:
            InputError: There is none, or it is no frame.
        """
        is_image = isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4)
        self._images: Sequence[Any] = [images] if is_image else images  # type: ignore[assignment]
        if not len(self._images):
            raise InputError("the video has no frame; nothing to segment")
        self.kind, self.name = ("image", "image") if is_image else ("video", "frames")
        first = _as_array(self._images[0], 0)
        if first.ndim != 3:
            raise InputError(f"a frame is an array of shape {first.shape}; must be uint8 RGB, (height, width, 3)")
        self.height, self.width = first.shape[:2]
        self.expected_frames = len(self._images)

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number, image in enumerate(self._images):
            yield number, _as_array(image, number)


def _as_array(image: Any, number: int) -> np.ndarray:
    return rgb_of(image, f"frame {number}") if isinstance(image, Image.Image) else np.asarray(image)


class _ImageSource(FrameSource):
    """Images that are already listed; see FrameSource."""

    def __init__(
        self,
        kind: Literal["folder", "image"],
        name: str,
        paths: list[Path],
        selection: FrameSelection,
        max_pixels: int,
    ) -> None:
        self._numbers = selection.numbers(len(paths))
        if not self._numbers:
            raise _starts_too_late(paths[0] if kind == "image" else paths[0].parent, len(paths), selection)
        self.kind = kind
        self.name = name
        self.height, self.width = read_image(paths[self._numbers[0]], max_pixels).shape[:2]
        self.expected_frames = len(self._numbers)
        self._paths = paths
        self._max_pixels = max_pixels

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in self._numbers:
            frame_u8 = read_image(self._paths[number], self._max_pixels)
            _check_size(self, number, frame_u8, self._paths[number])
            yield number, frame_u8


class _PageSource(FrameSource):
    """The pages of an animation or a multi-page file; see FrameSource."""

    def __init__(
        self, path: Path, durations_ms: list[float | None], selection: FrameSelection, max_pixels: int
    ) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._numbers = selection.numbers(len(durations_ms))
        if not self._numbers:
            raise _starts_too_late(path, len(durations_ms), selection)
        self.kind = "video"
        self.name = path.name
        self.height, self.width = next(read_pages(path, max_pixels)).shape[:2]
        self.expected_frames = len(self._numbers)
        if known_ms := [duration_ms for duration_ms in durations_ms if duration_ms is not None]:
            self.fps = 1000 * len(known_ms) / sum(known_ms)
            starts_ms = [0.0, *accumulate(known_ms)]
            self.frame_times_s = {number: starts_ms[number] / 1000 for number in self._numbers}

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number, page_u8 in enumerate(read_pages(self._path, self._max_pixels)):
            if number >= self._numbers.stop:
                return
            _check_size(self, number, page_u8, self._path)
            if number in self._numbers:
                yield number, page_u8


class _VideoSource(FrameSource):
    """A video file; see FrameSource."""

    def __init__(
        self, path: Path, selection: FrameSelection, on_error: Literal["stop", "skip"], max_pixels: int
    ) -> None:
        self._decoder = VideoDecoder(path, on_error, max_pixels)
        self._selection = selection
        self.kind = "video"
        self.name = path.name
        self.height, self.width = self._decoder.height, self._decoder.width
        self.fps = self._decoder.fps
        self.pixel_aspect = self._decoder.pixel_aspect
        self.expected_frames = len(selection.numbers(self._decoder.length)) if self._decoder.length else None

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        times_s: dict[int, float] = {}
        for number, time_s, frame_u8 in self._decoder.read(self._selection.numbers(sys.maxsize)):
            times_s[number] = time_s
            yield number, frame_u8
        self.skipped_frames = tuple(self._decoder.skipped)
        if self.skipped_frames and not times_s:
            raise InputError(
                f"{self._decoder.path}: none of the selected frames can be decoded; select others, or copy it again"
            )
        if not times_s:
            raise _starts_too_late(self._decoder.path, self._decoder.count, self._selection)
        self.frame_times_s = times_s


def _starts_too_late(path: Path, frames: int, selection: FrameSelection) -> InputError:
    return InputError(
        f"{path}: has only {frames} frame(s), so start {selection.start} is beyond its end; use a smaller start"
    )


def _check_size(source: FrameSource, number: int, frame_u8: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    height, width = frame_u8.shape[:2]
    if (height, width) != (source.height, source.width):
        raise InputError(
            f"{path}: frame {number} is {width} x {height} pixels, but the first one is {source.width} x "
            f"{source.height}; give all frames one size or leave this one out"
        )
