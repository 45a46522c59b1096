"""What holds for every answer: `docs/compatibility.md`, the rules H… and M1."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anyio
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI

from batchline.api import http_protocol
from batchline.api.errors import PayloadTooLarge, RangeNotSatisfiable, UnsupportedEncoding
from batchline.api.http_protocol import MAX_HEAD_BYTES, serve_config
from batchline.api.request import MAX_JSON_BYTES
from batchline.api.services import BackendHealth, ListedModel, Readiness
from batchline.domain import errors
from tests.contract.api.serving import (
    FILE,
    FORM,
    PURPOSE,
    ApiServer,
    assert_usual_headers,
    form,
    until,
)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def paths_of(api: ApiServer) -> Iterator[str]:
    """Every route with ids that do not exist, and places that are no route."""
    for path in api.app.openapi()["paths"]:
        yield path.format(
            file_id="file-none",
            upload_id="upload_none",
            batch_id="batch_none",
            model_id="org/model",
        )
    yield from ["/", "/v1", "/v1/", "/v1/files/", "/v1/none", "/redoc", "/%ff%00"]


@pytest.mark.rule("H4")
async def test_every_route_with_every_method_answers_in_the_envelope(api: ApiServer) -> None:
    seen: dict[tuple[str, str], int] = {}
    for path in sorted(set(paths_of(api))):
        for method in METHODS:
            reply = await api.request(method, path)
            assert_usual_headers(reply)
            if reply.status >= 400 and method != "HEAD":
                assert reply.error
            elif not path.startswith(("/docs", "/metrics")) and method != "HEAD":
                assert reply.headers["content-type"] == "application/json"
            seen[method, path] = reply.status
    ok = {key for key, status in seen.items() if status == 200}
    assert ok == {
        ("GET", "/healthz/live"),
        ("GET", "/healthz/ready"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/files"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/swagger-ui-bundle.js"),
        ("GET", "/docs/swagger-ui.css"),
    }
    assert {status for key, status in seen.items() if key not in ok} == {400, 404, 405}


@pytest.mark.rule("H2")
async def test_request_ids_differ(api: ApiServer) -> None:
    replies = [await api.request("GET", "/healthz/live") for _ in range(3)]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 3


@pytest.mark.rule("H5")
async def test_an_unknown_route_names_what_was_asked_for(api: ApiServer) -> None:
    reply = await api.request("GET", "/v1/none?a=b")
    assert (reply.status, reply.error["message"]) == (404, "Invalid URL (GET /v1/none)")


@pytest.mark.rule("H6")
async def test_a_wrong_method_says_which_are_allowed(api: ApiServer) -> None:
    reply = await api.request("PUT", "/v1/files/file-none")
    assert (reply.status, reply.error["code"]) == (405, "method_not_supported")
    assert reply.headers["allow"] == "DELETE, GET"


@pytest.mark.rule("H7")
@pytest.mark.parametrize("body", [b"", b"{", b"{} {}", b'{"a":"\xff"}', b"NaN", b"[" * 100_000])
async def test_a_body_that_is_not_json_is_refused(api: ApiServer, body: bytes) -> None:
    reply = await api.request("POST", "/v1/batches", body)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, None, None)
    assert "could not parse the JSON body" in reply.error["message"]


@pytest.mark.rule("H7")
async def test_a_json_body_has_a_bound(api: ApiServer) -> None:
    reply = await api.request("POST", "/v1/batches", b" " * (MAX_JSON_BYTES + 1))
    assert (reply.status, reply.error["type"]) == (413, "invalid_request_error")


@pytest.mark.rule("H15")
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
async def test_a_compressed_body_is_refused(api: ApiServer, path: str) -> None:
    reply = await api.request("POST", path, b"{}", {"Content-Encoding": "gzip"})
    assert (reply.status, reply.error["type"]) == (415, "invalid_request_error")
    assert reply.headers["accept-encoding"] == "identity"


@pytest.mark.rule("H3")
@pytest.mark.parametrize("key", ["Bearer sk-anything", "Bearer", "Basic eDp5", None])
async def test_any_key_or_none_is_taken(api: ApiServer, key: str | None) -> None:
    headers = {"OpenAI-Project": "p", "X-Stainless-Lang": "x"}
    reply = await api.request(
        "GET", "/v1/files", headers=headers | ({} if key is None else {"Authorization": key})
    )
    assert reply.status == 200


# -- malformed HTTP ------------------------------------------------------------------------------

MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "unknown method": b"FETCH / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad header name": b"GET / HTTP/1.1\r\nHost: localhost\r\nbad name: x\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    "two lengths": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative length": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "length and chunked": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control in header": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
    "no target at all": b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.rule("H8")
@pytest.mark.parametrize("name", list(MALFORMED))
async def test_malformed_http_is_refused_in_the_envelope(api: ApiServer, name: str) -> None:
    async with await api.connect() as peer:
        await peer.send(MALFORMED[name])
        reply = await peer.reply()
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        assert reply.headers["connection"] == "close"
        assert await peer.at_end()


@pytest.mark.rule("H8")
@pytest.mark.parametrize(
    "line", [b"GET /", b"OPTIONS * HTTP/1.1", b"GET http://localhost/ HTTP/1.1"]
)
async def test_odd_request_lines_are_unknown_routes(api: ApiServer, line: bytes) -> None:
    reply = await api.raw(line + b"\r\nHost: localhost\r\n\r\n")
    assert (reply.status, reply.error["type"]) == (404, "invalid_request_error")


@pytest.mark.rule("H8")
async def test_what_came_before_malformed_http_is_still_answered(api: ApiServer) -> None:
    async with await api.connect() as peer:
        await peer.send(api.head("GET", "/v1/files", None) + b"garbage\r\n\r\n")
        assert (await peer.reply()).json["object"] == "list"
        assert await peer.at_end()


@pytest.mark.rule("H8")
async def test_pipelined_requests_are_answered_in_order(api: ApiServer) -> None:
    async with await api.connect() as peer:
        await peer.send(api.head("GET", "/healthz/live", None) + api.head("GET", "/v1/files", None))
        assert (await peer.reply()).json == {"status": "alive"}
        assert (await peer.reply()).json["object"] == "list"


HEAD = b"GET /healthz/live HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
OVERSIZE = {
    "many headers": HEAD + b"A: b\r\n" * MAX_HEAD_BYTES,
    "one header": HEAD + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "endless header": HEAD + b"A: " + b"b" * 3 * MAX_HEAD_BYTES,
    "endless name": HEAD + b"A" * 3 * MAX_HEAD_BYTES,
    "endless target": b"GET /" + b"a" * 3 * MAX_HEAD_BYTES,
}


@pytest.mark.rule("H9")
@pytest.mark.parametrize("name", list(OVERSIZE))
async def test_an_oversize_head_is_431(api: ApiServer, name: str) -> None:
    async with await api.connect() as peer:
        await peer.send(OVERSIZE[name])
        reply = await peer.reply()
        assert (reply.status, reply.error["type"]) == (431, "invalid_request_error")
        assert await peer.at_end()


@pytest.mark.rule("H9")
@pytest.mark.parametrize("tail", [b"1;", b"0\r\nTrailer: "], ids=["chunk extension", "trailer"])
async def test_what_follows_the_head_of_a_chunked_body_is_bounded_too(
    api: ApiServer, tail: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.1)
    async with await api.connect() as peer:
        await peer.send(CHUNKED + tail)
        await peer.send_until_refused(b"x" * 10_000)


@pytest.mark.rule("H9")
async def test_a_head_within_the_bound_is_answered_again_and_again(api: ApiServer) -> None:
    head = api.head("GET", "/healthz/live", None, {"A": "b" * (MAX_HEAD_BYTES - 1_000)})
    async with await api.connect() as peer:
        for _ in range(3):
            await peer.send(head)
            assert (await peer.reply()).status == 200


# -- who may ask ---------------------------------------------------------------------------------


@pytest.mark.rule("H10")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8484", 200),
        ("127.0.0.1:1", 200),
        ("127.8.9.1", 200),
        ("[::1]:8484", 200),
        ("[::1]", 200),
        ("example.com", 403),
        ("localhost.example.com", 403),
        ("127.0.0.1.nip.io", 403),
        ("192.168.0.1", 403),
        ("0.0.0.0", 403),  # noqa: S104  # a Host header, not an address to bind
        ("[::2]", 403),
        ("[::1", 403),
        ("[::1]x", 403),
        ("", 403),
    ],
)
async def test_only_loopback_names_are_answered(api: ApiServer, host: str, status: int) -> None:
    reply = await api.request("GET", "/v1/files", headers={"Host": host})
    assert reply.status == status
    if status == 403:
        assert reply.error["code"] == "host_not_allowed"


@pytest.mark.rule("H10")
async def test_a_request_has_exactly_one_host(api: ApiServer) -> None:
    none = await api.raw(b"GET /v1/files HTTP/1.1\r\n\r\n")
    two = await api.raw(b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n")
    old = await api.raw(b"GET /v1/files HTTP/1.0\r\n\r\n")
    assert (none.status, two.status, old.status) == (400, 400, 200)
    assert none.error
    assert two.error


@pytest.mark.rule("H10")
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
@pytest.mark.parametrize("origin", ["https://evil.com", "null", "http://localhost:1", "file://"])
async def test_writes_from_other_origins_are_refused(
    api: ApiServer, method: str, origin: str
) -> None:
    headers = {"Origin": origin, "Content-Type": FORM}
    reply = await api.request(method, "/v1/files", form(PURPOSE, FILE), headers)
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
    await api.assert_nothing_is_left()


@pytest.mark.rule("H10")
async def test_a_page_of_the_servers_own_origin_may_write(api: ApiServer) -> None:
    headers = {"Origin": f"http://127.0.0.1:{api.port}", "Content-Type": FORM}
    reply = await api.request("POST", "/v1/files", form(PURPOSE, FILE), headers)
    assert reply.status == 200


@pytest.mark.rule("H10")
async def test_other_origins_may_read_what_browsers_will_not_show_them(api: ApiServer) -> None:
    reply = await api.request("GET", "/v1/files", headers={"Origin": "https://evil.com"})
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers


# -- our own errors ------------------------------------------------------------------------------

SECRET = "what-another-caller-sent"


def every_error(root: type[errors.BatchlineError]) -> Iterator[type[errors.BatchlineError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


EXPECTED = {
    errors.RequestError: 400,
    errors.InvalidRequest: 400,
    PayloadTooLarge: 413,
    UnsupportedEncoding: 415,
    RangeNotSatisfiable: 416,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.IllegalTransition: 409,
    errors.KeyReused: 409,
    errors.StoreError: 503,
    errors.StoreUnavailable: 503,
    errors.StorageFull: 507,
    errors.BlobUnreadable: 500,
}


def raised(kind: type[BaseException]) -> BaseException:
    if issubclass(kind, errors.SentUnanswered):
        return kind(SECRET, reason="reset")
    return kind(SECRET)


@pytest.mark.rule("H11")
@pytest.mark.parametrize("kind", sorted(every_error(errors.BatchlineError), key=str))
async def test_every_exception_of_ours_has_its_answer(
    api: ApiServer, kind: type[errors.BatchlineError]
) -> None:
    async def fail() -> None:
        raise raised(kind)

    api.app.add_api_route("/fail", fail)
    reply = await api.request("GET", "/fail")
    assert reply.status == EXPECTED.get(kind, 500)
    shown = issubclass(kind, errors.RequestError)
    assert (SECRET in reply.error["message"]) == shown
    assert reply.error["type"] == ("invalid_request_error" if shown else "server_error")
    if reply.status in (409, 507):
        assert reply.headers["x-should-retry"] == "false"
    if reply.status == 503:
        assert reply.headers["retry-after"] == "1"


@pytest.mark.rule("H12")
async def test_what_nobody_expected_is_logged_under_the_request_id_without_its_message(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError(SECRET)

    api.app.add_api_route("/fail", fail)
    reply = await api.request("GET", "/fail")
    assert (reply.status, reply.error["code"]) == (500, None)
    captured = capsys.readouterr()
    logged = captured.out + captured.err
    assert reply.headers["x-request-id"] in logged
    assert "ZeroDivisionError" in logged
    assert SECRET not in logged + reply.body.decode()


@pytest.mark.rule("H12")
async def test_a_request_that_is_cancelled_by_a_shutdown_gets_an_envelope(api: ApiServer) -> None:
    entered = anyio.Event()

    async def wait() -> None:
        entered.set()
        await anyio.sleep_forever()

    api.app.add_api_route("/wait", wait)
    async with await api.connect() as peer:
        await peer.send(api.head("GET", "/wait", None))
        await entered.wait()
        (task,) = api.state.tasks
        task.cancel()
        reply = await peer.reply()
        assert (reply.status, reply.error["type"]) == (503, "server_error")


async def test_uvicorn_itself_serves_with_this_configuration(api: ApiServer) -> None:
    server = uvicorn.Server(serve_config(api.app, host="127.0.0.1", port=0))
    running = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any") as client:
        models = await client.models.list()
    assert models.data == []
    server.should_exit = True
    await running


# -- health and models ---------------------------------------------------------------------------


async def test_readiness_tells_what_is_wrong_with_what(api: ApiServer) -> None:
    down = BackendHealth(name="gpu", state="down", reason="refused", models=["m"])
    api.readiness = Readiness(
        ready=True, backends=[down], workers_wanted=2, workers_running=1, disk_free_bytes=7
    )
    reply = await api.request("GET", "/healthz/ready")
    assert (reply.status, reply.json) == (
        200,
        {
            "status": "ready",
            "reasons": [],
            "backends": [
                {
                    "name": "gpu",
                    "state": "down",
                    "reason": "refused",
                    "code": None,
                    "models": ["m"],
                }
            ],
            "workers": {"wanted": 2, "running": 1},
            "disk": {"state": "ok", "free_bytes": 7},
            "damaged": 0,
        },
    )


@pytest.mark.rule("H4")
async def test_an_unready_server_is_503_with_reasons_and_envelope(api: ApiServer) -> None:
    api.readiness = Readiness(ready=False, reasons=["No worker starts."])
    reply = await api.request("GET", "/healthz/ready")
    assert (reply.status, reply.error["message"]) == (503, "No worker starts.")
    assert reply.json["status"] == "unready"
    assert (await api.request("GET", "/healthz/live")).status == 200


@pytest.mark.rule("M1")
async def test_models_come_from_the_catalogue(api: ApiServer, client: AsyncOpenAI) -> None:
    api.models = [ListedModel(id="org/model", created=5), ListedModel(id="plain")]
    assert [model.id for model in (await client.models.list()).data] == ["org/model", "plain"]
    assert (await client.models.retrieve("org/model")).created == 5
    assert (await client.models.retrieve("plain")).owned_by == "backend"
    with pytest.raises(openai.NotFoundError, match="The model 'none' does not exist") as raised_:
        await client.models.retrieve("none")
    assert raised_.value.code == "model_not_found"
