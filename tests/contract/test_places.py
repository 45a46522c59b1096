"""Parts of files by their places: the right bytes, before and after the end and a repair."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, select, text

from batchline.domain.ids import DEFAULT_PROJECT, BlobName, FileId
from batchline.domain.lifecycle import BatchEvent
from batchline.domain.model import Batch, BlobRange
from batchline.store.database import Database
from batchline.store.engine import open_engine
from batchline.store.tables import batch as batch_table
from tests.contract.store_rows import (
    NOW,
    Segment,
    claimed,
    commits,
    finalized,
    moved,
    settling,
    started,
)


async def several_commits(store: Database, seed: int) -> tuple[Batch, bytes, dict[BlobName, bytes]]:
    """A batch, its output so far, and the bytes of its segments. Lines are 50 bytes each."""
    chance = random.Random(seed)  # noqa: S311  # sizes, not secrets
    batch, segments = await started(store, shards=6), [Segment(), Segment()]
    stored = {segment.name: b"" for segment in segments}
    output = b""
    for number in range(6):
        free = list(range(10))
        while len(free) > 2:
            some = [free.pop() for _ in range(chance.randint(1, 3)) if free]
            segment = chance.choice(segments)
            one = settling(
                await claimed(store, batch, number),
                finished=some[1:],
                failed=some[:1],
                segment=segment,
            )
            for part in (one.output, one.errors):
                if part is not None:
                    data = chance.randbytes(part.stop - part.start)
                    stored[part.blob] += data
                    output += data if part is one.output else b""
            assert await commits(store, one) == [True]
    return batch, output, stored


def bytes_of(ranges: Sequence[BlobRange], stored: dict[BlobName, bytes]) -> bytes:
    for part in ranges:
        whole = replace(part, start=part.start - part.lead, stop=part.stop + part.trail)
        assert 0 <= whole.start < whole.stop <= len(stored[part.blob])
        assert part.start < part.stop
    return b"".join(stored[part.blob][part.start : part.stop] for part in ranges)


async def test_any_part_of_an_output_is_its_bytes_before_and_after_the_end(
    store: Database,
) -> None:
    batch, output, stored = await several_commits(store, 1)
    chance = random.Random(2)  # noqa: S311
    output_file: FileId | None = None
    for _ in range(2):
        whole = await store.output_end(batch.id, after=0, limit=10**15, repairs=0, now=NOW + 5)
        assert whole == len(output)
        for _ in range(25):
            start, stop = sorted(chance.sample(range(len(output) + 1), 2))
            most = chance.choice([1, 2, 5, 100])
            ranges = await store.committed_output(
                batch.id, start=start, stop=stop, most=most, repairs=0, now=NOW + 5
            )
            assert 1 <= len(ranges) <= most
            found = bytes_of(ranges, stored)
            assert output[start:stop].startswith(found)
            assert most < 100 or found == output[start:stop]
            if output_file is not None:
                assert ranges == await store.file_ranges(
                    output_file, start=start, stop=stop, most=most
                )
        if output_file is None:
            ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
            output_file = ended.output_file_id
            assert output_file is not None
            assert bytes_of(await store.file_ranges(output_file), stored) == output


async def test_what_is_left_closes_up_when_damaged_results_are_taken_out(store: Database) -> None:
    batch, output, stored = await several_commits(store, 3)
    every = await store.committed_ranges(batch.id, after=0, limit=1_000)
    damaged = every[2::4]
    gone = {(one.part.blob, one.part.start) for one in damaged}
    before = await store.committed_output(
        batch.id, start=0, stop=len(output), most=1_000, repairs=0, now=NOW
    )
    left = bytes_of([one for one in before if (one.blob, one.start) not in gone], stored)
    assert 0 < len(left) < len(output)
    stopped = await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    after = await store.unsettle_ranges(
        batch.id,
        [one.sequence for one in damaged],
        from_status=stopped.status,
        stopping=stopped.stopping,
        now=NOW + 4,
    )
    assert after is not None
    end = await store.output_end(batch.id, after=0, limit=10**15, repairs=1, now=NOW)
    assert end == len(left)
    for start in (0, 60, len(left) - 30):
        ranges = await store.committed_output(
            batch.id, start=start, stop=len(left), most=1_000, repairs=1, now=NOW
        )
        assert bytes_of(ranges, stored) == left[start:]
    # Places from before the repair mean nothing any more.
    assert await store.output_end(batch.id, after=60, limit=9, repairs=0, now=NOW) is None
    assert not await store.committed_output(batch.id, start=60, stop=90, most=9, repairs=0, now=NOW)
    ended = await finalized(store, after)
    assert ended.output_file_id is not None
    assert bytes_of(await store.file_ranges(ended.output_file_id), stored) == left
    assert ended.error_file_id is not None
    errors = await store.file_ranges(ended.error_file_id, start=1)
    assert sum(one.stop - one.start for one in errors) % 20 == 19


# -- what was there before -------------------------------------------------------------------------


_OLD_FILE: Final = """
INSERT INTO file (id, project_id, purpose, filename, bytes, created_at)
VALUES (:id, :project, 'batch_output', 'f', 9, 0)
"""
_OLD_BATCH: Final = """
INSERT INTO batch (id, project_id, endpoint, completion_window, input_file_id, status, created_at,
    expires_at, total, completed, failed, input_tokens, cached_tokens, output_tokens,
    reasoning_tokens, total_tokens, input_bytes)
VALUES (:id, :project, '/v1', '24h', 'file-0', 'in_progress', 0, 9, 9, 0, 0, 0, 0, 0, 0, 0, 9)
"""
_OLD_COMMIT: Final = """
INSERT INTO segment_commit (batch_sequence, kind, blob_name, start, stop)
VALUES (:owner, :kind, 's', :start, :stop)
"""
_OLD_RANGE: Final = """
INSERT INTO file_range (file_sequence, position, blob_name, start, stop)
VALUES (:owner, :start, 's', :start, :stop)
"""


async def test_ranges_of_an_older_database_get_their_places(empty_url: str) -> None:
    engine = open_engine(empty_url)
    config = Config()
    config.set_main_option("script_location", "batchline.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
    sizes = [
        (1, "output", 5),
        (2, "output", 7),
        (1, "error", 3),
        (1, "output", 11),
        (1, "error", 2),
    ]
    with engine.begin() as connection:
        for number in (1, 2):
            connection.execute(
                text(_OLD_FILE), {"id": f"file-{number}", "project": DEFAULT_PROJECT}
            )
            connection.execute(
                text(_OLD_BATCH), {"id": f"batch_{number}", "project": DEFAULT_PROJECT}
            )
        for position, (owner, kind, size) in enumerate(sizes):
            row = {"owner": owner, "kind": kind, "start": position, "stop": position + size}
            connection.execute(text(_OLD_COMMIT), row)
            connection.execute(text(_OLD_RANGE), row)
    await (await Database.open(empty_url)).close()
    with engine.connect() as connection:
        begins = connection.scalars(text("SELECT begin FROM segment_commit ORDER BY sequence"))
        assert begins.all() == [0, 0, 0, 5, 3]
        places = connection.execute(
            text("SELECT file_sequence, begin FROM file_range ORDER BY file_sequence, position")
        )
        assert [tuple(row) for row in places] == [(1, 0), (1, 5), (1, 8), (1, 19), (2, 0)]
        sums = connection.execute(
            text("SELECT output_bytes, error_bytes FROM batch ORDER BY sequence")
        )
        assert [tuple(row) for row in sums] == [(16, 5), (7, 0)]
    engine.dispose()


async def test_a_batch_counts_the_bytes_that_it_has_committed(
    store: Database, engine: Engine
) -> None:
    batch, output, _ = await several_commits(store, 4)
    query = select(batch_table.c.output_bytes, batch_table.c.error_bytes)
    with engine.connect() as connection:
        found = connection.execute(query.where(batch_table.c.id == batch.id)).one()
        ends = connection.execute(
            text(
                "SELECT kind, MAX(begin + stop - start), SUM(stop - start) FROM segment_commit"
                " GROUP BY kind ORDER BY kind"
            )
        ).all()
    assert found.output_bytes == len(output)
    assert [tuple(row) for row in ends] == [
        ("error", found.error_bytes, found.error_bytes),
        ("output", len(output), len(output)),
    ]
