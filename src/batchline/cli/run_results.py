"""The files of a run: what its batches settled, put together; and what is still to be run.

A run is one batch, and one more for what was left each time it is taken up after a cancel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.cli.outcome import CommandFailed
from batchline.cli.whole_file import whole_file
from batchline.domain import ids
from batchline.domain.errors import BlobUnreadable, NotFound
from batchline.domain.ids import FileId, ProjectId
from batchline.domain.model import Batch, File, Purpose
from batchline.domain.results import Failure, failure_tail
from batchline.durable import sync_folder
from batchline.service.files import Files

# Without its end: what came of a line that was cut off stands behind it.
_NEVER_RAN: Final = failure_tail(Failure.BATCH_CANCELLED).removesuffix(b"}\n")
_AFTER_ID: Final = b',"response":'  # cannot stand in the custom_id, where a quote has a backslash
_ID: Final = slice(len(b'{"id":"'), len(b'{"id":"batch_req_') + 32)  # of a line of our own


async def write_results(
    files: Files, project: ProjectId, batches: Sequence[Batch], *, output: Path, errors: Path
) -> None:
    """Write both files of a run, each whole or not at all; `batches` in the order they ran.

    Lines that an earlier batch did not run are the next one's, so only the last one's are told.
    Without an error line there is no error file, and one of an earlier start is removed.

    Raises:
        CommandFailed: bytes are missing, or a file cannot be written.
    """
    with whole_file(output) as file:
        for batch in batches:
            async for chunk in content(files, project, batch.output_file_id):
                file.write(chunk)
    telemetry.probe("run.output.written")
    any_errors = False
    with whole_file(errors) as file:
        for batch in batches:
            async for line in _lines(content(files, project, batch.error_file_id)):
                if batch is batches[-1] or not never_ran(line):
                    any_errors = True
                    file.write(line)
    if not any_errors:
        errors.unlink()  # noqa: ASYNC240  # nothing else runs that could wait
        sync_folder(errors.parent)


async def take_up_again(files: Files, project: ProjectId, cancelled: Batch) -> File:
    """A new input file with the lines that `cancelled` did not run, in their order."""
    wanted = bytearray()  # one bit a line, by its number
    async for line in _lines(content(files, project, cancelled.error_file_id)):
        if never_ran(line):
            number = ids.line_number(line[_ID].decode())
            wanted.extend(bytes(max(0, number // 8 + 1 - len(wanted))))
            wanted[number // 8] |= 1 << number % 8
    number = 0
    async with files.begin(project) as upload:
        async for line in _lines(content(files, project, cancelled.input_file_id)):
            number += 1
            if number // 8 < len(wanted) and wanted[number // 8] >> number % 8 & 1:
                await upload.write(line if line.endswith(b"\n") else line + b"\n")
        return await upload.finish(filename="left.jsonl", purpose=Purpose.BATCH)


def never_ran(line: bytes) -> bool:
    """Whether a line of an error file says that its request was cancelled."""
    return line.startswith(_NEVER_RAN, line.find(_AFTER_ID))


async def content(files: Files, project: ProjectId, file_id: FileId | None) -> AsyncIterator[bytes]:
    """A file's bytes; none where there is no file.

    Raises:
        CommandFailed: they are gone or damaged.
    """
    if file_id is None:
        return
    try:
        file = await files.downloadable(project, file_id)
        async for chunk in await files.content(file):
            yield chunk
    except (NotFound, BlobUnreadable) as exc:
        raise CommandFailed(
            f"results of the earlier start are gone ({exc.message}); they are kept for 30 days."
            " Begin anew with --restart."
        ) from exc


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines with their newlines; the last may lack one."""
    held: list[bytes] = []  # the beginning of a line whose end has not come yet
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        if whole:
            yield b"".join([*held, whole[0], b"\n"])
            held.clear()
            for line in whole[1:]:
                yield line + b"\n"
        if rest:
            held.append(rest)
    if held:
        yield b"".join(held)
