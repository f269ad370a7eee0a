"""What the user did wrong, said in one line."""


class InputError(ValueError):
    """Bad input: a file, field or option that cannot be used.

    The message is one line that names the file, field or option and says what to do. The command line prints it
    without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says, at most 200 characters: libraries may say pages."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
