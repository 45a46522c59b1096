"""The order in which the lines of a checked file are dispatched, and which of them run once."""

from __future__ import annotations

from pathlib import Path

from batchline.domain.plan import Order
from batchline.service.identical import bring_together
from batchline.service.inputs import InputFile
from batchline.service.plans import PlanWriter
from batchline.service.prefix_order import put_in_order
from batchline.service.prefix_sample import PrefixSample


def sample_for(order: Order, endpoint: str, *, file_bytes: int) -> PrefixSample | None:
    """What has to see the file's lines while they are read; None where no order depends on them."""
    return None if order is Order.FILE else PrefixSample(endpoint, file_bytes=file_bytes)


def arrange(
    planned: PlanWriter,
    source: InputFile,
    scratch_dir: Path,
    *,
    endpoint: str,
    models: int,
    shard_entries: int,
    order: Order,
    sample: PrefixSample | None,
    run_once: bool,
) -> None:
    """Put `planned`, which has all lines of `models` models in file order, as it is to be run.

    Raises:
        OSError: scratch files could not be written.
        BlobUnreadable: as `InputFile`.
    """
    trunks = None if sample is None else sample.trunks()
    long_first = order is Order.LONG_OUTPUTS
    if trunks is not None or long_first:
        put_in_order(
            planned,
            source,
            scratch_dir,
            endpoint=endpoint,
            models=models,
            trunks=trunks,
            long_first=long_first,
        )
    if run_once:
        planned.group(models)
        bring_together(planned, source, scratch_dir, endpoint=endpoint, most=shard_entries)
