"""What running downloads hold, and for how long when it is deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack

import pytest

from batchline.domain.ids import BatchId, FileId
from batchline.service.downloads import Downloads, holding

ONE, OTHER = FileId("file-1"), FileId("file-2")


async def some(chunks: Sequence[bytes], closed: list[bool]) -> AsyncGenerator[bytes, None]:
    try:
        for chunk in chunks:
            yield chunk
    finally:
        closed.append(True)


def test_a_file_is_held_as_long_as_anybody_downloads_it() -> None:
    downloads = Downloads()
    with downloads.of_file(ONE):
        with downloads.of_file(ONE), downloads.of_file(OTHER):
            assert set(downloads.files) == {ONE, OTHER}
        assert set(downloads.files) == {ONE}
    assert not downloads.files


def test_the_output_of_a_batch_is_held_in_the_same_way() -> None:
    downloads, batch = Downloads(), BatchId("batch_1")
    with downloads.of_batch(batch):
        with downloads.of_batch(batch):
            pass
        assert downloads.batches == [batch]
    assert not downloads.batches
    assert not downloads.files


async def test_a_hold_lasts_from_before_the_first_chunk_to_the_last_or_the_close() -> None:
    downloads, closed = Downloads(), list[bool]()
    chunks = await holding(downloads.of_file(ONE), some([b"a", b"b"], closed))
    assert ONE in downloads.files
    assert [chunk async for chunk in chunks] == [b"a", b"b"]
    assert not downloads.files

    for taken in (0, 1):
        chunks = await holding(downloads.of_file(ONE), some([b"a", b"b"], closed))
        for _ in range(taken):
            assert await anext(chunks) == b"a"
        await chunks.aclose()
        assert not downloads.files
    assert closed == [True, True]  # the one that was never asked had nothing to close


async def test_a_hold_ends_with_a_reading_that_fails() -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"a"
        raise OSError

    downloads = Downloads()
    chunks = await holding(downloads.of_file(ONE), failing())
    assert await anext(chunks) == b"a"
    with pytest.raises(OSError):  # noqa: PT011  # it has no words
        await anext(chunks)
    assert not downloads.files


def test_what_is_hidden_stays_for_so_long_from_when_it_was_first_seen() -> None:
    now = 1_000.0
    downloads = Downloads(longest_s=60, clock=lambda: now)
    with downloads.of_file(ONE), downloads.of_file(OTHER):
        assert downloads.still_kept([ONE, FileId("file-3")], downloads.files) == [ONE]
        now += 30
        assert downloads.still_kept([ONE, OTHER], downloads.files) == [ONE, OTHER]
        now += 30
        assert downloads.still_kept([ONE, OTHER], downloads.files) == [OTHER]
        now += 29.5
        assert downloads.still_kept([OTHER], downloads.files) == [OTHER]
        now += 0.5
        assert downloads.still_kept([OTHER], downloads.files) == []


def test_a_page_of_hidden_files_says_nothing_about_the_others() -> None:
    """A sweep asks for some at a time."""
    now = 1_000.0
    downloads = Downloads(longest_s=60, clock=lambda: now)
    with downloads.of_file(ONE), downloads.of_file(OTHER):
        for _ in range(2):
            assert downloads.still_kept([ONE], downloads.files) == [ONE]
            assert downloads.still_kept([OTHER], downloads.files) == [OTHER]
            now += 59
        assert downloads.still_kept([ONE], downloads.files) == []
        assert downloads.still_kept([OTHER], downloads.files) == []


def test_nothing_is_remembered_of_what_is_not_held_any_more() -> None:
    downloads = Downloads()
    with ExitStack() as held:
        held.enter_context(downloads.of_file(ONE))
        assert downloads.still_kept([ONE], downloads.files) == [ONE]
    assert downloads.still_kept([], downloads.files) == []
    assert downloads._hidden_at == {}


@pytest.mark.parametrize("longest_s", [0.0, 60.0])
def test_nothing_stays_while_the_disk_is_low(longest_s: float) -> None:
    has_room = True
    downloads = Downloads(longest_s=longest_s, has_room=lambda: has_room)
    with downloads.of_file(ONE):
        kept = [ONE] if longest_s else []
        assert downloads.still_kept([ONE], downloads.files) == kept
        has_room = False
        assert downloads.still_kept([ONE], downloads.files) == []
