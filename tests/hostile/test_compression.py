"""Compressed bodies from clients, and answers of backends that are small only on the wire."""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.backend import Exchange, hostile_backend, sending
from tests.hostile.target import (
    MIB,
    QUICK_SWEEPS,
    SENTINEL,
    create,
    get,
    line,
    post,
    refusal_of,
    unharmed,
)
from tests.hostile.test_files import uploaded
from tests.hostile.test_multipart import FORM, PURPOSE, WHOLE, begun, file_part, files
from tests.support.server import ServerProcess, server


@pytest.fixture(scope="module")
def routes(running: ServerProcess) -> list[str]:
    """Every route that reads a body."""
    upload = f"/v1/uploads/{begun(running)}"
    routes = ["/v1/batches", "/v1/batches/validate", "/v1/uploads", "/v1/files"]
    return [*routes, f"{upload}/parts", f"{upload}/complete"]


@functools.cache  # half a second for the largest, which is asked for five times
def bomb(size: int) -> bytes:
    """`size` bytes of JSON, hundreds of times smaller."""
    packer = zlib.compressobj(1, wbits=31)
    packed = packer.compress(b'{"a":"' + SENTINEL.encode())
    for _ in range(size // MIB):
        packed += packer.compress(b"a" * MIB)
    return packed + packer.compress(b'"}') + packer.flush()


@functools.cache
def deflated(size: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(b" " * MIB) for _ in range(size // MIB)) + packer.flush()


@pytest.mark.rule("H15")
@pytest.mark.parametrize(
    "encoding", ["gzip", "x-gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "none"]
)
def test_a_compressed_body_is_415_whatever_is_in_it(
    running: ServerProcess, routes: list[str], encoding: str
) -> None:
    with unharmed(running):
        for route in routes:
            headers = {**FORM, "Content-Encoding": encoding}
            reply = post(running, route, gzip.compress(b"{}"), headers)
            refusal_of(reply, 415)
            assert reply.headers["accept-encoding"] == "identity"


@pytest.mark.rule("H15")
def test_a_bomb_is_not_unpacked(running: ServerProcess, routes: list[str]) -> None:
    packed = bomb(256 * MIB)
    with unharmed(running, growth_bytes=8 * MIB):
        for route in routes:
            refusal_of(post(running, route, packed, {**FORM, "Content-Encoding": "gzip"}), 415)


@pytest.mark.rule("H15")
def test_a_body_that_says_it_is_as_it_is_is_taken(running: ServerProcess) -> None:
    there = files(running)
    with unharmed(running):
        reply = post(running, "/v1/files", WHOLE, {**FORM, "Content-Encoding": "identity"})
        assert reply.status == 200
    assert files(running) == there + 1


@pytest.mark.rule("F9")
def test_a_compressed_file_under_the_name_of_jsonl_is_refused(running: ServerProcess) -> None:
    there, blobs = files(running), running.blob_sizes()
    with unharmed(running, growth_bytes=8 * MIB):
        form = PURPOSE + file_part(b"in.jsonl", bomb(64 * MIB)) + b"--b--\r\n"
        error = refusal_of(post(running, "/v1/files", form, FORM), 400)
        assert error["message"] == "Invalid file format for Batch API. Must be .jsonl"
    assert (files(running), running.blob_sizes()) == (there, blobs)


# -- answers -----------------------------------------------------------------------------------

GOOD: Final = b'{"id":"x","choices":[]}'


def compressed(body: bytes, encoding: str) -> Exchange:
    return sending(body, headers=f"Content-Encoding: {encoding}\r\n")


@pytest.mark.parametrize("transport", ["http1", "general"])
def test_a_bomb_of_a_backend_costs_its_line_and_nothing_else(
    tmp_path: Path, transport: str
) -> None:
    """A worker holds what an answer may have (1 MiB here) and not the 256 that it would become."""
    twice = gzip.compress(bomb(256 * MIB), 9)
    answers: dict[str, Exchange] = {
        "bomb": compressed(bomb(256 * MIB), "gzip"),
        "bomb in a bomb": compressed(twice, "gzip, gzip"),
        "members": compressed(gzip.compress(b" " * MIB) * 256, "gzip"),
        "deflate": compressed(deflated(256 * MIB), "deflate"),
        "honest": compressed(gzip.compress(GOOD), "gzip"),
        "plain": sending(GOOD),
    }
    expected = {
        "bomb": "response_too_large",
        "bomb in a bomb": "invalid_upstream_response",
        "members": "response_too_large",
        "deflate": "response_too_large",
    }
    with hostile_backend(answers) as url:
        settings = {
            "retention": QUICK_SWEEPS,
            "retry": {"max_attempts": 2, "base_s": 0.01},
            "backend": [{"base_url": url, "max_answer_bytes": MIB, "transport": transport}],
        }
        with server(tmp_path, settings=settings) as running:
            lines = [line(name, b'{"model":"test-model","user":"%b"}' % name.encode())
                     for name in answers]  # fmt: skip
            with unharmed(running):
                batch = create(running, uploaded(running, b"\n".join(lines)))
            assert batch["status"] == "completed", batch
            assert batch["request_counts"] == {"total": 6, "completed": 2, "failed": 4}
            errors = get(running, f"/v1/files/{batch['error_file_id']}/content").body
            found = {one["custom_id"]: one["error"]["code"]
                     for one in map(json.loads, errors.splitlines())}  # fmt: skip
            assert found == expected
            output = get(running, f"/v1/files/{batch['output_file_id']}/content").body
            assert output.count(GOOD) == 2
