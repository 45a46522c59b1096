"""Batches: create, get, list, cancel. What happens to them in between is the scheduler's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from batchline.domain import ids
from batchline.domain.errors import IllegalTransition, InvalidRequest, NotFound, StoreError
from batchline.domain.ids import BatchId, FileId, KeyId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, advance
from batchline.domain.model import DAY_S, Batch, Endpoint, Page
from batchline.service import idempotency
from batchline.service.bodies import (
    expires_after,
    object_of,
    refuse_unknown,
    required_text,
    wrong_type,
)
from batchline.store.contract import NewBatch, Store
from batchline.telemetry import event, trouble

FIELDS: Final = frozenset(
    {
        *("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"),
        *("invalid_lines", "identical_requests", idempotency.FIELD),
    }
)
INVALID_LINES: Final = ("fail", "skip")  # what a bad line does: refuse the file, or is left out
IDENTICAL_REQUESTS: Final = ("run_each", "run_once")  # what becomes of those of one batch
MAX_LIST: Final = 100
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512


class BatchRunner(Protocol):
    """Who is told that a batch was created or is to stop; the scheduler."""

    def created(self, batch: Batch) -> None:
        """`batch` is committed in `validating`: wake validation. Never blocks."""

    async def stop(self, batch: Batch, *, was: BatchStatus) -> Mapping[str, object]:
        """`batch` was moved from `was` to `cancelling`, and that is committed.

        Closes its gate in every worker and waits for the acknowledgements, a bounded time; a slow
        worker is not an error. Called again (`was` is then the batch's own status) it waits for
        the same acknowledgements. What it returns is for the receipt.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """`windows` are the completion windows that callers may ask for: name to seconds.

    `run_once_projects`: the names of projects whose batches run identical requests once, unless
    they say otherwise.
    """

    windows: Mapping[str, int] = field(default_factory=lambda: {"24h": DAY_S})
    run_once_projects: Set[str] = frozenset()


class BatchOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A checked body of `POST /v1/batches`. The input file need not exist (rule V1).

    What is encoded of it is compared for an idempotency key: a field that is added has a default,
    which is omitted, so that a create that is repeated after an upgrade is still the same. What
    its project's settings add is not in it: one that is repeated after those changed is, too.
    """

    input_file_id: FileId
    endpoint: Endpoint
    completion_window: str
    metadata: Mapping[str, str] | None
    output_expires_after_s: int | None
    skip_invalid: bool
    run_once: bool | None = None  # None: as its project has it


class Batches:
    """The use cases of batches, each scoped by a project."""

    def __init__(
        self,
        store: Store,
        runner: BatchRunner,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        settings: BatchSettings | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._clock = clock
        self._random = random
        self._settings = settings or BatchSettings()

    async def create(
        self, project_id: ProjectId, body: object, *, idempotency_header: str | None = None
    ) -> Batch:
        """Create a batch from the decoded JSON `body`; it is committed when this returns.

        Where the body or the header has an idempotency key that was used within a day for the same
        order, the batch of then is given back as it is now, and nothing is created.

        Raises:
            InvalidRequest: the body is not what `parse_order` takes; nothing was created.
            KeyReused: the key was used for another order; nothing was created.
        """
        order = parse_order(body, windows=self._settings.windows)
        key = idempotency.parse_key(object_of(body), idempotency_header)
        now = int(self._clock())
        new = NewBatch(
            id=ids.batch_id(now, self._random(ids.RANDOM_BYTES)),
            project_id=project_id,
            endpoint=order.endpoint.value,
            completion_window=order.completion_window,
            input_file_id=order.input_file_id,
            created_at=now,
            expires_at=now + self._settings.windows[order.completion_window],
            metadata=order.metadata,
            output_expires_after_s=order.output_expires_after_s,
            skip_invalid=order.skip_invalid,
            run_once=await self._runs_once(project_id, order),
        )
        if key is None:
            batch = await self._store.create_batch(new)
        else:
            batch = await idempotency.create_once(self._store, new, key=key, order=order)
        if batch.id == new.id:
            event("batch_created", batch_id=batch.id, endpoint=batch.endpoint)
            self._runner.created(batch)
        return batch

    async def _runs_once(self, project_id: ProjectId, order: BatchOrder) -> bool:
        """What a batch of this order runs under, for good: settings may be others tomorrow."""
        if order.run_once is not None:
            return order.run_once
        projects = self._settings.run_once_projects
        return bool(projects) and await self._store.project_name(project_id) in projects

    async def get(self, project_id: ProjectId, batch_id: str) -> Batch:
        """The batch.

        Raises:
            InvalidRequest: no batch's id looks like that.
            NotFound: it never existed or is another project's.
        """
        if not batch_id.startswith(ids.BATCH_PREFIX):
            raise InvalidRequest(
                f"Invalid 'batch_id': '{batch_id}'. "
                f"Expected an ID that begins with '{ids.BATCH_PREFIX}'.",
                param="batch_id",
                wire_code="invalid_value",
            )
        batch = None
        if ids.is_plausible(batch_id):
            batch = await self._store.get_batch(project_id, BatchId(batch_id))
        if batch is None:
            raise NotFound(f"No batch found with id '{batch_id}'.")
        return batch

    async def with_receipt(self, project_id: ProjectId, batch_id: str) -> Batch:
        """The batch, whose cancel was accepted at some time, or which runs identical requests once;
        `receipt` and `calls_saved` grow until it has ended.

        Raises:
            NotFound: there is nothing to tell of it; or as `get`.
            InvalidRequest: as `get`.
        """
        batch = await self.get(project_id, batch_id)
        if batch.cancelling_at is None and not batch.run_once:
            raise NotFound(f"Batch '{batch.id}' was never cancelled.")
        return batch

    async def list(self, project_id: ProjectId, *, after: str | None, limit: int) -> Page[Batch]:
        """One page, newest first; `limit` is 1 to MAX_LIST.

        Raises:
            NotFound: `after` never existed.
        """
        unknown = f"No batch found with id '{after}'."
        if after is not None and not ids.is_plausible(after):
            raise NotFound(unknown, param="after")
        cursor = None if after is None else BatchId(after)
        try:
            return await self._store.list_batches(project_id, after=cursor, limit=limit)
        except NotFound as exc:
            raise NotFound(unknown, param="after") from exc

    async def cancel(
        self, project_id: ProjectId, batch_id: str, *, key_id: KeyId | None = None
    ) -> Batch:
        """Move the batch to `cancelling` and have it stopped; a repeated cancel changes nothing.

        `key_id` is whose key asked, for the receipt; None where no key is needed.

        When this returns, for the first caller or a later one, no worker that lives starts another
        request of it.

        Raises:
            IllegalTransition: it ended otherwise before.
            InvalidRequest, NotFound: as `get`.
        """
        while True:  # each lost race means that the status moved on, which it does a few times only
            batch = await self.get(project_id, batch_id)
            target = advance(batch.status, BatchEvent.CANCEL_REQUESTED)
            if target is None:
                raise IllegalTransition(f"Cannot cancel a batch with status '{batch.status}'.")
            if target is batch.status:
                # Whoever is told 200 may rely on the closed gates, the second caller too.
                await self._runner.stop(batch, was=batch.status)
                return batch
            now = int(self._clock())
            moved = await self._store.advance_batch(
                batch.id, from_status=batch.status, event=BatchEvent.CANCEL_REQUESTED, now=now
            )
            if moved is not None:
                break
        event("batch_cancel_requested", batch_id=batch.id, was=batch.status.value)
        # The gates first: a receipt is a commit of some milliseconds in which requests would start.
        at_gate = await self._runner.stop(moved, was=batch.status)
        await self._record(moved, at_gate, requested_at=now, key_id=key_id)
        return moved

    async def _record(
        self,
        batch: Batch,
        at_gate: Mapping[str, object],
        *,
        requested_at: int,
        key_id: KeyId | None,
    ) -> None:
        """Note who asked and when, and what ran then, which a crash would have nobody know.

        The cancel is accepted already, so trouble does not undo it.
        """
        who = {"project_id": batch.project_id, "key_id": key_id}
        receipt = {**at_gate, "requested_at": requested_at, "requested_by": who}
        try:
            await self._store.put_receipt(batch.id, receipt)
        except StoreError as exc:
            trouble("cancel_receipt_lost", batch_id=batch.id, code=exc.code)


def parse_order(body: object, *, windows: Mapping[str, int]) -> BatchOrder:
    """Check the body of a create, field by field in the order of the service's reference.

    Raises:
        InvalidRequest: with the first problem found.
    """
    body = object_of(body)
    order = BatchOrder(
        input_file_id=FileId(_file_id(body)),
        endpoint=_endpoint(body),
        completion_window=_window(body, windows),
        metadata=_metadata(body.get("metadata")),
        output_expires_after_s=expires_after(body, "output_expires_after"),
        skip_invalid=_one_of(body, "invalid_lines", INVALID_LINES) == "skip",
        run_once=_run_once(body),
    )
    refuse_unknown(body, FIELDS)
    return order


def _file_id(body: Mapping[str, object]) -> str:
    text = required_text(body, "input_file_id")
    if not ids.is_plausible(text):
        raise InvalidRequest(
            "Invalid 'input_file_id': expected the id of a file.",
            param="input_file_id",
            wire_code="invalid_value",
        )
    return text


def _endpoint(body: Mapping[str, object]) -> Endpoint:
    text = required_text(body, "endpoint")
    for endpoint in Endpoint:
        if text == endpoint.value:
            return endpoint
    *others, last = (f"'{endpoint.value}'" for endpoint in Endpoint)
    supported = f"Supported values are: {', '.join(others)}, and {last}."
    raise _invalid_value("endpoint", text, supported)


def _window(body: Mapping[str, object], windows: Mapping[str, int]) -> str:
    text = required_text(body, "completion_window")
    if text not in windows:
        allowed = " or ".join(f"'{name}'" for name in windows)
        raise _invalid_value("completion_window", text, f"Value must be {allowed}.")
    return text


def _run_once(body: Mapping[str, object]) -> bool | None:
    chosen = _one_of(body, "identical_requests", IDENTICAL_REQUESTS)
    return None if chosen is None else chosen == "run_once"


def _one_of(body: Mapping[str, object], name: str, values: Sequence[str]) -> str | None:
    """The value of a field of our own; None where it is not there."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    if value not in values:
        allowed = " and ".join(f"'{one}'" for one in values)
        raise _invalid_value(name, value, f"Supported values are: {allowed}.")
    return value


def _metadata(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object", value)
    if len(value) > MAX_METADATA_PAIRS:
        raise InvalidRequest(
            f"Invalid 'metadata': too many properties. Expected an object with at most "
            f"{MAX_METADATA_PAIRS} properties, but got an object with {len(value)} instead.",
            param="metadata",
            wire_code="object_above_max_properties",
        )
    for key, text in value.items():
        param = f"metadata.{key}"
        if not isinstance(text, str):
            raise wrong_type(param, "a string", text)
        if len(key) > MAX_METADATA_KEY_CHARS:
            raise _too_long(param, "key", MAX_METADATA_KEY_CHARS, len(key))
        if len(text) > MAX_METADATA_VALUE_CHARS:
            raise _too_long(param, "string", MAX_METADATA_VALUE_CHARS, len(text))
    return value


def _invalid_value(param: str, value: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value: '{value}'. {allowed}", param=param, wire_code="invalid_value"
    )


def _too_long(param: str, what: str, limit: int, length: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': {what} too long. Expected a {what} with maximum length {limit}, "
        f"but got a {what} with length {length} instead.",
        param=param,
        wire_code="string_above_max_length",
    )
