"""How a command ends: its exit code, and one place that turns failures into it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Final, ParamSpec

import typer

from batchline.domain.errors import BatchlineError

FAILED: Final = 1  # the batch, a line or a file
USAGE: Final = 2  # a wrong option, setting or input; nothing was started
UNREACHABLE: Final = 3  # no server answers
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE: whoever read our output went away

P = ParamSpec("P")


class CommandFailed(BatchlineError):
    """A command cannot do what it was asked; the message is for the person who typed it."""

    code = "command_failed"

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ended_well(command: Callable[P, None]) -> Callable[P, None]:
    """`command`, ending with the exit codes above and one message on stderr instead of a trace."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()  # so that a closed pipe shows here and not at the interpreter's end
        except CommandFailed as exc:
            typer.echo(f"batchline: {exc.message}", err=True)
            raise typer.Exit(exc.exit_code) from None
        except BrokenPipeError:
            # What is still buffered has nowhere to go; without this the interpreter complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def add(app: typer.Typer, name: str, command: Callable[P, None]) -> None:
    """Add a command to a program or a group, ending well."""
    app.command(name)(ended_well(command))
