"""How a command ends: its exit code, and one place that turns failures into it."""

from __future__ import annotations

import codecs
import functools
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TextIO

import typer

from batchline.domain.errors import BatchlineError

FAILED: Final = 1  # the batch, a line or a file
USAGE: Final = 2  # a wrong option, setting or input; nothing was started
UNREACHABLE: Final = 3  # no server answers
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE: whoever read our output went away

P = ParamSpec("P")

_ESCAPED: Final = "batchline-escaped"


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
        _take_any_output()
        try:
            command(*args, **kwargs)
            sys.stdout.flush()  # so that a closed pipe shows here and not at the interpreter's end
        except CommandFailed as exc:
            typer.echo(f"batchline: {exc.message}", err=True)
            raise typer.Exit(exc.exit_code) from None
        except UnicodeEncodeError:  # output is escaped: only what was typed can be so
            typer.echo("batchline: an argument is not UTF-8", err=True)
            raise typer.Exit(USAGE) from None
        except BrokenPipeError:
            _let_go_of_output()
            raise typer.Exit(PIPE_CLOSED) from None
        except OSError as exc:  # stdout on a full disk, say
            _let_go_of_output()
            where = "" if exc.filename is None else f"{exc.filename}: "
            typer.echo(f"batchline: {where}{exc.strerror or exc}", err=True)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def _take_any_output() -> None:
    """Have nothing that is written fail for its letters, or because nobody opened the stream."""
    if sys.stdout is None:  # `>&-`
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _escaped(problem: UnicodeError) -> tuple[str, int]:
    """What an encoding has not, as JSON escapes it: so that JSON stays what it is."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    return json.dumps(problem.object[problem.start : problem.end])[1:-1], problem.end


codecs.register_error(_ESCAPED, _escaped)


def _let_go_of_output() -> None:
    """What is still buffered has nowhere to go; without this the interpreter complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add(app: typer.Typer, name: str, command: Callable[P, None]) -> None:
    """Add a command to a program or a group, ending well."""
    app.command(name)(ended_well(command))
