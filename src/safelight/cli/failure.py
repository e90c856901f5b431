"""How commands end: the exit codes, and errors as one message without a traceback."""

from enum import IntEnum

import click


class Exit(IntEnum):
    """The exit codes, the same for every command."""

    DONE = 0
    FAILED = 1  # the job failed, or the command did
    USAGE = 2
    UNAVAILABLE = 5  # no Safelight answers, or it cannot take the job now
    STILL_RUNNING = 6  # we stopped watching; the job goes on
    CANCELLED = 130


class Failure(click.ClickException):
    """Ends the command with a message and one of the exit codes."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = int(code)  # click declares it for classes only, and reads it from the instance
