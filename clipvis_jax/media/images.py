"""Read images as 8-bit RGB, whatever their mode."""

import io
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from clipvis_jax.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as 8-bit RGB, turned by its EXIF orientation.

    16-bit pixels are scaled, transparent ones blended with black; of several pages the first is read.

    Raises:
        InputError: the file cannot be read, or has 32-bit pixels, for which no range is defined.
    """
    return _read(path, str(path))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode the bytes of an image file, as `read_image` does; `name` is what messages call it.

    Raises:
        InputError: see `read_image`.
    """
    return _read(io.BytesIO(data), name)


def _read(source: Path | io.BytesIO, name: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(source) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("I", "F"):
                raise InputError(f"{name}: has 32-bit pixels of unknown range; convert it to 8 bits")
            if image.mode.startswith("I;16"):
                # Pillow would clip. The high byte is also what it takes of 16-bit colours.
                grey_u8 = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey_u8[:, :, None], 3, axis=2)
            if image.has_transparency_data:
                return blend_with_black(np.asarray(image.convert("RGBA")))
            return np.array(image.convert("RGB"))
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's plugins raise whatever the broken bytes lead them to.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: cannot be read as an image ({reason}); replace or remove it") from error


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
    # Split by a group, texts stand at even and digits at odd places, so like is compared with like.
    return sorted(
        images,
        key=lambda path: (
            [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)],
            path.name,
        ),
    )
