"""What server and children say to each other has a number, and a changed word another one."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from batchline import __version__
from batchline.executor import messages as m
from batchline.executor import protocol
from batchline.service.jobs import Reply, Request
from batchline.service.leftovers import LeftoversJob, LeftoversResult
from batchline.service.range_check import CheckJob, CheckResult
from batchline.service.validation import ValidationJob, ValidationResult

# Of the shapes below, under the revision that `protocol.py` has.
DIGEST = "7a66dca6783104c5"

SAID = [m.ToWorker, m.ToControl, Request, Reply]
JOBS = [ValidationJob, ValidationResult, LeftoversJob, LeftoversResult, CheckJob, CheckResult]


def test_messages_do_not_change_without_another_revision() -> None:
    """If this fails, raise `_REVISION` in `executor/protocol.py` and put the new digest here."""
    _, shapes = msgspec.json.schema_components([*SAID, *JOBS])
    plain = msgspec.json.encode(_without_words(shapes), order="sorted")
    found = hashlib.sha256(plain.replace(__version__.encode(), b"")).hexdigest()[:16]
    assert (protocol.PROTOCOL, found) == (f"{__version__}/4", DIGEST)


def _without_words(shape: object) -> object:
    """The schema without what people read in it."""
    match shape:
        case dict():
            return {
                key: _without_words(value)
                for key, value in shape.items()
                if key not in ("description", "title")
            }
        case list():
            return [_without_words(one) for one in shape]
        case _:
            return shape


@pytest.mark.parametrize(
    "first",
    [m.Configure, m.Hello, Request, Reply],
)
def test_every_first_message_names_its_program(first: type[msgspec.Struct]) -> None:
    """Also to a reader that knows nothing else of it."""
    fields = {field.name: field.default for field in msgspec.structs.fields(first)}
    assert fields["protocol"] == protocol.PROTOCOL
    other = msgspec.msgpack.encode({"type": "New", "unknown": [1, {}], "protocol": "9.9.9/7"})
    assert protocol.named_in(other) == "9.9.9/7"
    assert protocol.named_in(msgspec.msgpack.encode({"pid": 1})) == protocol.UNKNOWN
