"""Exceptions for errors that the user can fix."""


class UserError(ValueError):
    """Invalid input. The message is one line: the thing, its value, the limit and the remedy.

    The command-line shells print it without a stack trace and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class DivergedError(UserError):
    """A loss or a parameter became NaN or infinite."""
