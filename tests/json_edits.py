"""Changed copies of JSON content, for tests of what is wrong in a file."""

import copy
from collections.abc import Sequence
from typing import Any

DELETE = object()
"""A value that takes its entry away."""


def changed(content: Any, path: Sequence[str | int], value: object) -> Any:
    """Copy content and set, or delete, what a path of keys leads to."""
    *keys, last = path
    place = content = copy.deepcopy(content)
    for key in keys:
        place = place[key]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return content


def changed_entries(content: Any, **changes: object) -> Any:
    """Copy content and change several entries; names may reach into it: text__width."""
    for name, value in changes.items():
        content = changed(content, name.split("__"), value)
    return content
