"""A file system that loses its power: what may be on the disk then, by the weakest promises.

Pure: it is fed with steps and gives contents. What is promised (decision 0013 has the sources):

- A file's bytes and size up to the beginning of an fsync or fdatasync that has returned.
- A directory's entries up to the beginning of an fsync of that directory that has returned; the
  sync of a file says nothing of its name.
- Behind that, each sector holds what it held at some moment since, each on its own, and the size is
  that of some moment since. Where nothing was ever synced there may be anything.
- A change of names happened or did not, each on its own, but never before one of the same name
  that came earlier; a rename is one change, also from one directory to another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tests.support.power_loss.survival import Kept, Survival


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    data: bytes
    ended: int

    def size_after(self, size: int) -> int:
        return max(size, self.offset + len(self.data))


@dataclass(frozen=True, slots=True)
class _Resize:
    size: int
    ended: int

    def size_after(self, size: int) -> int:  # noqa: ARG002  # as _Write's
        return self.size


@dataclass(slots=True, eq=False)
class _File:
    """`pending`: what came since `durable`, in order. `now` is what a reader sees."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Write | _Resize] = field(default_factory=list)
    now: bytearray = field(default_factory=bytearray)

    def change(self, change: _Write | _Resize) -> None:
        self.pending.append(change)
        _apply(self.now, change)

    def synced(self, since: int) -> None:
        """A sync that began at `since` has returned."""
        while self.pending and self.pending[0].ended < since:
            _apply(self.durable, self.pending.pop(0))

    def left(self, survival: Survival, chance: random.Random) -> bytes:
        """What a power cut leaves of it."""
        sizes = [len(self.durable)]
        for change in self.pending:
            sizes.append(change.size_after(sizes[-1]))
        size = sizes[survival.sizes.moment(len(self.pending), chance)]
        content = bytearray(self.durable[:size])
        missing = size - len(content)
        if missing > 0:
            content += chance.randbytes(missing) if survival.garbage else bytes(missing)
        if survival.data is not Kept.NONE:
            self._keep_some(content, survival, chance)
        return bytes(content)

    def _keep_some(self, content: bytearray, survival: Survival, chance: random.Random) -> None:
        """Bring each sector of `content` to one of its moments."""
        sector = survival.sector_bytes
        touched: dict[int, list[_Write | _Resize]] = {}
        for change in self.pending:
            first, stop = _extent(change, len(content))
            for number in range(first // sector, -(-stop // sector)):
                touched.setdefault(number, []).append(change)
        for number, changes in touched.items():
            start = number * sector
            kept = changes[: survival.data.moment(len(changes), chance)]
            if not kept:
                continue
            piece = self.durable[start : min(start + sector, len(content))]
            piece += bytes(min(sector, len(content) - start) - len(piece))
            for change in kept:
                _apply_within(piece, start, change)
            content[start : start + sector] = piece


@dataclass(slots=True, eq=False)
class _Directory:
    """`now` is what a reader sees, `durable` what is sure."""

    durable: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)


_Node = _File | _Directory
_Entry = tuple[_Directory, str]
_Entries = Callable[[_Directory], Mapping[str, _Node]]


@dataclass(frozen=True, slots=True, eq=False)
class _Renaming:
    """One change of names, whole or not at all: what each entry is afterwards."""

    entries: Sequence[tuple[_Entry, _Node | None]]
    ended: int

    def touches(self, keys: set[tuple[int, str]]) -> bool:
        return not keys.isdisjoint(self.keys())

    def keys(self) -> set[tuple[int, str]]:
        return {(id(directory), name) for (directory, name), _ in self.entries}

    def apply(self, side: str) -> None:
        for (directory, name), node in self.entries:
            entries: dict[str, _Node] = getattr(directory, side)
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node


class NoSuchName(LookupError):
    """A step names a file that the model does not have: the recording has a gap."""


class FileSystem:
    """All below one directory, which is there and empty; paths are relative to it.

    Every step takes the place at which its call `ended`, a sync that at which it `began` as well.
    Steps come in the order in which calls began, syncs when they ended.
    """

    def __init__(self) -> None:
        self._root = _Directory()
        self._pending: list[_Renaming] = []
        self._ever: dict[PurePosixPath, _File] = {}

    # -- steps -----------------------------------------------------------------------------

    def create(self, path: PurePosixPath, *, ended: int) -> None:
        """An empty file, if nothing is there."""
        directory, name = self._parent(path)
        if name not in directory.now:
            self._ever[path] = file = _File()
            self._rename([((directory, name), file)], ended)

    def make_directory(self, path: PurePosixPath, *, ended: int) -> None:
        self._rename([(self._parent(path), _Directory())], ended)

    def write(self, path: PurePosixPath, offset: int, data: bytes, *, ended: int) -> None:
        self._file(path).change(_Write(offset, data, ended))

    def append(self, path: PurePosixPath, data: bytes, *, ended: int) -> None:
        file = self._file(path)
        file.change(_Write(len(file.now), data, ended))

    def resize(self, path: PurePosixPath, size: int, *, ended: int) -> None:
        file = self._file(path)
        if size != len(file.now):
            file.change(_Resize(size, ended))

    def rename(self, source: PurePosixPath, target: PurePosixPath, *, ended: int) -> None:
        directory, name = self._parent(source)
        node = directory.now.get(name)
        if node is None:
            raise NoSuchName(source)
        self._rename([((directory, name), None), (self._parent(target), node)], ended)
        if isinstance(node, _File):
            self._ever[target] = node

    def remove(self, path: PurePosixPath, *, ended: int) -> None:
        """Take a name away; nothing, when there is none (a socket's, say)."""
        directory, name = self._parent(path)
        if name in directory.now:
            self._rename([((directory, name), None)], ended)

    def sync(self, path: PurePosixPath, *, began: int) -> None:
        """An fsync or fdatasync has returned."""
        node = self._node(path)
        if isinstance(node, _File):
            node.synced(began)
        else:
            self._sync_names(node, began)

    # -- looking ---------------------------------------------------------------------------

    def ever(self) -> dict[PurePosixPath, bytes]:
        """Every file that there ever was, by its last name, as a reader saw it last."""
        return {path: bytes(file.now) for path, file in self._ever.items()}

    def now(self) -> dict[PurePosixPath, bytes]:
        """Every file as a reader sees it now."""
        return {
            path: bytes(node.now)
            for path, node in _walk(PurePosixPath(), self._root, lambda one: one.now)
            if isinstance(node, _File)
        }

    def after_power_cut(
        self, survival: Survival, chance: random.Random
    ) -> Mapping[PurePosixPath, bytes | None]:
        """Files and what is in them, directories as None, parents first."""
        entries = self._names_left(survival, chance)
        left: dict[PurePosixPath, bytes | None] = {}
        for path, node in _walk(PurePosixPath(), self._root, lambda one: entries.get(id(one), {})):
            left[path] = node.left(survival, chance) if isinstance(node, _File) else None
        return left

    # -- names -----------------------------------------------------------------------------

    def _rename(self, entries: Sequence[tuple[_Entry, _Node | None]], ended: int) -> None:
        change = _Renaming(entries, ended)
        change.apply("now")
        self._pending.append(change)

    def _sync_names(self, directory: _Directory, began: int) -> None:
        """Changes in `directory` that had ended, and whatever of the same names came before."""
        sure: set[int] = set()
        keys: set[tuple[int, str]] = set()
        for number, change in reversed(list(enumerate(self._pending))):
            inside = any(where is directory for (where, _), _ in change.entries)
            if (inside and change.ended < began) or change.touches(keys):
                sure.add(number)
                keys |= change.keys()
        for number in sorted(sure):
            self._pending[number].apply("durable")
        self._pending = [
            change for number, change in enumerate(self._pending) if number not in sure
        ]

    def _names_left(self, survival: Survival, chance: random.Random) -> dict[int, dict[str, _Node]]:
        """The entries of each directory, by its identity."""
        left: dict[int, dict[str, _Node]] = {}
        lost: set[tuple[int, str]] = set()
        self._copy_durable(self._root, left)
        for change in self._pending:
            if not survival.names.moment(1, chance) or change.touches(lost):
                lost |= change.keys()
                continue
            for (directory, name), node in change.entries:
                self._copy_durable(directory, left)
                if node is None:
                    left[id(directory)].pop(name, None)
                else:
                    left[id(directory)][name] = node
                    if isinstance(node, _Directory):
                        self._copy_durable(node, left)
        return left

    def _copy_durable(self, directory: _Directory, left: dict[int, dict[str, _Node]]) -> None:
        if id(directory) in left:
            return
        left[id(directory)] = dict(directory.durable)
        for node in directory.durable.values():
            if isinstance(node, _Directory):
                self._copy_durable(node, left)

    def _node(self, path: PurePosixPath) -> _Node:
        node: _Node = self._root
        for name in path.parts:
            found = node.now.get(name) if isinstance(node, _Directory) else None
            if found is None:
                raise NoSuchName(path)
            node = found
        return node

    def _file(self, path: PurePosixPath) -> _File:
        node = self._node(path)
        if not isinstance(node, _File):
            raise NoSuchName(path)
        return node

    def _parent(self, path: PurePosixPath) -> _Entry:
        node = self._node(path.parent)
        if not isinstance(node, _Directory):
            raise NoSuchName(path)
        return node, path.name


def _walk(
    path: PurePosixPath, directory: _Directory, entries: _Entries
) -> Iterator[tuple[PurePosixPath, _Node]]:
    for name, node in entries(directory).items():
        yield path / name, node
        if isinstance(node, _Directory):
            yield from _walk(path / name, node, entries)


def _apply(content: bytearray, change: _Write | _Resize) -> None:
    if isinstance(change, _Resize):
        del content[change.size :]
        content += bytes(change.size - len(content))
        return
    content += bytes(max(0, change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


def _extent(change: _Write | _Resize, size: int) -> tuple[int, int]:
    """From where to where `change` changes a file that is `size` long at last."""
    if isinstance(change, _Resize):
        return min(change.size, size), size
    return min(change.offset, size), min(change.offset + len(change.data), size)


def _apply_within(piece: bytearray, start: int, change: _Write | _Resize) -> None:
    """What `change` does to the sector at `start`; the size is somebody else's matter."""
    stop = start + len(piece)
    if isinstance(change, _Resize):
        cut = max(start, change.size)
        if cut < stop:
            piece[cut - start :] = bytes(stop - cut)
        return
    first, last = max(start, change.offset), min(stop, change.offset + len(change.data))
    if first < last:
        written = change.data[first - change.offset : last - change.offset]
        piece[first - start : last - start] = written
