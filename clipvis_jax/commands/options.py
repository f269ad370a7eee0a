"""The options of a command: parsed by tyro, and named in errors of the library."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from clipvis_jax.errors import InputError

_PLAIN = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)


def parse_options(
    command: type,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    config: Sequence[Any] = _PLAIN,
) -> Any:
    """Parse the options of a dataclass.

    Raises:
        InputError: A dataclass of settings refuses its values.
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return tyro.cli(command, prog=prog, description=description, args=list(arguments), config=config)
    except SystemExit as exit_:
        # tyro draws a box around the ValueErrors of settings, of which InputError is one.
        cause = exit_.__context__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        if exit_.code and not all(map(str.isprintable, arguments)):
            # The box would show them raw.
            raise InputError(f"{' '.join(arguments)}: is no command line; '{prog} --help' lists the options") from None
        sys.stderr.write(shown.getvalue())
        raise


def name_option(message: str, arguments: Sequence[str]) -> str:
    """Name the option where the library names a field: "size 5: ..." becomes "--size 5: ..." if --size was given.

    Args:
        message: What the library says: a field, perhaps with its path in the configuration, and its value first.
        arguments: The command line.
    """
    found = re.match(r"([a-z][\w.]*)(?= (\S+|[(\[].*?[)\]]):)", message)
    if found is None or any(" " in argument and message.startswith(argument) for argument in arguments):
        return message  # no field, or a file whose name looks like one with its value
    field = found[1].replace("_", "-")
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    options = [option for option in sorted(given) if option[2:] == field or option.endswith(f".{field}")]
    return f"{options[0]}{message[found.end() :]}" if len(options) == 1 else message
