"""The private directory of a run: the engine's data directory, and whose input it belongs to.

It is there from the first start of a run until everything is done and written. It goes by a rename
first, so that a crash never leaves half of it to be taken for a run that goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchline import telemetry
from batchline.cli.data_directory import DataDirectory
from batchline.cli.outcome import USAGE, CommandFailed
from batchline.cli.whole_file import whole_file
from batchline.durable import sync_folder


class InputNote(msgspec.Struct, frozen=True):
    """What a run was started with: a run goes on only with the same."""

    bytes: int
    sha256: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Where it is; nothing need be there."""

    root: Path

    @property
    def exists(self) -> bool:
        return self.root.exists()

    def take(self, *, restart: bool) -> DataDirectory:
        """Create and lock it; `restart` empties it first.

        Raises:
            ConfigError: another run uses it, or it cannot be used.
        """
        shutil.rmtree(self._leaving, ignore_errors=True)
        taken = DataDirectory.take(self.root)
        if restart:
            self.remove()
            taken.release()
            taken = DataDirectory.take(self.root)
        return taken

    def check_input(self, now: InputNote) -> None:
        """Note the input of a new run, or compare it with that of the run that is there.

        Raises:
            CommandFailed: it is another one.
        """
        path = self.root / "input.json"
        try:
            before = msgspec.json.decode(path.read_bytes(), type=InputNote)
        except FileNotFoundError:
            with whole_file(path) as file:
                file.write(msgspec.json.encode(now))
            return
        except msgspec.DecodeError as exc:
            raise CommandFailed(
                f"{path} is damaged; begin anew with --restart", exit_code=USAGE
            ) from exc
        if before != now:
            what = "endpoint" if before.endpoint != now.endpoint else "input"
            raise CommandFailed(
                f"{self.root} holds an unfinished run with another {what}. Finish that one with"
                " what it was started with, choose another --output, or begin anew with --restart"
                " (its results are then lost).",
                exit_code=USAGE,
            )

    def remove(self) -> None:
        """Make it go; a crash meanwhile leaves all of it, or what the next start removes."""
        self.root.rename(self._leaving)
        sync_folder(self.root.parent)  # else its files may be gone and its name not
        telemetry.probe("run.removing")
        shutil.rmtree(self._leaving, ignore_errors=True)

    @property
    def _leaving(self) -> Path:
        return self.root.with_name(self.root.name + ".removed")
