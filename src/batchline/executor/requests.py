"""The request of a line, as its backends are to get it."""

from __future__ import annotations

from batchline.domain.errors import BlobUnreadable
from batchline.domain.lines import RequestLine, read_line
from batchline.domain.splices import with_model
from batchline.executor.shard_run import Line


def request_of(line: Line) -> RequestLine | None:
    """Read from the input, under the backends' name of its model where the file has an alias.

    None where the input does not hold the line any more.
    """
    run = line.run
    length = line.length
    try:
        raw = run.input.read(line.offset, length)
        if len(raw) != length:
            return None
        request = read_line(raw)
        model = run.work.send_as
        if model is None:
            return request
        return RequestLine(request.custom_id_raw, with_model(request.body, model))
    except (OSError, BlobUnreadable):
        return None
