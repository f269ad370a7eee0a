"""Labels in any script."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from clipvis_jax.media import fonts
from clipvis_jax.media.fonts import font_for
from clipvis_jax.media.visualize import draw_tracks


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    font_for.cache_clear()
    yield
    font_for.cache_clear()


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())


@pytest.mark.parametrize(
    "text", ["dog 0.87", "Größe", "собака", "σκύλος", "İstanbul", "chó", "շուն", "naïve café", "a b", "a\u3000b", ""]
)
@pytest.mark.usefixtures("no_system_fonts")
def test_the_usual_font_has_many_scripts(text: str) -> None:
    font, written = font_for(text, 14)
    assert written == text
    assert font.getname()[0] == "DejaVu Sans"


def test_a_space_is_never_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a font shows nothing at all for letters that it lacks."""
    font = ImageFont.load_default(14)
    monkeypatch.setattr(font, "getmask", lambda text: b"")
    assert fonts._missing("a b", font) == {"a", "b"}


@pytest.mark.usefixtures("no_system_fonts")
def test_letters_that_no_font_has_become_code_points() -> None:
    with pytest.warns(UserWarning, match="code points stand for them; install a font"):
        _, written = font_for("犬 dog 0.50", 14)
    assert written == "U+72AC dog 0.50"


def test_a_font_of_the_system_helps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    dejavu = Path(font_for("a", 14)[0].path)
    font_for.cache_clear()
    latin = ImageFont.load_default(14)
    monkeypatch.setattr(fonts, "_usual_font", lambda size: latin)
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (Path("gone.ttf"), dejavu))
    font, written = font_for("собака", 14)
    assert (font.getname()[0], written) == ("DejaVu Sans", "собака")


@pytest.mark.usefixtures("no_system_fonts")
def test_different_words_are_drawn_differently() -> None:
    def drawn(label: str) -> bytes:
        frame, mask = np.full((100, 200, 3), 128, np.uint8), np.zeros((1, 100, 200), bool)
        mask[0, 50:90, 50:150] = True
        return draw_tracks(frame, mask, [label], np.array([[255, 255, 0]], np.uint8)).tobytes()

    assert drawn("кот") != drawn("дом")
