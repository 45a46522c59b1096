"""The simulated power cut itself: it takes what it may take, and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from tests.support.power_loss.file_system import FileSystem, NoSuchName
from tests.support.power_loss.recording import Recording, Sent, under_strace, wait_recorded
from tests.support.power_loss.survival import CORNERS, Kept, Survival, drawn
from tests.support.power_loss.told import answers, told

FILE: Final = PurePosixPath("file")
FOLDER: Final = PurePosixPath("folder")
ROOT: Final = PurePosixPath()
NOTHING, NAMES, SIZES, DATA = CORNERS
EVERYTHING: Final = Survival(data=Kept.ALL, sizes=Kept.ALL, names=Kept.ALL)
DRAWS: Final = 200


class Disk(FileSystem):
    """Steps one after the other: each has ended before the next begins."""

    def __init__(self) -> None:
        super().__init__()
        self._places = count(1)

    def put(self, path: PurePosixPath, data: bytes, *, at: int = 0) -> None:
        self.create(path, ended=next(self._places))
        self.write(path, at, data, ended=next(self._places))

    def synced(self, *paths: PurePosixPath) -> None:
        for path in paths:
            self.sync(path, began=next(self._places))

    def folder(self, path: PurePosixPath) -> None:
        self.make_directory(path, ended=next(self._places))

    def moved(self, source: PurePosixPath, target: PurePosixPath) -> None:
        self.rename(source, target, ended=next(self._places))

    def gone(self, path: PurePosixPath) -> None:
        self.remove(path, ended=next(self._places))

    def cut(self, survival: Survival, seed: int = 0) -> dict[PurePosixPath, bytes | None]:
        chance = random.Random(seed)  # noqa: S311  # moments, not secrets
        return dict(self.after_power_cut(survival, chance))

    def cuts(self) -> list[dict[PurePosixPath, bytes | None]]:
        """Many, with everything left to chance."""
        chance = random.Random(1)  # noqa: S311  # as above
        return [dict(self.after_power_cut(drawn(chance), chance)) for _ in range(DRAWS)]


def test_only_what_was_synced_is_sure() -> None:
    disk = Disk()
    disk.put(FILE, b"one")
    disk.synced(FILE, ROOT)
    disk.put(FILE, b"two!")
    assert disk.cut(NOTHING) == {FILE: b"one"}
    assert disk.cut(EVERYTHING) == {FILE: b"two!"} == disk.now()
    assert {cut[FILE] for cut in disk.cuts()} >= {b"one", b"two!", b"two"}


def test_a_file_that_was_synced_may_still_lose_its_name() -> None:
    disk = Disk()
    disk.put(FILE, b"one")
    disk.synced(FILE)
    assert disk.cut(NOTHING) == disk.cut(DATA) == {}
    assert disk.cut(NAMES) == {FILE: b"one"}


def test_a_name_may_come_without_its_bytes() -> None:
    disk = Disk()
    disk.put(FILE, b"one")
    disk.synced(ROOT)
    assert disk.cut(NAMES) == {FILE: b""}
    content = disk.cut(SIZES)[FILE]
    assert content is not None
    assert len(content) == 3
    assert content != b"one"


def test_what_is_in_a_folder_is_lost_with_the_folders_name() -> None:
    disk = Disk()
    disk.folder(FOLDER)
    disk.put(FOLDER / "file", b"one")
    disk.synced(FOLDER / "file", FOLDER)
    assert disk.cut(NOTHING) == {}
    disk.synced(ROOT)
    assert disk.cut(NOTHING) == {FOLDER: None, FOLDER / "file": b"one"}


def test_a_rename_happens_wholly_or_not_at_all() -> None:
    disk = Disk()
    disk.folder(FOLDER)
    disk.put(FILE, b"one")
    disk.synced(FILE, ROOT)
    disk.moved(FILE, FOLDER / "file")
    assert disk.cut(NOTHING) == {FOLDER: None, FILE: b"one"}
    assert {tuple(sorted(cut)) for cut in disk.cuts()} == {
        (FILE, FOLDER),
        (FOLDER, FOLDER / "file"),
    }
    disk.synced(FOLDER)  # of either of its two folders
    assert disk.cut(NOTHING) == {FOLDER: None, FOLDER / "file": b"one"}


def test_changes_of_one_name_come_in_their_order_and_of_several_in_any() -> None:
    disk = Disk()
    other = PurePosixPath("other")
    disk.put(FILE, b"1")
    disk.put(other, b"2")
    disk.gone(FILE)
    names = {tuple(sorted(cut)) for cut in disk.cuts()}
    assert names == {(), (FILE,), (other,), (FILE, other)}
    disk = Disk()
    disk.put(FILE, b"1")
    disk.moved(FILE, other)
    assert {tuple(sorted(cut)) for cut in disk.cuts()} == {(), (FILE,), (other,)}


def test_what_was_removed_may_come_back_until_its_folder_is_synced() -> None:
    disk = Disk()
    disk.put(FILE, b"one")
    disk.synced(FILE, ROOT)
    disk.gone(FILE)
    assert disk.cut(NOTHING) == {FILE: b"one"}
    disk.synced(ROOT)
    assert disk.cut(EVERYTHING) == disk.cut(NOTHING) == {}


@pytest.mark.parametrize("sector", [512, 4096])
def test_each_sector_is_wholly_of_one_moment(sector: int) -> None:
    disk = Disk()
    size = 8 * sector
    disk.put(FILE, b"a" * size)
    disk.synced(FILE, ROOT)
    disk.put(FILE, b"b" * size)
    disk.put(FILE, b"c" * size)
    torn = Survival(data=Kept.SOME, sizes=Kept.SOME, names=Kept.SOME, sector_bytes=sector)
    seen = set()
    for seed in range(DRAWS):
        content = disk.cut(torn, seed)[FILE]
        assert content is not None
        pieces = [content[start : start + sector] for start in range(0, size, sector)]
        assert all(piece in (b"a" * sector, b"b" * sector, b"c" * sector) for piece in pieces)
        seen.add(content)
    assert len(seen) > DRAWS // 2


def test_bytes_beside_a_write_stay_what_they_were() -> None:
    """What SQLite calls powersafe overwrite."""
    disk = Disk()
    disk.put(FILE, b"a" * 100)
    disk.synced(FILE, ROOT)
    disk.put(FILE, b"b" * 10, at=20)
    for cut in disk.cuts():
        assert cut[FILE] in (b"a" * 100, b"a" * 20 + b"b" * 10 + b"a" * 70)


def test_a_sync_covers_what_had_ended_when_it_began() -> None:
    disk = FileSystem()
    disk.create(FILE, ended=1)
    disk.write(FILE, 0, b"one", ended=2)
    disk.write(FILE, 3, b"two", ended=5)
    disk.sync(FILE, began=4)
    disk.sync(ROOT, began=4)
    chance = random.Random(1)  # noqa: S311  # moments, not secrets
    assert disk.after_power_cut(NOTHING, chance) == {FILE: b"one"}


def test_a_gap_in_a_recording_is_an_error() -> None:
    with pytest.raises(NoSuchName):
        Disk().write(FILE, 0, b"x", ended=1)


PROGRAM: Final = """
import os, sys, tempfile
a = sys.argv[1] + "/a/"
os.makedirs(a + "b")
fd = os.open(a + "one", os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, b"0123456789"); os.write(fd, b"abc\\0\\n\\"")
os.pwrite(fd, b"XY", 3); os.lseek(fd, 5, 0); os.write(fd, b"Z")
os.ftruncate(fd, 12); os.ftruncate(fd, 20); os.fsync(fd)
os.rename(a + "one", a + "b/two"); os.write(fd, b"!"); os.close(fd)
os.writev(os.open(a + "v", os.O_WRONLY | os.O_CREAT), [b"12", b"", b"34"])
open(a + "gone", "w").write("x"); os.unlink("gone", dir_fd=os.open(a, os.O_RDONLY))
open(a + "again", "w").write("long"); open(a + "again", "w").write("s")
with tempfile.TemporaryFile(dir=a) as file: file.write(b"nameless")
if os.fork() == 0:
    with open(a + "child", "w") as file: file.write("of a child")
    os._exit(0)
os.wait()
os.mkdir(a + "c"); os.rmdir(a + "c")
"""


def test_what_is_played_is_what_the_kernel_did(tmp_path: Path) -> None:
    disk, trace = tmp_path / "disk", tmp_path / "trace"
    disk.mkdir()
    (disk / "ignored").mkdir()
    subprocess.run([*under_strace(trace), sys.executable, "-c", PROGRAM, disk], check=True)
    wait_recorded(trace)
    recording = Recording.of([trace], disk, ignored=frozenset({"ignored"}))
    player = recording.player()
    assert len(recording.busy_places()) > 20
    player.go_to(recording.end)
    assert {str(path): content for path, content in player.files.now().items()} == {
        str(path.relative_to(disk)): path.read_bytes() for path in disk.rglob("*") if path.is_file()
    }


def test_an_answer_counts_from_its_last_byte_on() -> None:
    body = b'{"id":"file-1","object":"file","filename":"a","bytes":3}'
    deleted = b'{"id":"file-1","object":"file","deleted":true}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    refused = b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n{}"
    sent = [
        Sent("socket:[2]", b"not HTTP", 5),
        Sent("socket:[1]", refused + head % len(body) + body[:9], 10),
        Sent("socket:[1]", body[9:], 20),
        Sent("socket:[1]", head % len(deleted) + deleted, 30),
    ]
    given = answers(sent)
    assert [answer.place for answer in given] == [20, 30]
    assert told(given[:1], 20).files == {}
    assert list(told(given[:1], 21).files) == ["file-1"]
    # While it is being deleted nothing is known of it, and afterwards that it is gone.
    assert told(given, 25).files == {}
    assert told(given, 25).deleted == set()
    assert told(given, 31).deleted == {"file-1"}
