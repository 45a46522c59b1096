"""Writes a plan: entries as they are found, put into another order at the end if need be."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from batchline.domain import bitmap, plan
from batchline.domain.model import PlannedShards
from batchline.domain.plan import PlanEntry
from batchline.service.scratch import unnamed_file, write_all
from batchline.telemetry import probe

_GROUPING_ENTRIES: Final = 65_536  # regrouped at a time: 1.5 MiB of entries


def unfinished(path: Path) -> Path:
    """Where the plan at `path` is written anew; a child that was killed leaves it there."""
    return path.with_name(f"{path.name}.grouped")


class PlanWriter:
    """The plan of one batch, growing at `path`; whatever was there is replaced.

    The file counts only after `finish`; `close` without it removes the file. Every method may raise
    OSError (a full disk). `models_known`: see `plan.header`.
    """

    def __init__(self, path: Path, *, models_known: bool = True) -> None:
        self._path = path
        self._models_known = models_known
        self._finished = False
        self._fd = _new_file(path, models_known=models_known)
        # The number of each entry's model goes to disk as well: 20 MB at ten million lines.
        self._models_fd = unnamed_file(path.parent)
        self._counts: list[int] | None = None  # of each model's entries, once they are together
        self._follows = False
        self.entries = 0

    def add(self, packed: bytes, models: array[int]) -> None:
        """Append packed entries; `models` (type "H") has the number of each one's model."""
        write_all(self._fd, packed)
        write_all(self._models_fd, models)
        self.entries += len(models)

    def entry(self, number: int) -> PlanEntry:
        """An entry by its number: from 0 in file order, or in the newer order that the plan has."""
        offset, length = plan.span(number, 1)
        return next(plan.unpack(os.pread(self._fd, length, offset)))

    def drop(self, dropped: bytes | bytearray) -> None:
        """Take out the entries whose bit is set in `dropped`; those behind them move up."""
        kept = done = 0
        for numbers in self._model_numbers():
            offset, length = plan.span(done, len(numbers))
            entries = os.pread(self._fd, length, offset)
            # A run is a multiple of eight entries, so its bits begin with a byte.
            bits = dropped[done >> 3 : (done + len(numbers) + 7) >> 3]
            staying = list(bitmap.clear_indexes(bits, len(numbers)))
            size = plan.ENTRY_BYTES
            packed = b"".join([entries[at * size : (at + 1) * size] for at in staying])
            # Behind what was read in both files: entries move towards the front only.
            _write_at(self._fd, packed, plan.span(kept, 0)[0])
            models = array("H", [numbers[at] for at in staying])
            _write_at(self._models_fd, models.tobytes(), kept * models.itemsize)
            kept += len(staying)
            done += len(numbers)
        os.ftruncate(self._fd, plan.span(kept, 0)[0])
        os.ftruncate(self._models_fd, kept * array("H").itemsize)
        self.entries = kept

    def packed(self) -> Iterator[bytes]:
        """All packed entries as they are now, in bounded parts."""
        for first in range(0, self.entries, _GROUPING_ENTRIES):
            entries = min(_GROUPING_ENTRIES, self.entries - first)
            offset, length = plan.span(first, entries)
            yield os.pread(self._fd, length, offset)

    def runs(self) -> Iterator[tuple[bytes, array[int]]]:
        """All packed entries with the numbers of their models, in file order, in bounded parts.

        Not once they have another order.
        """
        done = 0
        for numbers in self._model_numbers():
            offset, length = plan.span(done, len(numbers))
            yield os.pread(self._fd, length, offset), numbers
            done += len(numbers)

    def reorder(self, packed: Iterable[bytes], counts: list[int]) -> None:
        """Replace all entries by `packed`, whole entries in dispatch order, model after model.

        `counts` says how many entries each model has.
        """
        self._rewrite(lambda fd: _write_each(fd, packed))
        self._counts = counts

    def follow(self, packed: Iterable[bytes]) -> None:
        """Replace all entries by `packed`, the same ones, of which some FOLLOW others now.

        No model has other entries than before: the plan is grouped already.
        """
        self._rewrite(lambda fd: _write_each(fd, packed), followers=True)
        self._follows = True

    def group(self, models: int) -> list[int]:
        """Put the entries of each model together; how many each has."""
        if self._counts is None:
            self._counts = [self.entries] if models == 1 else self._group(models)
        return self._counts

    def finish(self, models: Sequence[str], shard_entries: int) -> PlannedShards:
        """Put the entries in dispatch order, cut them into shards and make the file durable.

        `models` are the batch's models by number. Each shard has one model; models keep the order
        in which the file first names them, and lines of a model keep the file's order, or that of
        `reorder`.
        """
        counts = self.group(len(models))
        os.fsync(self._fd)
        probe("plan.synced")
        self._finished = True
        sizes = array("I")
        shards = []
        first = 0
        for count in counts:
            before = len(sizes)
            sizes.extend(self._sizes(first, first + count, shard_entries))
            shards.append(len(sizes) - before)
            first += count
        return PlannedShards(models=models, counts=shards, sizes=sizes.tobytes())

    def _sizes(self, first: int, end: int, most: int) -> Iterator[int]:
        """How many entries each shard of a model has: `most`, or a few less where entries that
        follow would be torn from the one that they follow."""
        if not self._follows:
            for _, entries in plan.shard_spans(end - first, most):
                yield entries
            return
        while first < end:
            stop = min(first + most, end)
            while stop < end and self.entry(stop).prefix_hash == plan.FOLLOWS:
                stop -= 1
            yield stop - first
            first = stop

    def _group(self, models: int) -> list[int]:
        """Rewrite the plan ordered by model; how many entries each model has."""
        counted: Counter[int] = Counter()
        for numbers in self._model_numbers():
            counted.update(numbers)
        counts = [counted[model] for model in range(models)]
        places = []  # where in the file the next entry of each model goes
        first = 0
        for count in counts:
            places.append(plan.span(first, 0)[0])
            first += count
        self._rewrite(lambda fd: self._scatter(fd, places))
        return counts

    def _rewrite(self, write: Callable[[int], None], *, followers: bool = False) -> None:
        """Put what `write` writes behind the header in the place of the plan."""
        partial = unfinished(self._path)
        fd = _new_file(partial, followers=followers, models_known=self._models_known)
        try:
            write(fd)
            partial.replace(self._path)
        except BaseException:
            os.close(fd)
            partial.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd = fd

    def _scatter(self, fd: int, places: list[int]) -> None:
        size = plan.ENTRY_BYTES
        for entries, numbers in self.runs():
            groups: dict[int, list[bytes]] = {}
            for at, model in enumerate(numbers):
                groups.setdefault(model, []).append(entries[at * size : (at + 1) * size])
            for model, group in groups.items():
                os.lseek(fd, places[model], os.SEEK_SET)
                write_all(fd, b"".join(group))
                places[model] += size * len(group)

    def _model_numbers(self) -> Iterator[array[int]]:
        """The model numbers of all entries, in file order, in runs of _GROUPING_ENTRIES."""
        at = 0
        while raw := os.pread(self._models_fd, _GROUPING_ENTRIES * 2, at):
            at += len(raw)
            yield array("H", raw)

    def close(self) -> None:
        os.close(self._models_fd)
        os.close(self._fd)
        if not self._finished:
            self._path.unlink(missing_ok=True)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    os.lseek(fd, offset, os.SEEK_SET)
    write_all(fd, data)


def _write_each(fd: int, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        write_all(fd, piece)


def models_known(path: Path) -> bool:
    """Whether every model of the plan at `path` was known when it was made; True also where that
    cannot be read: whoever runs the plan finds that out."""
    try:
        with path.open("rb") as file:
            return plan.models_known(file.read(plan.HEADER_BYTES))
    except OSError:
        return True


def _new_file(path: Path, *, models_known: bool, followers: bool = False) -> int:
    """An empty file with the header of a plan."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, plan.header(followers=followers, models_known=models_known))
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd
