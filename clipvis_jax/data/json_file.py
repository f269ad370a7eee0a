"""A JSON file of any size, mapped into memory: its outermost object's members as text, decoded when asked for."""

import hashlib
import mmap
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import decode

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Signature = tuple[int, int]
"""Size and time of change by which a file is recognized."""


class JsonFile:
    """The members of a file's outermost object, each as the text that stands in the file.

    Attributes:
        members: Their texts by name. They are parts of the mapped file, which is let go with the last of them.
        signature: Of the very file that is mapped, whatever bears its name by now.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and look for its members.

        Raises:
            InputError: The file cannot be read, is not JSON (for example because it is cut off) or holds no object.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self.signature = signature(file.fileno())
                size = self.signature[0]
                self._text = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        text = memoryview(self._text)
        start = len(_BYTE_ORDER_MARK) if self._text[: len(_BYTE_ORDER_MARK)] == _BYTE_ORDER_MARK else 0
        blanks = re.compile(rb"[ \t\r\n]*").match(self._text, start)
        if blanks is None or self._text[blanks.end() : blanks.end() + 1] != b"{":
            raise InputError(f"{path}: is not an annotation file; its JSON must begin with an object")
        self.members = decode(text[start:], dict[str, msgspec.Raw], str(path))

    @property
    def digest(self) -> str:
        """SHA-256 of the whole file, as hexadecimal digits."""
        return hashlib.sha256(self._text).hexdigest()

    def records(self, name: str) -> list[msgspec.Raw]:
        """Return the texts of a list's items; null is an empty list.

        Raises:
            InputError: The file has no such member, or it is something else.
        """
        if name not in self.members:
            raise InputError(f"{self.path}: has no '{name}'; give a whole annotation file")
        return decode(self.members[name], list[msgspec.Raw] | None, f"{self.path}: {name}") or []

    def place(self, text: msgspec.Raw) -> tuple[int, int]:
        """Return start and stop, in bytes, of where a text lies in the file."""
        start = _address(text) - _address(self._text)
        return start, start + len(memoryview(text))


def signature(descriptor: int) -> Signature:
    """Return size and time of change of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _address(text: Any) -> int:
    # msgspec does not tell places; its raw texts are views of the buffer, whose addresses numpy knows.
    return np.frombuffer(text, np.uint8).__array_interface__["data"][0]
