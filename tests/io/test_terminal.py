"""What is printed: names cannot begin a line, move the cursor or turn the writing; ordinary Unicode stays."""

import io
import sys
import unicodedata

import pytest
from tqdm import tqdm

from clipvis_jax.errors import InputError, printable, without_controls
from clipvis_jax.io.terminal import print_lines, print_table, safe_printing

HOSTILE = "x\x1b[31m\x1b]0;PWNED\x07\x9b2J\r\nclipvis: error: all is well\u202e\u2066\u2028\x85\ud800"
ESCAPED = r"x\x1b[31m\x1b]0;PWNED\x07\x9b2J\r\nclipvis: error: all is well\u202e\u2066\u2028\x85\ud800"
ORDINARY = "naïve 狐\u3000狸 می\u200cخ 👩\u200d🚒 a\u00a0b e\u0301 [bold]x[/bold] C:\\new"


def test_hostile_texts_are_escaped_and_ordinary_ones_stay():
    assert printable(HOSTILE) == ESCAPED
    assert printable(ORDINARY) == without_controls(ORDINARY) == ORDINARY
    assert str(InputError(HOSTILE)) == ESCAPED
    assert without_controls("a\n\tb\x1b[2J") == "a\n\tb\\x1b[2J"
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(char) in BIDI:
            assert printable(char).isascii()
            assert printable(char).isprintable()


BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_lines_and_tables(capsys):
    print_lines(HOSTILE, ORDINARY)
    assert capsys.readouterr().out == f"{ESCAPED}\n{ORDINARY}\n"
    print_table(HOSTILE[:20], [HOSTILE[:8], "b"], [[HOSTILE[:20], "[red]1[/red]"]], caption=HOSTILE[:20])
    output = capsys.readouterr().out
    assert output.replace("\n", "").isprintable()
    assert "[red]1[/red]" in output
    assert output.count(printable(HOSTILE[:20])) == 3


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_streams_escape_what_others_print(monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stdout", stream := Terminal(is_terminal))
    with safe_printing():
        print("one\n\ttwo" + HOSTILE)
        print("\x1b[1mbold\x1b[0m")
    escaped = ESCAPED.replace(r"\n", "\n")
    bold = "\x1b[1mbold\x1b[0m\n"
    if is_terminal:
        escaped = escaped.replace(r"\x1b[31m", "\x1b[31m")
    else:
        bold = bold.replace("\x1b", r"\x1b")
    assert stream.getvalue() == f"one\n\ttwo{escaped}\n{bold}"


def test_progress_bars_move_the_cursor(monkeypatch):
    def bars(file):
        options = {"file": file, "mininterval": 0, "bar_format": "{desc} {n}"}
        for _ in tqdm(range(2), "outer", position=0, **options):
            list(tqdm(range(2), "inner", position=1, leave=False, **options))

    bars(plain := io.StringIO())
    monkeypatch.setattr("sys.stderr", safe := io.StringIO())
    with safe_printing():
        bars(sys.stderr)
    assert "\x1b[A" in plain.getvalue()
    assert safe.getvalue() == plain.getvalue()
