"""What the user did wrong, said in one line; and texts that cannot forge lines or control a terminal."""

import re

_HIDDEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Control characters, line separators, half surrogates, and what is not seen but turns the writing or splits words. The
joiners of emoji and of several scripts are not among them, nor wide or unbreakable spaces."""
_CONTROL, _UNPRINTABLE = re.compile(f"[{_HIDDEN}]"), re.compile(f"[\t\n{_HIDDEN}]")


class InputError(ValueError):
    """Bad input: a file, field or option that cannot be used.

    The message is one line that names the file, field or option and says what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Take the message; names from files in it cannot forge lines or control the terminal."""
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return a text on one line, with line breaks, control characters and changes of the writing direction escaped."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def without_controls(text: str) -> str:
    """Return a text of several lines, with what `printable` escapes but line breaks and tabs escaped."""
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def show(value: object) -> str:
    """Write a value in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says, at most 200 characters: libraries may say pages."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
