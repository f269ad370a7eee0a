"""Go through a JSON file of any size item by item, in memory that depends only on the largest item."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from clipvis_jax.errors import InputError

_CHUNK = 1 << 22
_SPACE = re.compile(r"[ \t\n\r]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_LONGEST_LITERAL = 16
"""If a chunk ends within a literal, an escape or a number, the decoder complains at most so far before the end."""


class Entry(NamedTuple):
    """An item of a list in the file's outermost object, or (``position`` is None) another member of that object.

    ``start`` and ``stop`` are where its text lies in the file, in bytes. A list itself comes as an entry as well,
    before its items, with ``value`` [].
    """

    key: str
    position: int | None
    value: Any
    start: int
    stop: int


class JsonStream:
    """The entries of a JSON file that holds one object; iterate over it once.

    After the last entry, ``digest`` is the SHA-256 of the whole file, as hexadecimal digits.
    """

    # Why not ijson: as fast for one list, but it reads the file once per list and cannot say where an item lies.

    def __init__(self, path: Path) -> None:
        """Take the file's path; it is opened when the iteration begins."""
        self.path = path
        self.digest = ""

    def __iter__(self) -> Iterator[Entry]:
        """Go through the file.

        Raises:
            InputError: The file cannot be read, is not JSON (for example because it is cut off) or holds no object.
        """
        try:
            with self.path.open("rb") as file:
                reader = _Reader(file, self.path)
                yield from _entries(reader)
                self.digest = reader.digest
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error


def _entries(reader: "_Reader") -> Iterator[Entry]:
    if reader.peek() != "{":
        raise InputError(f"{reader.source}: is not an annotation file; its JSON must begin with an object")
    reader.take("{")
    while reader.peek() != "}":
        key, _, _ = reader.value()
        if not isinstance(key, str):
            raise reader.invalid("Expecting a name in quotes", 0)
        reader.take(":")
        if reader.peek() != "[":
            yield Entry(key, None, *reader.value())
        else:
            yield Entry(key, None, [], *reader.take("["))
            position = 0
            while reader.peek() != "]":
                yield Entry(key, position, *reader.value())
                position += 1
                reader.separator("]")
            reader.take("]")
        reader.separator("}")
    reader.take("}")
    reader.finish()


class _Reader:
    """A window of the file's text that moves forward.

    Bytes are taken for characters (Latin-1), so that places in the text are places in the file; only items that hold
    other than ASCII characters are decoded once more.
    """

    def __init__(self, file: BinaryIO, source: Path) -> None:
        self.source = source
        self._file = file
        self._decoder = json.JSONDecoder()
        self._sha256 = hashlib.sha256()
        self._text, self._base, self._place = "", 0, 0
        self._is_at_end = False
        while len(self._text) < len(_BYTE_ORDER_MARK) and not self._is_at_end:
            self._fill()
        if self._text.startswith(_BYTE_ORDER_MARK.decode("latin-1")):
            self._place = len(_BYTE_ORDER_MARK)

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()

    def peek(self) -> str:
        """Return the next character that is no space; nothing at the end of the file."""
        while True:
            self._place = _SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]  # always matches
            if self._place < len(self._text):
                return self._text[self._place]
            if self._is_at_end:
                return ""
            self._fill()

    def take(self, character: str) -> tuple[int, int]:
        """Go past a character, which must come next; return where it lies."""
        if self.peek() != character:
            raise self.invalid(f"Expecting '{character}'", self._place)
        self._place += 1
        return self._base + self._place - 1, self._base + self._place

    def separator(self, closing: str) -> None:
        """Go past a comma, unless the closing bracket comes next."""
        if self.peek() != closing:
            self.take(",")
            if self.peek() == closing:
                raise self.invalid("Expecting value", self._place)

    def value(self) -> tuple[Any, int, int]:
        """Decode what comes next; return it and where it lies."""
        self.peek()
        while True:
            try:
                value, stop = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # The item may go on beyond the window; other mistakes must not make us read the whole file.
                is_cut = error.pos >= len(self._text) - _LONGEST_LITERAL or error.msg.startswith("Unterminated")
                if self._is_at_end or not is_cut:
                    raise self.invalid(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.source}: is not a JSON file that can be read ({error})") from error
            else:
                if stop < len(self._text) or self._is_at_end:  # a number may go on
                    break
            self._fill()
        if not self._text.isascii():
            value = self._decode_again(self._text[self._place : stop], value)
        start, self._place = self._base + self._place, stop
        return value, start, self._base + stop

    def finish(self) -> None:
        """Make sure that nothing follows."""
        if self.peek():
            raise self.invalid("Extra data", self._place)

    def invalid(self, reason: str, place: int) -> InputError:
        """Say where the text is not JSON."""
        size = self._file.seek(0, 2)
        return InputError(
            f"{self.source}: is not valid JSON ({reason} at byte {self._base + place} of {size}); "
            "it may be cut off: write or download it again"
        )

    def _decode_again(self, text: str, value: Any) -> Any:
        if text.isascii():
            return value
        try:
            return json.loads(text.encode("latin-1").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{self.source}: is not a JSON file that can be read ({error})") from error

    def _fill(self) -> None:
        """Move the window on; at least double it, so that long items are not tried over and over again."""
        rest = self._text[self._place :]
        data = self._file.read(max(_CHUNK, len(rest)))
        self._is_at_end = not data
        self._sha256.update(data)
        self._base += self._place
        self._text, self._place = rest + data.decode("latin-1"), 0
