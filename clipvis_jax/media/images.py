"""Read images as 8-bit RGB, whatever their mode; animations page by page."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageSequence, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

from clipvis_jax.errors import InputError

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Named, because Pillow otherwise tries all it knows, of which EPS starts another program.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM")
# How files of these formats begin, in part at the fifth byte.
_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF.{4}WEBP|II\*\0|MM\0\*|.{4}(jP  |ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1|avi[fs]))",
    re.DOTALL,
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
MAX_PIXELS = 80_000_000
"""Pixels of a frame beyond which it is refused unless more are allowed; one takes some 20 bytes per pixel."""
_NO_DURATION_MS = 100  # what browsers make of a duration of 0
_REDUCED_COPY = 1  # bit of a TIFF page's tag NewSubfileType


def read_image(path: Path, max_pixels: int = sys.maxsize) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as 8-bit RGB, turned by its EXIF orientation; nothing else of its metadata is looked at.

    16-bit pixels are scaled, transparent ones blended with black.

    Raises:
        InputError: the file cannot be read, has several pages (`read_pages` reads them), has more than `max_pixels`
            pixels or more than Pillow allows (179 million), or has 32-bit pixels, for which no range is defined.
    """
    return _read(path, str(path), max_pixels)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode the bytes of an image file, as `read_image` does; `name` is what messages call it.

    Raises:
        InputError: see `read_image`.
    """
    return _read(io.BytesIO(data), name, sys.maxsize)


def image_size(path: Path) -> tuple[int, int]:
    """Read height and width of an image file, as `read_image` gives it, without decoding it.

    Raises:
        InputError: see `read_image`.
    """
    with _opened(path, str(path)) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def read_label_map(
    path: Path, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], str]:
    """Read a picture whose pixels number instances: indices into a palette (P), grey (1, L) or 16 bits (I;16).

    Returns:
        The numbers as they are in the file, and the picture's mode.

    Raises:
        InputError: see `read_image`; or it is a picture of colours.
    """
    with _opened(path, str(path)) as image:
        check_pixels(*image.size, str(path), max_pixels)
        if image.mode not in ("P", "L", "1", "I;16", "I;16B"):
            raise InputError(f"{path}: has pixels of mode {image.mode}, but masks have a palette or are grey")
        dtype = np.uint16 if image.mode.startswith("I") else np.uint8
        return np.array(image).astype(dtype), image.mode


def page_durations_ms(path: Path, max_pixels: int = sys.maxsize) -> list[float | None]:
    """Measure the pages of an animation or a multi-page file: for how many milliseconds each is shown.

    A TIFF's pages have no duration (None), nor has the page of a still image. A page of duration 0 counts 100 ms,
    as in browsers.

    Raises:
        InputError: see `read_image`.
    """
    with _opened(path, str(path)) as image:
        durations_ms: list[float | None] = []
        for page in _pages(image, str(path), max_pixels):
            if image.format in ("WEBP", "AVIF"):
                page.load()  # only then is the duration known
            is_timed = image.format in ("GIF", "PNG", "WEBP", "AVIF")
            durations_ms.append(float(page.info.get("duration") or _NO_DURATION_MS) if is_timed else None)
        return durations_ms if len(durations_ms) > 1 else [None]


def read_pages(path: Path, max_pixels: int = sys.maxsize) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Read the pages of an animation or a multi-page file as 8-bit RGB, one after the other.

    Raises:
        InputError: see `read_image`.
    """
    with _opened(path, str(path)) as image:
        for page in _pages(image, str(path), max_pixels):
            yield rgb_of(page, str(path))


def _read(source: Path | io.BytesIO, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    with _opened(source, name) as image:
        pages = _pages(image, name, max_pixels)
        page_u8 = rgb_of(next(pages), name)
        if next(pages, None) is not None:
            raise InputError(f"{name}: has several pages where one image is needed; save its pages as files")
        return page_u8


@contextmanager
def _opened(source: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong in the block becomes an InputError that names it."""
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would be waited for
            raise InputError(f"{name}: is not a file; replace or remove it")
        if _is_heif(source):
            _register_heif(name)
        Image.init()
        with Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: has more than 179 million pixels; make it smaller") from error
    except Exception as error:  # Pillow's plugins raise whatever the broken bytes lead them to.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: cannot be read as an image ({reason}); replace or remove it") from error


def _is_heif(source: Path | io.BytesIO) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(64)
    else:
        start = source.getbuffer()[:64].tobytes()
    brands = start[8 : int.from_bytes(start[:4], "big")]
    return start[4:8] == b"ftyp" and any(brand in brands for brand in (b"heic", b"heix", b"heim", b"hevc", b"hevx"))


def _register_heif(name: str) -> None:
    """Let Pillow read HEIC, of which FFmpeg gives single tiles."""
    try:
        import pillow_heif  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise InputError(
            f"{name}: is a HEIC picture, which needs the package pillow-heif; install it or convert the file to JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def is_image(path: Path) -> bool:
    """Whether a file is an image or an animation: by its suffix, or else by its first bytes.

    Raises:
        OSError: It cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in (".mjpeg", ".mjpg"):  # the latter are JPEGs one after the other: a video
        return suffix in IMAGE_SUFFIXES
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(16)) is not None


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse a frame that is too large to be decoded; the message calls its file `name`."""
    if width * height > max_pixels:
        raise InputError(
            f"{name}: is {width} x {height} pixels, more than {max_pixels:,}; shrink it or allow more (max-pixels)"
        )


def _pages(image: Image.Image, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Give the pages that are shown: no preview beside a JPEG, no reduced copy of a TIFF's page."""
    check_pixels(*image.size, name, max_pixels)
    if image.format == "MPO":
        yield image
        return
    for index, page in enumerate(ImageSequence.Iterator(image)):
        # A PNG may hold another picture for programs that know no animations.
        is_stand_in = index == 0 and image.info.get("default_image", False)
        is_reduced = isinstance(page, TiffImageFile) and index > 0 and page.tag_v2.get(254, 0) & _REDUCED_COPY
        if not is_stand_in and not is_reduced:
            check_pixels(*page.size, name, max_pixels)
            yield page


def rgb_of(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Turn a Pillow image upright and into 8-bit RGB; `name` is what messages call it.

    Raises:
        InputError: it has 32-bit pixels, for which no range is defined.
    """
    image.load()
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F"):
        raise InputError(f"{name}: has 32-bit pixels of unknown range; convert it to 8 bits")
    if image.mode.startswith("I;16"):
        # Pillow would clip. The high byte is also what it takes of 16-bit colours.
        grey_u8 = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey_u8[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        return blend_with_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; metadata that cannot be understood turns nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever the odd bytes lead it to.
        return 1
    return orientation if isinstance(orientation, int) else 1


def blend_with_black(rgba_u8: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Weight the colours by their opacity, so that nothing shows that viewers hide."""
    alpha = rgba_u8[:, :, 3:].astype(np.uint16)
    return ((rgba_u8[:, :, :3] * alpha + 127) // 255).astype(np.uint8)


def list_images(folder: Path) -> list[Path]:
    """List a folder's images in natural order (2.jpg before 10.jpg).

    Hidden files, files without one of `IMAGE_SUFFIXES` and subfolders are ignored.

    Raises:
        InputError: there are none.
        OSError: the folder cannot be listed.
    """
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    ]
    if not images:
        what = "holds no images" if any(folder.iterdir()) else "is empty"
        raise InputError(f"{folder}: folder {what}; give a folder with {', '.join(IMAGE_SUFFIXES)} files")
    return sorted(images, key=natural_order)


def natural_order(path: Path) -> tuple[list[int | str], str]:
    """Sort key of file names in which numbers count as such."""
    # Split by a group, texts stand at even and digits at odd places, so like is compared with like.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)], path.name
