"""What a server had told its clients by a moment: read from its own answers on the wire."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.conserved import TERMINAL
from tests.support.power_loss.recording import Sent

_COUNTS: Final = ("total", "completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole answer that says yes. Its last byte went out in a call that began at `place`, so
    nobody can have read it earlier. `body` is None where it is no JSON (a file's content)."""

    place: int
    body: dict[str, Any] | None


@dataclass(slots=True)
class Told:
    """What a client knows, by id.

    `parts` are those of pending uploads, with their upload; `batches` are as last seen, and
    `counts` has the highest seen.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def ended(self) -> dict[str, dict[str, Any]]:
        """The batches that were seen to have ended."""
        return {key: body for key, body in self.batches.items() if body["status"] in TERMINAL}

    @property
    def cancelled(self) -> set[str]:
        """The batches whose cancel was answered or seen."""
        return {
            key
            for key, body in self.batches.items()
            if body["status"] in ("cancelling", "cancelled")
        }


def told(answers: Sequence[Answer], place: int) -> Told:
    """What was known before `place`, by a client that asks one thing after the other.

    What is under way at `place` may have happened: nothing is known of a file that is being
    deleted, and of the parts of an upload that is being completed.
    """
    known = Told()
    for answer in answers:
        if answer.place >= place:
            _forget(known, answer.body or {})
            break
        if answer.body is not None:
            _learn(known, answer.body)
    return known


def every_file(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Every file that was ever told of, deleted ones too."""
    known: dict[str, dict[str, Any]] = {}
    for answer in answers:
        if answer.body is not None and not answer.body.get("deleted"):
            step = Told()
            _learn(step, answer.body)
            known |= step.files
    return known


def _forget(known: Told, coming: dict[str, Any]) -> None:
    """`coming` is the next answer: what it takes away may have gone already."""
    if coming.get("deleted"):
        known.files.pop(coming["id"], None)
    if coming.get("object") == "upload" and coming["status"] != "pending":
        for part in [key for key, upload in known.parts.items() if upload == coming["id"]]:
            del known.parts[part]


def _learn(known: Told, body: dict[str, Any]) -> None:
    if body.get("deleted"):
        known.files.pop(body["id"], None)
        known.deleted.add(body["id"])
        return
    match body.get("object"):
        case "file":
            known.files[body["id"]] = body
        case "upload":
            _forget(known, body)
            known.uploads[body["id"]] = body
            if body.get("file"):
                known.files[body["file"]["id"]] = body["file"]
        case "upload.part":
            known.parts[body["id"]] = body["upload_id"]
        case "batch":
            known.batches[body["id"]] = body
            counts = known.counts.setdefault(body["id"], dict.fromkeys(_COUNTS, 0))
            for name in _COUNTS:
                counts[name] = max(counts[name], (body.get("request_counts") or counts)[name])
        case _:
            pass  # a list, a page of health: nothing that the others do not say


def answers(sent: Sequence[Sent]) -> list[Answer]:
    """Every 200 that the server gave, in order; what it sent to others than clients is left out."""
    streams: dict[str, list[Sent]] = defaultdict(list)
    for one in sent:
        streams[one.socket].append(one)
    found = [answer for stream in streams.values() for answer in _answers(stream)]
    return sorted(found, key=lambda answer: answer.place)


def _answers(stream: Sequence[Sent]) -> Iterator[Answer]:
    data = b"".join(one.data for one in stream)
    if not data.startswith(b"HTTP/1.1 "):
        return
    at = 0
    while b"\r\n\r\n" in data[at:]:
        head, _, _ = data[at:].partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        start = at + len(head) + 4
        at = start + int(headers["content-length"])
        if at > len(data):
            return  # never sent to its end
        if status.split()[1] == "200":
            body = data[start:at]
            is_json = headers.get("content-type", "").startswith("application/json")
            yield Answer(place=_place_of(stream, at), body=json.loads(body) if is_json else None)


def _place_of(stream: Sequence[Sent], stop: int) -> int:
    """Where the byte before `stop` went out."""
    length = 0
    for one in stream:
        length += len(one.data)
        if length >= stop:
            return one.place
    raise AssertionError("past the end of the stream")
