"""The exceptions that mean: the user can mend this."""


class UserError(ValueError):
    """Bad input. The message is one line: the thing, its value, the limit and the way out.

    The command-line shells print it without a stack trace and exit with code 2.
    """


class DivergedError(UserError):
    """Training went off to values that are not finite."""
