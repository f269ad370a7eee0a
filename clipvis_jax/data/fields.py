"""Fields of JSON files, each checked: an error is one line that names the file, the record and the field."""

import json
import math
import numbers
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipvis_jax.errors import InputError, show

_MAX_INTEGER = 2**53
"""Beyond, a float cannot tell two neighbouring numbers apart."""


def load_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file cannot be read or is not JSON, for example because it is cut off.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a device may have no end
            raise InputError(f"{path}: is not a regular file; give a JSON file")
        with Path(path).open(encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        is_cut_off = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
        advice = "it may be cut off: write or download it again" if is_cut_off else "correct it"
        raise InputError(
            f"{path}: is not valid JSON ({error.msg} at character {error.pos} of {len(error.doc)}); {advice}"
        ) from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a JSON file that can be read ({error})") from error


def field(record: Any, name: str, where: str) -> Any:
    """Return a field of a record; `where` says which record in messages.

    Raises:
        InputError: `record` is not an object or has no such field.
    """
    if type(record) is not dict and not isinstance(record, Mapping):  # the second test is slow
        raise InputError(f"{where} is {show(record)}; an object with the field '{name}' is needed")
    if name not in record:
        raise InputError(f"{where} has no '{name}'")
    return record[name]


def list_field(record: Any, name: str, where: str) -> list[Any]:
    """Return a field that must be a list.

    Raises:
        InputError: It is missing or something else.
    """
    value = field(record, name, where)
    if not isinstance(value, list):
        raise InputError(f"{where}.{name} is {show(value)}; a list is needed")
    return value


def integer_field(record: Any, name: str, where: str, low: int = -_MAX_INTEGER, high: int = _MAX_INTEGER) -> int:
    """Return a field that must be a whole number from `low` to `high`.

    Raises:
        InputError: It is missing or something else.
    """
    value = field(record, name, where)
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise InputError(f"{where}.{name} is {show(value)}; a whole number is needed")
    number = int(value)
    if not low <= number <= high:
        raise InputError(f"{where}.{name} is {show(number)}; it must lie between {low} and {high}")
    return number


def number_field(record: Any, name: str, where: str) -> float:
    """Return a field that must be a finite number.

    Raises:
        InputError: It is missing, NaN, infinite or no number.
    """
    return finite(field(record, name, where), f"{where}.{name}")


def finite(value: object, where: str) -> float:
    """Return a number that must be finite.

    Raises:
        InputError: It is NaN, infinite or no number.
    """
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, int | numbers.Real)):
        raise InputError(f"{where} is {show(value)}; a finite number is needed")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where} is {show(value)}; a finite number is needed")
    return number
