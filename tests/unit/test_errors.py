"""The tree in the docstring is the tree of classes, and codes keep their spelling."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from batchline.domain import errors
from batchline.domain.errors import (
    BatchlineError,
    ConfigError,
    InvalidRequest,
    RequestError,
    SentUnanswered,
)

# Stated a second time on purpose: clients, log searches and docs know these spellings. If the test
# fails, the code of an error that was released must come back; a new class adds its line here.
CODES = {
    "BatchlineError": "internal_error",
    "RequestError": "invalid_request",
    "InvalidRequest": "invalid_request",
    "Unauthorized": "unauthorized",
    "Forbidden": "forbidden",
    "NotFound": "not_found",
    "IllegalTransition": "illegal_transition",
    "KeyReused": "idempotency_key_reused",
    "StoreError": "store_error",
    "StoreUnavailable": "store_unavailable",
    "StorageFull": "storage_full",
    "BlobUnreadable": "blob_unreadable",
    "UpstreamError": "upstream_error",
    "NotSent": "upstream_unreachable",
    "NotAdmitted": "not_admitted",
    "SentUnanswered": "upstream_unanswered",
    "ConfigError": "config_error",
}

ROW = re.compile(
    r"^    (?P<rails>[│ ]*)(?:[├└]── )?(?P<name>[A-Z]\w+) *(?P<says>.*)$", re.MULTILINE
)


def classes(root: type[BatchlineError] = BatchlineError) -> Iterator[type[BatchlineError]]:
    """`root` and everything below it in the module."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


def drawn() -> list[tuple[str, str | None, str]]:
    """(class, its parent, what is said of it) for each row of the docstring's tree."""
    rows = []
    parents: dict[int, str] = {}
    for row in ROW.finditer(errors.__doc__ or ""):
        depth = 0 if "── " not in row[0] else 1 + len(row["rails"]) // 4
        parents[depth] = row["name"]
        rows.append((row["name"], parents.get(depth - 1), row["says"]))
    return rows


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    in_code = {c.__name__: c.__base__.__name__ if c.__base__ else None for c in classes()}
    in_code["BatchlineError"] = None  # the drawing begins below Exception
    assert {name: parent for name, parent, _ in drawn()} == in_code
    assert len(drawn()) == len(in_code)


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == {c.__name__ for c in classes()}


def test_the_statuses_in_the_drawing_are_those_of_the_classes() -> None:
    said = {name: says[:3] for name, parent, says in drawn() if parent == "RequestError"}
    of_classes = {c.__name__: str(c.status) for c in RequestError.__subclasses__()}
    assert said == of_classes


def test_codes_keep_their_spelling() -> None:
    assert {c.__name__: c.code for c in classes()} == CODES


def test_no_two_errors_that_are_raised_share_a_code() -> None:
    leaves = [c for c in classes() if not c.__subclasses__()]
    assert [code for code, n in Counter(c.code for c in leaves).items() if n > 1] == []
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", c.code) for c in classes())


def test_the_message_is_the_first_argument_or_the_name_of_the_class() -> None:
    assert ConfigError("no such setting: x").message == "no such setting: x"
    assert ConfigError().message == "ConfigError"
    assert ConfigError(17, "more").message == "17"


def test_a_request_error_carries_what_the_envelope_needs() -> None:
    bare = InvalidRequest("no")
    assert (bare.message, bare.param, bare.wire_code) == ("no", None, None)
    full = InvalidRequest("no", param="limit", wire_code="invalid_value")
    assert (full.message, full.param, full.wire_code) == ("no", "limit", "invalid_value")
    assert full.code == "invalid_request"


@pytest.mark.parametrize("reason", ["reset", "timeout", "malformed", "too_large"])
def test_an_unanswered_request_says_how_it_ended(reason: str) -> None:
    error = SentUnanswered("the connection broke", reason=reason)
    assert (error.message, error.reason) == ("the connection broke", reason)
