"""The whole probe, step by step, and what to set for a backend by what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from batchline.cli.outcome import UNREACHABLE, USAGE, CommandFailed
from batchline.cli.probe.by_gauge import ByGauge
from batchline.cli.probe.by_waiting import ByWaiting
from batchline.cli.probe.recognition import PAGES, Engine, recognized
from batchline.cli.probe.target import MAX_REQUESTS, OutOfBudget, Target
from batchline.cli.probe.verdicts import Closing, Inconclusive, Verdict
from batchline.domain.errors import UpstreamError
from batchline.domain.model import Endpoint
from batchline.domain.results import read_success
from batchline.executor.catalogue import Listing, read_listing
from batchline.executor.contract import CancelBy
from batchline.executor.transport.contract import Answer

HARD_CLOSES: Final = 20
_LAST_REQUESTS: Final = 2  # the looks afterwards
_MOST_MISSES: Final = 8  # requests that were answered before they could be closed
_TRIED: Final = (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the probe found out. `stream_trouble` is None where answers can be streamed.

    `whole` and `streamed` are about closing an answer that was asked for whole, and as a stream.
    `broken` is None where the backend still answered after `closes` hard closes.
    """

    base_url: str
    engine: Engine
    models: Sequence[str]
    model: str
    endpoint: str
    stream_trouble: str | None
    whole: Closing
    streamed: Closing
    closes: int
    broken: str | None
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Settings for the backend, and why these."""

    cancel: CancelBy
    stream: bool
    stops_on_close: bool
    max_in_flight: int | None
    because: str


async def probe(target: Target, *, model: str | None) -> Found:
    """Find out what the backend does; sends `MAX_REQUESTS` at most.

    Raises:
        CommandFailed: nothing answers there, it wants another key, or it serves no request.
    """
    listing, owners = await _listing(target)
    if model is None and not listing.models:
        raise CommandFailed(
            f"{target.base_url}: something answers there, but it {listing.trouble}; name a model"
            " with --model",
            exit_code=UNREACHABLE,
        )
    models = listing.models or ()
    target.model = model or models[0]
    pages = {path: page for path in PAGES if (page := await target.page(path)) is not None}
    engine = recognized(owners, pages)
    try:
        await _find_endpoint(target)
    except OutOfBudget:
        raise CommandFailed(f"{target.base_url}: answers too slowly for this --timeout") from None
    nothing = Closing(verdict=Verdict.UNKNOWN, evidence=_no_generation(target))
    stream_trouble: str | None = "this endpoint has nothing to stream"
    whole = streamed = nothing
    try:
        if target.generates:
            stream_trouble = await _stream_trouble(target)
            # Streams first: where their closes are noticed, they leave nothing running behind.
            if stream_trouble is not None:
                streamed = Closing(verdict=Verdict.UNKNOWN, evidence="it does not stream")
            else:
                streamed = await _closing(target, engine, stream=True)
            if streamed.verdict is Verdict.REFUTED:
                # What ends behind our back now would be taken for what we closed.
                why = "not tried: it may still be at work on the streams that were closed"
                whole = Closing(verdict=Verdict.UNKNOWN, evidence=why)
            else:
                whole = await _closing(target, engine, stream=False)
    except (UpstreamError, OutOfBudget) as exc:
        why = exc.message if isinstance(exc, UpstreamError) else "time or requests were used up"
        whole = Closing(verdict=Verdict.UNKNOWN, evidence=why)
    goes_on = Verdict.REFUTED in (streamed.verdict, whole.verdict)
    broken = await _after_hard_closes(target, goes_on=goes_on)
    return Found(
        base_url=target.base_url,
        engine=engine,
        models=models,
        model=target.model,
        endpoint=target.endpoint,
        stream_trouble=stream_trouble,
        whole=whole,
        streamed=streamed,
        closes=target.closes,
        broken=broken,
        requests=target.requests,
    )


def advice(found: Found) -> Advice:
    """What to set, by what was found; where nothing was, what is harmless."""
    cancel, stream, stops = CancelBy.CLOSE, False, False
    if found.broken is not None:
        cancel, because = CancelBy.DRAIN, "hard closes break it"
    elif found.whole.verdict is Verdict.PROVEN:
        stops, because = True, "a closed connection stops its generation"
    elif found.streamed.verdict is Verdict.PROVEN:
        stream = stops = True
        because = "that a close stops its generation was proven for streams only"
    elif Verdict.REFUTED in (found.whole.verdict, found.streamed.verdict):
        cancel = CancelBy.DRAIN
        because = "a closed request goes on, so it is better counted until it ends"
        if found.engine.name == "SGLang":
            cancel = CancelBy.CALL
            because = "a closed request goes on; this engine can be called to abort it"
    else:
        because = "the default: nothing was proven"
    return Advice(
        cancel=cancel,
        stream=stream,
        stops_on_close=stops,
        max_in_flight=found.engine.places,
        because=because,
    )


# -- what there is -----------------------------------------------------------------------------


class _Owned(msgspec.Struct):
    owned_by: object = None


class _Owners(msgspec.Struct):
    data: list[_Owned] | None = None


async def _listing(target: Target) -> tuple[Listing, Sequence[str]]:
    """The models that are listed, and who owns them by that list."""
    try:
        answer = await target.models()
    except UpstreamError as exc:
        raise CommandFailed(
            f"{target.base_url}: no backend answers ({exc.message})", exit_code=UNREACHABLE
        ) from exc
    listing = read_listing(answer)
    if listing.key_refused:
        raise CommandFailed(
            f"{target.base_url}: {listing.trouble}; name its variable with --api-key-env",
            exit_code=USAGE,
        )
    try:
        data = msgspec.json.decode(answer.body, type=_Owners).data or []
    except (ValueError, RecursionError):
        return listing, ()
    return listing, [one.owned_by for one in data if isinstance(one.owned_by, str)]


async def _find_endpoint(target: Target) -> None:
    """Set the first endpoint at which the backend gives an answer.

    Raises:
        CommandFailed: there is none.
    """
    refusals = []
    for endpoint in _TRIED:
        target.endpoint = endpoint
        try:
            answer = (await target.short(most_s=target.left_s)).answer
        except UpstreamError as exc:
            refusals.append(f"{endpoint}: {exc.message}")
            continue
        except TimeoutError:
            refusals.append(f"{endpoint}: not answered in time")
            break
        if answer.status in (401, 403):
            raise CommandFailed(
                f"{target.base_url}: refuses the key (status {answer.status});"
                " name its variable with --api-key-env",
                exit_code=USAGE,
            )
        if 200 <= answer.status < 300 and read_success(answer.body) is not None:
            return
        refusals.append(f"{endpoint}: {_refusal(answer)}")
    raise CommandFailed(
        f"{target.base_url}: serves no request for {target.model}; {'; '.join(refusals)}"
    )


def _refusal(answer: Answer) -> str:
    if 200 <= answer.status < 300:
        return f"status {answer.status} with {len(answer.body)} bytes that are not JSON"
    return f"status {answer.status}"


def _no_generation(target: Target) -> str:
    if target.generates:
        return "not tried"
    return "embeddings are not generated token by token: there is nothing to watch stop"


async def _stream_trouble(target: Target) -> str | None:
    """Why answers cannot be streamed; None when they can."""
    try:
        asked = await target.short(stream=True)
    except UpstreamError as exc:
        return exc.message
    except TimeoutError:
        return "a short stream did not end"
    if asked.answer.status >= 300:
        return f"a stream with stream_options is refused with status {asked.answer.status}"
    if asked.pieces is None or not asked.pieces.has_begun:
        return "it answers whole although it was asked for a stream"
    read = read_success(asked.answer.body)
    if read is None:
        return "what its stream adds up to is not usable"
    return None if read[1].total_tokens else "its streams do not tell the usage"


async def _closing(target: Target, engine: Engine, *, stream: bool) -> Closing:
    """Find out whether closing stops a generation that was asked for in this way, in the time that
    there is before the last steps."""
    by: ByGauge | ByWaiting = ByWaiting(target, stream=stream)
    if engine.gauge_page is not None:
        by = ByGauge(target, engine, stream=stream)
    try:
        async with asyncio.timeout(max(0.0, target.left_s - target.pace.last_steps_s)):
            return await by.verdict()
    except Inconclusive as exc:
        return Closing(verdict=Verdict.UNKNOWN, evidence=str(exc))
    except (OutOfBudget, TimeoutError):
        return Closing(verdict=Verdict.UNKNOWN, evidence="time or requests were used up")
    finally:
        await target.hang_up_all()


# -- what it stands ----------------------------------------------------------------------------


async def _after_hard_closes(target: Target, *, goes_on: bool) -> str | None:
    """Close connections until it were enough, then look; what is wrong, or None.

    `goes_on`: what is closed is known to go on. The backend may then be busy with it, and that is
    not taken for broken.
    """
    pace = target.pace
    await target.hang_up_all()
    after_s = pace.hard_close_after_s if target.generates else pace.hard_close_at_once_s
    misses = 0
    while (
        target.closes < HARD_CLOSES
        and target.requests < MAX_REQUESTS - _LAST_REQUESTS
        and misses < _MOST_MISSES
    ):
        running = target.brief()
        await asyncio.sleep(after_s)
        misses += not await target.hang_up(running)
    try:
        trouble = await _trouble(target, busy_is_fine=goes_on)
        if trouble is not None:
            await asyncio.sleep(pace.up_again_s)  # it may be on its way up again
            trouble = await _trouble(target, busy_is_fine=goes_on)
    except OutOfBudget:
        return f"it does not answer within the {target.pace.last_steps_s:g} s that were left"
    return trouble


async def _trouble(target: Target, *, busy_is_fine: bool) -> str | None:
    """What is wrong with the backend now; None when it serves a short request."""
    try:
        listing = await target.models()
        if listing.status >= 500:
            return f"it lists its models with status {listing.status}"
        asked = await target.short(most_s=target.pace.answers_within_s)
    except UpstreamError as exc:
        return exc.message
    except TimeoutError:
        if busy_is_fine:
            return None
        return f"a short request is not answered within {target.pace.answers_within_s:g} s"
    return None if asked.answer.status < 500 else f"it answers with status {asked.answer.status}"
