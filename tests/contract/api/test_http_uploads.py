"""Uploads in parts over HTTP, on a real store: `docs/compatibility.md`, the rules U…"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Upload

from batchline.domain.errors import StoreUnavailable
from batchline.domain.ids import DEFAULT_PROJECT, ProjectId, UploadId, upload_id
from batchline.domain.model import Purpose
from batchline.domain.model import Upload as StoredUpload
from batchline.service import uploads as service
from batchline.service.maintenance import Maintenance
from batchline.store.contract import Store
from batchline.store.database import Database
from tests.contract.api.serving import (
    FORM,
    LINE,
    MAX_UPLOAD_BYTES,
    ApiServer,
    form,
    input_blobs,
    part,
)

PATH = "/v1/uploads"
ORDER: dict[str, Any] = {
    "filename": "requests.jsonl",
    "purpose": "batch",
    "bytes": 3 * len(LINE),
    "mime_type": "application/jsonl",
}


async def begun(
    client: AsyncOpenAI, *, size: int = 3 * len(LINE), purpose: Any = "batch"
) -> Upload:
    return await client.uploads.create(
        bytes=size, filename="requests.jsonl", mime_type="application/jsonl", purpose=purpose
    )


async def sent(client: AsyncOpenAI, upload: Upload, data: bytes = LINE) -> str:
    return (await client.uploads.parts.create(upload.id, data=data)).id


async def whole(client: AsyncOpenAI, upload: Upload) -> list[str]:
    """The ids of three parts that make up the whole."""
    return [await sent(client, upload) for _ in range(3)]


async def swept(api: ApiServer) -> None:
    await Maintenance(store=api.store, blobs=api.blobs, clock=api.clock).sweep()


# -- the whole way -------------------------------------------------------------------------------


@pytest.mark.rule("U1")
async def test_an_upload_has_every_field_and_is_pending_for_an_hour(api: ApiServer) -> None:
    reply = await api.post_json(PATH, ORDER)
    created_at = int(api.clock.now)
    assert list(reply.json.items()) == [
        ("id", reply.json["id"]),
        ("object", "upload"),
        ("bytes", 3 * len(LINE)),
        ("created_at", created_at),
        ("filename", "requests.jsonl"),
        ("purpose", "batch"),
        ("status", "pending"),
        ("expires_at", created_at + 3_600),
        ("file", None),
    ]
    assert reply.json["id"].startswith("upload_")


@pytest.mark.rule("U4")
async def test_a_part_is_answered_with_its_object_when_its_bytes_are_stored(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    reply = await api.request(
        "POST", f"{PATH}/{upload.id}/parts", form(part("data", LINE)), {"Content-Type": FORM}
    )
    assert list(reply.json.items()) == [
        ("id", reply.json["id"]),
        ("object", "upload.part"),
        ("created_at", int(api.clock.now)),
        ("upload_id", upload.id),
    ]
    assert reply.json["id"].startswith("part_")
    assert len(input_blobs(api)) == 1


@pytest.mark.rule("U4")
@pytest.mark.rule("U5")
async def test_parts_come_in_parallel_and_any_order_and_are_joined_as_the_completion_says(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    pieces = [LINE, b'{"n":' + b"1" * 70_000, b"}\n", LINE * 30_000, b"\n" * 7]
    content = b"".join(pieces)
    upload = await begun(client, size=len(content))
    order = [3, 0, 4, 2, 1]
    ids = await asyncio.gather(*(sent(client, upload, pieces[index]) for index in order))
    in_place = [ids[order.index(index)] for index in range(len(pieces))]
    done = await client.uploads.complete(
        upload.id, part_ids=in_place, md5=hashlib.md5(content, usedforsecurity=False).hexdigest()
    )
    assert done.status == "completed"
    assert done.file is not None
    assert (done.file.bytes, done.file.filename) == (len(content), "requests.jsonl")
    assert (await client.files.content(done.file.id)).content == content
    assert await client.files.retrieve(done.file.id) == done.file
    await swept(api)
    assert len(input_blobs(api)) == 1  # the parts are gone
    assert (await client.files.content(done.file.id)).content == content


@pytest.mark.rule("U4")
@pytest.mark.parametrize("part_size", [None, 1_000, len(LINE)])
async def test_the_sdks_helper_cuts_sends_and_completes(
    client: AsyncOpenAI, part_size: int | None
) -> None:
    content = LINE * 100
    done = await client.uploads.upload_file_chunked(
        file=content,
        filename="in.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=part_size,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == content


@pytest.mark.rule("U5")
async def test_parts_that_are_not_listed_are_dropped(api: ApiServer, client: AsyncOpenAI) -> None:
    upload = await begun(client)
    await sent(client, upload, b"a part that was sent twice because its answer was lost")
    done = await client.uploads.complete(upload.id, part_ids=await whole(client, upload))
    assert done.file is not None
    await swept(api)
    assert len(input_blobs(api)) == 1


@pytest.mark.rule("U14")
async def test_the_file_lives_from_its_completion_on(api: ApiServer, client: AsyncOpenAI) -> None:
    upload = (
        await api.post_json(
            PATH, {**ORDER, "expires_after": {"anchor": "created_at", "seconds": 7_200}}
        )
    ).json
    usual = await begun(client)
    api.clock.now += 1_000
    now = int(api.clock.now)
    for one, lifetime in ((Upload.model_validate(upload), 7_200), (usual, 2_592_000)):
        done = await client.uploads.complete(one.id, part_ids=await whole(client, one))
        assert done.file is not None
        assert (done.file.created_at, done.file.expires_at) == (now, now + lifetime)


# -- what create refuses ---------------------------------------------------------------------------


@pytest.mark.rule("U2")
@pytest.mark.parametrize("name", ["filename", "purpose", "bytes", "mime_type"])
async def test_a_missing_field_is_named(api: ApiServer, name: str) -> None:
    reply = await api.post_json(PATH, {key: ORDER[key] for key in ORDER if key != name})
    assert (reply.status, reply.error["code"]) == (400, "missing_required_parameter")
    assert reply.error["param"] == name


@pytest.mark.rule("U2")
@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"bytes": 0}, "integer_below_min_value", "bytes"),
        ({"bytes": MAX_UPLOAD_BYTES + 1}, "integer_above_max_value", "bytes"),
        ({"bytes": "5"}, "invalid_type", "bytes"),
        ({"bytes": True}, "invalid_type", "bytes"),
        ({"filename": ""}, "invalid_value", "filename"),
        ({"filename": 5}, "invalid_type", "filename"),
        ({"purpose": "batch_output"}, None, "purpose"),
        ({"mime_type": None}, "invalid_type", "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "integer_below_min_value",
         "expires_after.seconds"),
        ({"parts": 3}, "unknown_parameter", "parts"),
    ],
)  # fmt: skip
async def test_a_field_that_is_wrong_is_refused_by_name(
    api: ApiServer, change: dict[str, Any], code: str | None, param: str
) -> None:
    reply = await api.post_json(PATH, {**ORDER, **change})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


@pytest.mark.rule("U2")
@pytest.mark.parametrize("body", [[], "text", 5])
async def test_a_body_that_is_no_object_is_refused(
    api: ApiServer, client: AsyncOpenAI, body: object
) -> None:
    upload = await begun(client)
    for path in (PATH, f"{PATH}/{upload.id}/complete"):
        reply = await api.post_json(path, body)
        assert (reply.status, reply.error["code"]) == (400, "invalid_type")


@pytest.mark.rule("U2")
async def test_an_upload_may_be_as_large_as_the_limit_and_its_name_is_made_printable(
    api: ApiServer,
) -> None:
    reply = await api.post_json(
        PATH, {**ORDER, "bytes": MAX_UPLOAD_BYTES, "filename": "nul\x00.jsonl"}
    )
    assert (reply.status, reply.json["filename"]) == (200, "nul_.jsonl")


@pytest.mark.rule("U3")
async def test_a_name_that_cannot_be_a_batchs_is_refused_at_once(api: ApiServer) -> None:
    reply = await api.post_json(PATH, {**ORDER, "filename": "requests.csv"})
    assert reply.status == 400
    assert reply.error["message"] == "Invalid file format for Batch API. Must be .jsonl"
    other = {**ORDER, "filename": "requests.csv", "purpose": "user_data"}
    assert (await api.post_json(PATH, other)).status == 200


# -- what parts are refused for ------------------------------------------------------------------


@pytest.mark.rule("U4")
async def test_a_part_beyond_the_limit_is_refused_and_leaves_nothing(
    api: ApiServer, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_PART_BYTES", 100_000)
    upload = await begun(client, size=200_000)
    with pytest.raises(openai.BadRequestError, match="File is too large"):
        await sent(client, upload, b"x" * 100_001)
    assert api.stored_blobs() == []
    await sent(client, upload, b"x" * 100_000)


@pytest.mark.rule("U4")
async def test_a_body_that_says_that_it_is_too_long_is_refused_before_it_is_read(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    too_long = service.MAX_PART_BYTES + 2 * 1024 * 1024
    async with await api.connect() as peer:
        head = api.head("POST", f"{PATH}/{upload.id}/parts", too_long, {"Content-Type": FORM})
        await peer.send(head)
        reply = await peer.reply()
    assert (reply.status, reply.error["message"]) == (400, "File is too large.")


@pytest.mark.rule("U13")
@pytest.mark.parametrize(
    "body",
    [
        form(part("file", LINE)),
        form(),
        form(part("data", LINE), part("data", LINE)),
        form(part("data", LINE))[:-9],
        b"",
    ],
    ids=["other-field", "empty", "two", "cut", "no-body"],
)
async def test_a_broken_part_leaves_nothing(
    api: ApiServer, client: AsyncOpenAI, body: bytes
) -> None:
    upload = await begun(client)
    reply = await api.request("POST", f"{PATH}/{upload.id}/parts", body, {"Content-Type": FORM})
    assert reply.status == 400
    await api.assert_nothing_is_left()
    assert await api.store.upload_parts(UploadId(upload.id)) == []


@pytest.mark.rule("U12")
async def test_all_parts_together_have_no_more_than_an_upload_may(
    api: ApiServer, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_PARTS", 3)
    upload = await begun(client)
    await sent(client, upload, b"x" * (MAX_UPLOAD_BYTES - 1))
    with pytest.raises(openai.BadRequestError, match="no room for this part"):
        await sent(client, upload, b"xx")
    await sent(client, upload, b"x")
    await sent(client, upload, b"")
    with pytest.raises(openai.BadRequestError, match="no room for this part"):
        await sent(client, upload, b"")
    assert len(input_blobs(api)) == 3


# -- what completions are refused for ------------------------------------------------------------


@pytest.mark.rule("U5")
@pytest.mark.parametrize(
    ("part_ids", "code"),
    [
        (None, "missing_required_parameter"),
        ("part_1", "invalid_type"),
        ([5], "invalid_type"),
        (["part_1", "part_1"], "invalid_value"),
        (["part_1"], None),
        ([], None),
        (["\x00"], None),
    ],
)
async def test_a_list_of_parts_that_is_wrong_is_refused(
    api: ApiServer, client: AsyncOpenAI, part_ids: object, code: str | None
) -> None:
    upload = await begun(client)
    reply = await api.post_json(f"{PATH}/{upload.id}/complete", {"part_ids": part_ids})
    assert (reply.status, reply.error["code"]) == (400, code)
    assert reply.error["param"].startswith("part_ids")


@pytest.mark.rule("U5")
async def test_a_total_that_is_not_what_was_announced_is_refused_and_can_be_put_right(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    with pytest.raises(openai.BadRequestError, match="was announced with"):
        await client.uploads.complete(upload.id, part_ids=ids[:2])
    with pytest.raises(openai.BadRequestError, match="was announced with"):
        await client.uploads.complete(upload.id, part_ids=[*ids, await sent(client, upload)])
    assert (await client.uploads.complete(upload.id, part_ids=ids)).status == "completed"


@pytest.mark.rule("U5")
async def test_a_part_of_another_upload_is_no_part_of_this_one(client: AsyncOpenAI) -> None:
    upload, other = await begun(client, size=len(LINE)), await begun(client)
    with pytest.raises(openai.BadRequestError, match="No such part"):
        await client.uploads.complete(upload.id, part_ids=[await sent(client, other)])


@pytest.mark.rule("U6")
async def test_a_wrong_checksum_is_refused_and_leaves_no_copy(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    for md5, code in (("0" * 32, None), ("0" * 31, "invalid_value"), ("g" * 32, "invalid_value")):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.uploads.complete(upload.id, part_ids=ids, md5=md5)
        assert (refused.value.param, refused.value.code) == ("md5", code)
    assert len(input_blobs(api)) == len(api.stored_blobs()) == 3
    right = hashlib.md5(3 * LINE, usedforsecurity=False).hexdigest().upper()
    assert (await client.uploads.complete(upload.id, part_ids=ids, md5=right)).file is not None


@pytest.mark.rule("U3")
async def test_content_that_is_not_jsonl_is_refused_when_it_is_whole(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client, size=8)
    part_id = await sent(client, upload, b"a,b,c\n1\n")
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        await client.uploads.complete(upload.id, part_ids=[part_id])
    assert len(api.stored_blobs()) == 1
    other = await begun(client, size=8, purpose="user_data")
    part_id = await sent(client, other, b"a,b,c\n1\n")
    assert (await client.uploads.complete(other.id, part_ids=[part_id])).file is not None


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.rule("U7")
async def test_a_cancelled_upload_lets_go_of_its_parts(api: ApiServer, client: AsyncOpenAI) -> None:
    upload = await begun(client)
    await whole(client, upload)
    assert (await client.uploads.cancel(upload.id)).status == "cancelled"
    assert (await client.uploads.cancel(upload.id)).status == "cancelled"
    await swept(api)
    await api.assert_nothing_is_left()


@pytest.mark.rule("U8")
@pytest.mark.parametrize("end", ["completed", "cancelled", "expired"])
async def test_an_upload_that_ended_takes_nothing_more(
    api: ApiServer, client: AsyncOpenAI, end: str
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    match end:
        case "completed":
            await client.uploads.complete(upload.id, part_ids=ids)
        case "cancelled":
            await client.uploads.cancel(upload.id)
        case _:
            api.clock.now += 3_600
    stored = api.stored_blobs()
    with pytest.raises(openai.BadRequestError, match=f"has status '{end}'"):
        await sent(client, upload)
    with pytest.raises(openai.BadRequestError, match=f"has status '{end}'"):
        await client.uploads.complete(upload.id, part_ids=ids[::-1])
    if end != "cancelled":
        with pytest.raises(openai.BadRequestError, match=f"has status '{end}'"):
            await client.uploads.cancel(upload.id)
    assert api.stored_blobs() == stored


@pytest.mark.rule("U8")
async def test_a_part_that_is_on_its_way_when_the_upload_ends_is_refused_and_leaves_nothing(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    body = form(part("data", LINE))
    async with await api.connect() as peer:
        await peer.send(
            api.head("POST", f"{PATH}/{upload.id}/parts", len(body), {"Content-Type": FORM})
            + body[:-10]
        )
        # Only a request whose head was read has looked whether the upload is open.
        await asyncio.gather(*(begun(client) for _ in range(3)))
        await client.uploads.cancel(upload.id)
        await peer.send(body[-10:])
        reply = await peer.reply()
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert "has status 'cancelled'" in reply.error["message"]
    await api.assert_nothing_is_left()


@pytest.mark.rule("U9")
async def test_a_completion_that_is_asked_for_again_gives_the_same_file(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    done = await asyncio.gather(
        *(client.uploads.complete(upload.id, part_ids=ids) for _ in range(10))
    )
    assert all(one == done[0] for one in done)
    assert await client.uploads.complete(upload.id, part_ids=ids) == done[0]
    assert len((await client.files.list()).data) == 1
    await swept(api)
    assert len(api.stored_blobs()) == 1


@pytest.mark.rule("U10")
async def test_an_upload_expires_after_an_hour_and_its_bytes_go(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    upload = await begun(client)
    await whole(client, upload)
    api.clock.now = upload.expires_at - 1
    await sent(client, upload)
    await swept(api)
    assert len(input_blobs(api)) == 4
    api.clock.now = upload.expires_at
    with pytest.raises(openai.BadRequestError, match="has status 'expired'"):
        await sent(client, upload)
    await swept(api)
    await api.assert_nothing_is_left()


@pytest.mark.rule("U10")
async def test_an_upload_that_expires_under_its_completion_is_refused_and_leaves_nothing(
    api: ApiServer, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    parts = api.store.upload_parts

    async def then_expire(pending: UploadId) -> Any:
        found = await parts(pending)
        api.clock.now = upload.expires_at
        await swept(api)
        return found

    monkeypatch.setattr(api.store, "upload_parts", then_expire)
    with pytest.raises(openai.BadRequestError, match="has status 'expired'"):
        await client.uploads.complete(upload.id, part_ids=ids)
    await api.assert_nothing_is_left()


# -- scope and failures ----------------------------------------------------------------------------


@pytest.mark.rule("U11")
async def test_an_unknown_or_foreign_upload_is_not_found(
    api: ApiServer, client: AsyncOpenAI, other_project: ProjectId
) -> None:
    foreign = await foreign_upload(api.store, other_project)
    for unknown in (foreign.id, "upload_none", "no%00id"):
        for call, body, kind in (
            ("parts", form(part("data", LINE)), FORM),
            ("complete", b'{"part_ids":[]}', "application/json"),
            ("cancel", b"", "application/json"),
        ):
            path = f"{PATH}/{unknown}/{call}"
            reply = await api.request("POST", path, body, {"Content-Type": kind})
            named = unknown.replace("%00", "\x00")
            assert (reply.status, reply.error["param"]) == (404, "id")
            assert reply.error["message"] == f"No such Upload object: {named}"
    assert api.stored_blobs() == []


async def foreign_upload(store: Store, project_id: ProjectId) -> StoredUpload:
    upload = StoredUpload(
        id=upload_id(b"0" * 12),
        project_id=project_id,
        purpose=Purpose.BATCH,
        filename="a.jsonl",
        bytes=1,
        created_at=0,
        expires_at=2**40,
        file_expires_after_s=None,
    )
    await store.create_upload(upload)
    return upload


@pytest.mark.parametrize("step", ["add_part", "complete_upload"])
@pytest.mark.parametrize("committed", [False, True])
async def test_a_store_that_fails_leaves_bytes_only_where_it_had_committed(
    api: ApiServer,
    client: AsyncOpenAI,
    store: Database,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    committed: bool,
) -> None:
    upload = await begun(client)
    ids = await whole(client, upload)
    work = getattr(store, step)

    async def failing(*args: Any, **kwargs: Any) -> None:
        if committed:
            await work(*args, **kwargs)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(store, step, failing)
    with pytest.raises(openai.InternalServerError):
        await (
            sent(client, upload)
            if step == "add_part"
            else client.uploads.complete(upload.id, part_ids=ids)
        )
    monkeypatch.undo()
    assert len(input_blobs(api)) == len(api.stored_blobs()) == 3 + committed
    done = await client.uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    await swept(api)
    assert len(api.stored_blobs()) == 1
    assert len((await store.list_files(
        DEFAULT_PROJECT, purpose=None, after=None, limit=9, ascending=True, now=0
    )).items) == 1  # fmt: skip
