"""JSON decoded by a schema: whatever stands in a file, what comes back has the fields and types that are wanted."""

import functools
import re
from pathlib import Path
from typing import Any

import msgspec
from etils import epath

from clipvis_jax.errors import InputError, show

# What to do about a text that is no JSON, by what msgspec says of it and what stands there.
_ADVICE = {
    r"^invalid .* found .?-?(NaN|Infinity)": "JSON has no NaN and no Infinity; leave such records out",
    r'escape found|surrogate|^Input data was truncated found .*\\u[dD][89a-fA-F].."': "half a surrogate is no text",
    r"^Invalid UTF-8": "save it as UTF-8",
    r"^maximum recursion": "nothing in an annotation file is nested so deeply; check what wrote it",
    r"^Input data was truncated": "it may be cut off: write or download it again",
}


def read_json(path: Path | epath.Path, kind: Any, advice: str) -> Any:
    """Read a small JSON file that the program wrote itself, and check it by a schema.

    Args:
        path: The file.
        kind: What it must be; a type that msgspec knows, such as a dataclass.
        advice: What messages tell the user to do about a file that cannot be used.

    Raises:
        InputError: It cannot be read, is not JSON, or is of another kind; the message names the field.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a regular file; {advice}")
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from error
    return decode(text, kind, f"{path}:", advice)


def decode(text: Any, kind: Any, where: str, advice: str | None = None) -> Any:
    """Decode JSON and check that it is of a kind that msgspec knows.

    Args:
        text: The JSON, as bytes or a view of them.
        kind: The type.
        where: What messages call it: the record, or the file with a colon.
        advice: What messages tell the user to do; default: what the text itself suggests.

    Raises:
        InputError: It is not; the message names the field.
    """
    try:
        return _decoder(kind).decode(text)
    except msgspec.ValidationError as error:
        message, _, field = str(error).replace("`", "").partition(" - at ")
        message = message if len(message) <= 120 else f"{message[:117]}..."  # it may quote what stands there
        field = field.removeprefix("key in ").removeprefix("$")
        where += f" {field.removeprefix('.')}" if field and where.endswith(":") else field
        name = message.removeprefix("Object missing required field ")
        message = f"{where} has no '{name}'" if name != message else f"{where.removesuffix(':')}: {message}"
        raise InputError(message + (f"; {advice}" if advice else "")) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        # msgspec before 0.23 lets Python's own error through, which counts from the beginning of the string.
        said = "Invalid UTF-8 encoded string" if isinstance(error, UnicodeDecodeError) else str(error)
        message, _, place = said.removeprefix("JSON is malformed: ").partition(" (byte ")
        size = len(memoryview(text))
        byte = int(place.rstrip(")")) if place else size
        near = bytes(memoryview(text)[max(0, byte - 20) : byte + 20]).decode("utf-8", "replace")
        there = bytes(memoryview(text)[max(0, byte - (1 if place else 12)) : byte + 9]).decode("latin-1")
        if advice is None:
            known = (x for regex, x in _ADVICE.items() if re.search(regex, f"{message} found {there}"))
            advice = next(known, "correct it")
        if place:
            message += f" at byte {byte} of {size}, near {show(near)}"
        raise InputError(f"{where.removesuffix(':')}: is not valid JSON ({message}); {advice}") from error


@functools.cache
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)
