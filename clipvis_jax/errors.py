"""What the user did wrong, said in one line."""


class InputError(ValueError):
    """Bad input: a file, field or option that cannot be used.

    The message is one line that names the file, field or option and says what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Take the message; names from files in it cannot forge lines or control the terminal."""
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return a text on one line, with line breaks and control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def show(value: object) -> str:
    """Write a value in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says, at most 200 characters: libraries may say pages."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
