"""A font for a text in any script: matplotlib's DejaVu, else one of the system, else code points for letters."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

_NO_CHARACTER = "\U0010ffff"  # drawn as whatever a font shows for letters that it lacks
_SUFFIXES = (".ttf", ".otf", ".ttc")


@lru_cache(1024)
def font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """Choose a font that has every letter of a text.

    Where no font has them, the missing letters are written as their code points (U+4E2D), and a warning says so once.

    Args:
        text: one line.
        size: height of the font, in pixels.

    Returns:
        The font, and the text as it can be written with it.
    """
    usual = _usual_font(size)
    if not _missing(text, usual):
        return usual, text
    for path in _system_fonts():
        try:
            font = ImageFont.truetype(path, size)
            if not _missing(text, font):
                return font, text
        except OSError:
            continue  # a font of fixed sizes, or a broken file
    warnings.warn(
        "labels: no font on this machine has all letters of the class names, so code points stand for them; install "
        "a font of their script (such as Noto)",
        stacklevel=2,
    )
    missing = _missing(text, usual)
    return usual, "".join(f"U+{ord(letter):04X}" if letter in missing else letter for letter in text)


@cache
def _usual_font(size: int) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")  # only found, not imported, which takes long
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow falls back to bitmaps only where no size is given.
    return font


def _missing(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """Give the letters that a font lacks: those that look like a character that does not exist."""
    nothing = bytes(font.getmask(_NO_CHARACTER))
    letters = {letter for letter in text if letter.isprintable() and letter != " "}  # other spaces are not printable
    return {letter for letter in letters if bytes(font.getmask(letter)) == nothing}


@cache
def _system_fonts() -> tuple[Path, ...]:
    """List the fonts of the system, upright and regular ones first."""
    return tuple(sorted(_font_files(), key=lambda path: ("Regular" not in path.stem, path.name)))


def _font_files() -> Iterator[Path]:
    data = os.environ.get("XDG_DATA_HOME", "~/.local/share")
    folders = {
        "win32": ("C:/Windows/Fonts",),
        "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    }.get(sys.platform, ("/usr/share/fonts", "/usr/local/share/fonts", f"{data}/fonts"))
    for folder in folders:
        for parent, _, names in os.walk(os.path.expanduser(folder)):  # noqa: PTH111 (stays as it is without a home)
            yield from (Path(parent) / name for name in names if name.lower().endswith(_SUFFIXES))
