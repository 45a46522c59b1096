"""Who is let in: `docs/compatibility.md`, the rules K…"""

from __future__ import annotations

import base64

import openai
import pytest
from openai import AsyncOpenAI

from batchline.domain.errors import InvalidRequest, NotFound
from batchline.domain.keys import new_secret
from batchline.domain.lifecycle import BatchStatus
from batchline.store.database import Database
from tests.contract.api.serving import FILE, FORM, PURPOSE, ApiServer, form
from tests.contract.store_rows import asked_for, uploaded

OPEN = {"/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
MISSING = "Missing bearer or basic authentication in header"


def bearing(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.rule("K1")
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic", "Basic !", "Basic eDo=", "Digest x", "sk-bl-1"],
)
async def test_once_there_is_a_key_a_request_without_one_is_refused(
    api: ApiServer, header: str | None
) -> None:
    await api.keys.create("alpha")
    headers = {} if header is None else {"Authorization": header}
    reply = await api.request("GET", "/v1/files", headers=headers)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert reply.error == {
        "message": MISSING,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.rule("K1")
async def test_two_keys_in_one_request_are_none(api: ApiServer) -> None:
    _, secret = await api.keys.create("alpha")
    head = api.head("GET", "/v1/files", None, bearing(secret)).decode().removesuffix("\r\n")
    reply = await api.raw(f"{head}Authorization: Bearer other\r\n\r\n".encode())
    assert (reply.status, reply.error["message"]) == (401, MISSING)


@pytest.mark.rule("K2")
async def test_a_wrong_key_is_refused_and_not_repeated(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _, secret = await api.keys.create("alpha")
    for wrong in (new_secret(bytes(32)), secret[:-1], f"{secret}0", secret.upper(), "prefix-é"):
        reply = await api.request("GET", "/v1/files", headers=bearing(wrong))
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.error["message"].startswith("Incorrect API key provided")
        for part in (wrong[:8], wrong[-8:]):
            assert part not in reply.body.decode()
    logged = "".join(capsys.readouterr())
    assert "sk-bl-" not in logged
    assert logged.count("request_refused") == 5


@pytest.mark.rule("K1")
async def test_the_official_client_sees_an_authentication_error(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    await api.keys.create("alpha")
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.files.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.rule("K1")
async def test_a_key_is_a_bearer_token_or_the_password_of_basic(api: ApiServer) -> None:
    _, secret = await api.keys.create("alpha")
    for header in (
        f"Bearer {secret}",
        f"bearer   {secret} ",
        f"Basic {base64.b64encode(f':{secret}'.encode()).decode()}",
        f"basic {base64.b64encode(f'me:{secret}'.encode()).decode()}",
    ):
        reply = await api.request("GET", "/v1/files", headers={"Authorization": header})
        assert reply.status == 200, header


@pytest.mark.rule("K3")
async def test_without_a_key_nothing_is_open_but_health_and_the_document(api: ApiServer) -> None:
    await api.keys.create("alpha")
    paths = ["/docs2", "/openapi.json/", "/openapi.jsonx"]
    paths += [
        path.format(file_id="f", batch_id="b", model_id="m", upload_id="u") for path in routes(api)
    ]
    for path in [*paths, "/", "/v1/none", "/healthz", "/HEALTHZ/live", "//healthz/live"]:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            reply = await api.request(method, path)
            if path.startswith("/healthz/") or path in OPEN:
                assert reply.status in (200, 405), path
            else:
                assert (reply.status, reply.error["message"]) == (401, MISSING), path


def routes(api: ApiServer) -> list[str]:
    return list(api.app.openapi()["paths"])


@pytest.mark.rule("K3")
async def test_an_upload_without_a_key_is_refused_before_it_is_read(api: ApiServer) -> None:
    await api.keys.create("alpha")
    async with await api.connect() as peer:
        await peer.send(api.head("POST", "/v1/files", 10**9, {"Content-Type": FORM}))
        assert (await peer.reply()).status == 401
    assert api.stored_blobs() == []


@pytest.mark.rule("K4")
async def test_a_revoked_key_stops_working_at_once_also_on_an_open_connection(
    api: ApiServer,
) -> None:
    key, secret = await api.keys.create("alpha")
    _, other = await api.keys.create("alpha")
    async with await api.connect() as peer:
        await peer.send(api.head("GET", "/v1/files", None, bearing(secret)))
        assert (await peer.reply()).status == 200
        await api.keys.revoke(key.id)
        await peer.send(api.head("GET", "/v1/files", None, bearing(secret)))
        assert (await peer.reply()).error["code"] == "invalid_api_key"
    assert (await api.request("GET", "/v1/files", headers=bearing(other))).status == 200


@pytest.mark.rule("K4")
async def test_revoking_the_last_key_lets_nobody_in(api: ApiServer) -> None:
    key, _ = await api.keys.create("alpha")
    await api.keys.revoke(key.id)
    assert (await api.request("GET", "/v1/files")).status == 401


@pytest.mark.rule("K5")
async def test_with_keys_any_host_and_origin_may_ask(api: ApiServer) -> None:
    foreign = {"Host": "batch.example.com", "Origin": "https://evil.com", "Content-Type": FORM}
    body = form(PURPOSE, FILE)
    assert (await api.request("POST", "/v1/files", body, foreign)).status == 403
    _, secret = await api.keys.create("alpha")
    assert (await api.request("POST", "/v1/files", body, foreign)).status == 401
    reply = await api.request("POST", "/v1/files", body, foreign | bearing(secret))
    assert reply.status == 200


@pytest.mark.rule("K6")
async def test_what_there_was_before_the_first_key_belongs_to_the_project_default(
    api: ApiServer,
) -> None:
    made = await api.upload(PURPOSE, FILE)
    _, alpha = await api.keys.create("alpha")
    _, default = await api.keys.create("default")
    path = f"/v1/files/{made.json['id']}"
    assert (await api.request("GET", path, headers=bearing(alpha))).status == 404
    assert (await api.request("GET", path, headers=bearing(default))).status == 200


async def test_the_cancel_receipt_names_project_and_key_and_not_the_key_itself(
    api: ApiServer, store: Database
) -> None:
    key, secret = await api.keys.create("alpha")
    file, _ = await uploaded(store, project_id=key.project_id)
    batch = await store.create_batch(asked_for(file.id, project_id=key.project_id))
    reply = await api.request("POST", f"/v1/batches/{batch.id}/cancel", headers=bearing(secret))
    assert (reply.status, reply.json["status"]) == (200, BatchStatus.CANCELLING)
    receipt = (await store.load_batch(batch.id)).receipt
    assert receipt is not None
    assert receipt["requested_by"] == {"project_id": key.project_id, "key_id": key.id}
    assert "sk-bl-" not in str(receipt)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "ä", "a\n", "a" * 65, "a/b"])
async def test_a_name_that_no_project_can_have_makes_no_key(api: ApiServer, name: str) -> None:
    with pytest.raises(InvalidRequest, match="project's name"):
        await api.keys.create(name)
    assert await api.keys.list() == []
    assert api.keys.ring.is_empty


@pytest.mark.parametrize("key_id", ["", "key_none", "\0", "x" * 1000])
async def test_a_key_that_never_existed_cannot_be_revoked(api: ApiServer, key_id: str) -> None:
    with pytest.raises(NotFound):
        await api.keys.revoke(key_id)
