"""Files over HTTP, on a real store: `docs/compatibility.md`, the rules F…"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import openai
import pytest
from openai import AsyncOpenAI

from batchline.api import edge
from batchline.domain.ids import DEFAULT_PROJECT, FileId
from batchline.domain.model import Purpose
from batchline.store import reading
from batchline.store.database import Database
from tests.contract.api.serving import (
    FILE,
    FORM,
    LINE,
    MAX_FILE_BYTES,
    PURPOSE,
    ApiServer,
    chunked,
    form,
    input_blobs,
    part,
    serving,
    until,
)

NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"


# -- uploading -----------------------------------------------------------------------------------


@pytest.mark.rule("F13")
async def test_an_upload_answers_with_every_field_in_the_services_order(api: ApiServer) -> None:
    reply = await api.upload(PURPOSE, FILE)
    assert reply.status == 200
    created_at = int(api.clock.now)
    assert list(reply.json.items()) == [
        ("id", reply.json["id"]),
        ("object", "file"),
        ("bytes", len(LINE)),
        ("created_at", created_at),
        ("expires_at", created_at + 2_592_000),
        ("filename", "requests.jsonl"),
        ("purpose", "batch"),
        ("status", "processed"),
        ("status_details", None),
    ]
    assert reply.json["id"].startswith("file-")
    again = await api.request("GET", f"/v1/files/{reply.json['id']}")
    assert again.body == reply.body


@pytest.mark.rule("F1")
@pytest.mark.parametrize("parts", [(PURPOSE, FILE), (FILE, PURPOSE)], ids=["last", "first"])
async def test_the_file_may_come_before_or_after_its_purpose(
    api: ApiServer, parts: tuple[bytes, bytes]
) -> None:
    reply = await api.upload(*parts)
    content = await api.request("GET", f"/v1/files/{reply.json['id']}/content")
    assert content.body == LINE


@pytest.mark.rule("F2")
@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_an_upload_may_be_chunked_and_slow(api: ApiServer, size: int) -> None:
    content = LINE * 20
    body = form(part("file", content, filename="a.jsonl"), PURPOSE)
    async with await api.connect() as peer:
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        await peer.send(api.head("POST", "/v1/files", None, headers))
        for chunk in chunked(body, size=size):
            await peer.send(chunk)
            await asyncio.sleep(0)
        reply = await peer.reply()
    assert reply.json["bytes"] == len(content)
    download = await api.request("GET", f"/v1/files/{reply.json['id']}/content")
    assert download.body == content


@pytest.mark.rule("F1")
async def test_content_that_looks_like_a_boundary_is_kept(api: ApiServer) -> None:
    content = b'{"a":1}\r\n--boundary-of-the-tes\r\n\r\n--\r\n-\r' * 2_000
    body = form(part("file", content, filename="a.jsonl"), PURPOSE)
    async with await api.connect() as peer:
        await peer.send(api.head("POST", "/v1/files", len(body), {"Content-Type": FORM}))
        for at in range(0, len(body), 997):
            await peer.send(body[at : at + 997])
        reply = await peer.reply()
    download = await api.request("GET", f"/v1/files/{reply.json['id']}/content")
    assert download.body == content


@pytest.mark.rule("F3")
@pytest.mark.parametrize("pattern", ["expires_after[{}]", "expires_after.{}"])
async def test_an_expiry_may_be_named_with_brackets_or_dots(api: ApiServer, pattern: str) -> None:
    anchor = part(pattern.format("anchor"), b"created_at")
    seconds = part(pattern.format("seconds"), b"3600")
    reply = await api.upload(anchor, seconds, PURPOSE, FILE)
    assert reply.json["expires_at"] == reply.json["created_at"] + 3600


@pytest.mark.rule("F6")
@pytest.mark.parametrize(
    ("anchor", "seconds", "code"),
    [
        (b"created_at", b"3599", "integer_below_min_value"),
        (b"created_at", b"-1", "integer_below_min_value"),
        (b"created_at", b"2592001", "integer_above_max_value"),
        (b"created_at", b"soon", "invalid_type"),
        (b"created_at", b"", "invalid_type"),
        (b"last_active_at", b"3600", "invalid_value"),
        (b"created_at", None, "missing_required_parameter"),
        (None, b"3600", "missing_required_parameter"),
    ],
)
async def test_an_expiry_is_from_an_hour_to_thirty_days(
    api: ApiServer, anchor: bytes | None, seconds: bytes | None, code: str
) -> None:
    pairs = [("anchor", anchor), ("seconds", seconds)]
    given = [part(f"expires_after[{name}]", value) for name, value in pairs if value is not None]
    reply = await api.upload(*given, PURPOSE, FILE)
    assert (reply.status, reply.error["code"]) == (400, code)
    assert reply.error["param"].startswith("expires_after.")
    await api.assert_nothing_is_left()


@pytest.mark.rule("F6")
@pytest.mark.parametrize("seconds", [3600, 2_592_000])
async def test_the_ends_of_the_range_of_expiries_are_allowed(api: ApiServer, seconds: int) -> None:
    anchor = part("expires_after[anchor]", b"created_at")
    given = part("expires_after[seconds]", str(seconds).encode())
    reply = await api.upload(FILE, PURPOSE, anchor, given)
    assert reply.json["expires_at"] == reply.json["created_at"] + seconds


@pytest.mark.rule("F5")
async def test_only_files_for_batches_expire_by_themselves(api: ApiServer) -> None:
    reply = await api.upload(part("purpose", b"fine-tune"), FILE)
    assert reply.json["expires_at"] is None


@pytest.mark.rule("F4")
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a %22quoted%22 name.jsonl", 'a "quoted" name.jsonl'),
        ("Prüfung-試験.jsonl", "Prüfung-試験.jsonl"),
        ("semi;colon.jsonl", "semi;colon.jsonl"),
        ("bell\x07nul\x00.jsonl", "bell_nul_.jsonl"),
        ("CASE.JSONL", "CASE.JSONL"),
    ],
)
async def test_a_filename_is_kept_as_its_uploader_has_it(
    api: ApiServer, sent: str, kept: str
) -> None:
    reply = await api.upload(part("file", LINE, filename=sent), PURPOSE)
    assert reply.json["filename"] == kept


@pytest.mark.rule("F7")
@pytest.mark.parametrize("order", [1, -1])
async def test_an_unknown_purpose_is_refused_in_the_services_words(
    api: ApiServer, order: int
) -> None:
    reply = await api.upload(*[part("purpose", b"batch_output"), FILE][::order])
    assert reply.status == 400
    assert reply.error == {
        "message": "'batch_output' is not one of ['fine-tune', 'assistants', 'batch', "
        "'user_data', 'vision', 'evals'] - 'purpose'",
        "type": "invalid_request_error",
        "param": "purpose",
        "code": None,
    }
    await api.assert_nothing_is_left()


@pytest.mark.rule("F7")
@pytest.mark.parametrize(
    "purpose", ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
)
async def test_every_purpose_of_the_service_can_be_uploaded(api: ApiServer, purpose: str) -> None:
    reply = await api.upload(FILE, part("purpose", purpose.encode()))
    assert reply.json["purpose"] == purpose


@pytest.mark.rule("F8")
@pytest.mark.parametrize(
    ("parts", "param"), [([PURPOSE], "file"), ([FILE], "purpose"), ([], "file")]
)
async def test_a_form_without_file_or_purpose_is_refused_by_name(
    api: ApiServer, parts: list[bytes], param: str
) -> None:
    reply = await api.upload(*parts)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert reply.error["message"] == f"'{param}' is a required property"
    await api.assert_nothing_is_left()


@pytest.mark.rule("F9")
@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("requests.json", LINE),
        ("requests.txt", LINE),
        ("requests.jsonl.gz", LINE),
        ("requests.jsonl", b""),
        ("requests.jsonl", b" \n\r\n"),
        ("requests.jsonl", b"{malformed json"),
        ("requests.jsonl", b"custom_id,method\n" + LINE),
        ("requests.jsonl", b'{"a":"\xff"}\n'),
        ("requests.jsonl", b"[" * 50_000 + b"\n"),
        ("requests.jsonl", b"x" * 100_000),
        ("upload", b'["no object"]\n'),
        ("upload", b""),
    ],
)
async def test_what_is_not_jsonl_is_refused_at_the_upload(
    api: ApiServer, filename: str, content: bytes
) -> None:
    reply = await api.upload(part("file", content, filename=filename), PURPOSE)
    assert (reply.status, reply.error["message"]) == (400, NOT_JSONL)
    await api.assert_nothing_is_left()


@pytest.mark.rule("F9")
async def test_other_purposes_may_have_any_format(api: ApiServer) -> None:
    reply = await api.upload(part("file", b"%PDF", filename="a.pdf"), part("purpose", b"user_data"))
    assert reply.status == 200


@pytest.mark.rule("F21")
@pytest.mark.parametrize(
    "content",
    [
        LINE + b"{broken\n",
        b'{"no":"method"}',
        b"\xef\xbb\xbf" + LINE,
        b"\r\n \n" + LINE,
        b'{"long":"' + b"x" * 200_000 + b'"}\n',
        b'{"n":[1e999,%b]}\n' % (b"9" * 5_000),
    ],
    ids=[
        *("bad second line", "no method", "byte-order mark", "blank lines first", "long line"),
        "numbers that no float can hold",
    ],
)
async def test_lines_are_not_validated_at_the_upload(api: ApiServer, content: bytes) -> None:
    reply = await api.upload(part("file", content, filename="a.jsonl"), PURPOSE)
    assert (reply.status, reply.json["status"]) == (200, "processed")


@pytest.mark.rule("F10")
async def test_plain_bytes_of_the_python_client_need_no_extension(client: AsyncOpenAI) -> None:
    file = await client.files.create(file=LINE, purpose="batch")
    assert file.filename == "upload"


@pytest.mark.rule("F8")
async def test_fields_that_are_not_known_are_passed_over(api: ApiServer) -> None:
    reply = await api.upload(part("color", b"blue"), PURPOSE, FILE)
    assert reply.status == 200


# -- uploads that go wrong -----------------------------------------------------------------------


BROKEN_FORMS = {
    "wrong boundary": b"--other\r\n" + FILE + b"\r\n--other--\r\n",
    "cut short": form(PURPOSE, FILE)[:-20],
    "no form": LINE,
    "nothing": b"",
    "two files": form(FILE, FILE, PURPOSE),
    "two purposes": form(PURPOSE, FILE, PURPOSE),
    "nameless part": form(b"Content-Disposition: form-data\r\n\r\nx", FILE, PURPOSE),
    "part without headers": form(b"\r\nx", FILE, PURPOSE),
    "header without a colon": form(b"Content-Disposition\r\n\r\nx", FILE, PURPOSE),
    "long field": form(FILE, part("purpose", b"b" * 5_000)),
    "long header": form(FILE, part("p" * 10_000, b"x"), PURPOSE),
    "many headers": form(FILE, b"A: b\r\n" * 9 + PURPOSE),
    "many fields": form(FILE, *[part(f"f{n}", b"x") for n in range(32)], PURPOSE),
    "encoded": form(part("file", LINE, filename="a.jsonl",
                         extra="\r\nContent-Transfer-Encoding: base64"), PURPOSE),
}  # fmt: skip


@pytest.mark.rule("F12")
@pytest.mark.parametrize("name", list(BROKEN_FORMS))
async def test_a_broken_form_leaves_nothing(api: ApiServer, name: str) -> None:
    reply = await api.request("POST", "/v1/files", BROKEN_FORMS[name], {"Content-Type": FORM})
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    await api.assert_nothing_is_left()


@pytest.mark.rule("F12")
@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", f"multipart/form-data; boundary={'b' * 300}"],
)
async def test_a_body_that_is_no_form_is_refused(api: ApiServer, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    reply = await api.request("POST", "/v1/files", form(FILE, PURPOSE), headers)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    await api.assert_nothing_is_left()


@pytest.mark.rule("F12")
@pytest.mark.parametrize("transfer", ["length", "chunked"])
async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(
    api: ApiServer, transfer: str
) -> None:
    content = LINE * 20_000  # more than a writer buffers, so that bytes are on the disk
    body = form(part("file", content, filename="a.jsonl"), PURPOSE)
    async with await api.connect() as peer:
        if transfer == "length":
            await peer.send(api.head("POST", "/v1/files", len(body), {"Content-Type": FORM}))
            await peer.send(body[:-200])
        else:
            headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
            await peer.send(api.head("POST", "/v1/files", None, headers))
            await peer.send(b"".join(chunked(body[:-200], size=60_000)[:-1]))
        await until(api.stored_blobs)
    await api.assert_nothing_is_left()


@pytest.mark.rule("F12")
async def test_a_content_length_that_is_too_short_leaves_nothing(api: ApiServer) -> None:
    body = form(FILE, PURPOSE)
    headers = {"Content-Type": FORM, "Content-Length": str(len(body) - 10)}
    reply = await api.request("POST", "/v1/files", body, headers)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    await api.assert_nothing_is_left()


@pytest.mark.rule("F12")
async def test_a_broken_chunk_ends_the_upload(api: ApiServer) -> None:
    headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
    async with await api.connect() as peer:
        await peer.send(api.head("POST", "/v1/files", None, headers))
        await peer.send(chunked(form(FILE, PURPOSE)[:-20], size=50)[0])
        await peer.send(b"not a length\r\n")
        reply = await peer.reply()
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        assert await peer.at_end()
    await api.assert_nothing_is_left()


@pytest.mark.rule("F11")
async def test_a_body_that_says_it_is_too_large_is_refused_unread(api: ApiServer) -> None:
    headers = {"Content-Type": FORM, "Content-Length": str(MAX_FILE_BYTES * 2)}
    async with await api.connect() as peer:
        await peer.send(api.head("POST", "/v1/files", None, headers))
        reply = await peer.reply()  # although not one byte of the body was sent
        assert (reply.status, reply.error["message"]) == (400, "File is too large.")
        assert reply.headers["connection"] == "close"
    await api.assert_nothing_is_left()


@pytest.mark.rule("F11")
async def test_a_chunked_body_is_refused_while_it_is_read_and_not_read_for_ever(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "LINGER_S", 0.1)
    opening = form(part("file", LINE, filename="a.jsonl"))[:-30]
    more = chunked(LINE * 1_000, size=1_000_000)[0]
    async with await api.connect() as peer:
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        await peer.send(api.head("POST", "/v1/files", None, headers))
        await peer.send(chunked(opening, size=1_000)[0])
        await peer.send_until_refused(more)
    await api.assert_nothing_is_left()


@pytest.mark.rule("F11")
async def test_a_client_that_sends_too_much_still_reads_why(api: ApiServer) -> None:
    body = form(part("file", b"x" * (MAX_FILE_BYTES + 1), filename="a.jsonl"), PURPOSE)
    reply = await api.request("POST", "/v1/files", body, {"Content-Type": FORM})
    assert (reply.status, reply.error["message"]) == (400, "File is too large.")
    await api.assert_nothing_is_left()


@pytest.mark.rule("F11")
async def test_a_file_of_exactly_the_limit_is_taken(api: ApiServer) -> None:
    content = LINE + b" " * (MAX_FILE_BYTES - len(LINE))
    reply = await api.upload(part("file", content, filename="a.jsonl"), PURPOSE)
    assert reply.json["bytes"] == MAX_FILE_BYTES


@pytest.mark.rule("F11")
async def test_the_official_client_hears_that_its_file_is_too_large(client: AsyncOpenAI) -> None:
    content = b"x" * (MAX_FILE_BYTES * 2)
    with pytest.raises(openai.BadRequestError, match=r"File is too large\."):
        await client.files.create(file=("a.jsonl", content), purpose="batch")


@pytest.mark.rule("H11")
async def test_a_full_disk_is_507_and_leaves_nothing(store: Database, small_disk: Path) -> None:
    async with serving(store, small_disk / "blobs") as api:
        content = LINE + b" " * (MAX_FILE_BYTES - len(LINE))
        reply = await api.upload(part("file", content, filename="a.jsonl"), PURPOSE)
        assert (reply.status, reply.error["code"]) == (507, "storage_full")
        assert reply.headers["x-should-retry"] == "false"
        await api.assert_nothing_is_left()


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.rule("F15")
async def test_content_comes_whole_with_its_length_and_name(api: ApiServer) -> None:
    content = b"".join(b'{"n":%d}\n' % n for n in range(100_000))
    sent = part("file", content, filename='ä "b".jsonl'.replace('"', "%22"))
    file = (await api.upload(sent, PURPOSE)).json
    headers = {"Accept": "application/binary"}
    reply = await api.request("GET", f"/v1/files/{file['id']}/content", headers=headers)
    assert reply.status == 200
    assert reply.body == content
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-length"] == str(len(content))
    assert reply.headers["content-disposition"] == (
        'attachment; filename="_ \\"b\\".jsonl"; filename*=UTF-8\'\'%C3%A4%20%22b%22.jsonl'
    )


@pytest.mark.rule("F23")
async def test_one_range_of_bytes_comes_as_a_part(api: ApiServer) -> None:
    content = b"".join(b'{"n":%d}\n' % n for n in range(100_000))
    sent = part("file", content, filename="a.jsonl")
    path = f"/v1/files/{(await api.upload(sent, PURPOSE)).json['id']}/content"
    whole = await api.request("GET", path)
    assert whole.headers["accept-ranges"] == "bytes"
    size, tag = len(content), whole.headers["etag"]
    for start, stop in ((0, 1), (5, 700_000), (size - 9, size)):
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Range": tag}
        reply = await api.request("GET", path, headers=headers)
        assert (reply.status, reply.body) == (206, content[start:stop])
        assert reply.headers["content-length"] == str(stop - start)
        assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert reply.headers["etag"] == tag
    for headers in ({"Range": "bytes=1-2,5-6"}, {"Range": "bytes=1-2", "If-Range": '"other"'}):
        reply = await api.request("GET", path, headers=headers)
        assert (reply.status, len(reply.body)) == (200, size)
    reply = await api.request("GET", path, headers={"Range": f"bytes={size}-"})
    assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.rule("F23")
async def test_a_range_of_changed_bytes_is_not_sent(api: ApiServer) -> None:
    """Also where the change is outside of the range: what is stored is checked as a whole."""
    file = (await api.upload(PURPOSE, FILE)).json
    blob = api.blobs_root / input_blobs(api)[0]
    blob.write_bytes(LINE[:-2] + b"!" + LINE[-1:])
    headers = {"Range": "bytes=1-2"}
    reply = await api.request("GET", f"/v1/files/{file['id']}/content", headers=headers)
    assert (reply.status, reply.error["code"]) == (500, "blob_unreadable")


@pytest.mark.rule("F15")
async def test_reading_stops_when_the_client_goes_away(api: ApiServer) -> None:
    content = LINE + b" " * (MAX_FILE_BYTES - len(LINE))
    file = (await api.upload(part("file", content, filename="a.jsonl"), PURPOSE)).json
    async with await api.connect() as peer:
        await peer.send(api.head("GET", f"/v1/files/{file['id']}/content", None))
        assert await peer.read(100)
    with anyio.fail_after(10):
        while api.state.tasks:
            await asyncio.wait(list(api.state.tasks))


@pytest.mark.rule("H12")
async def test_lost_bytes_are_a_500_and_never_a_short_file(api: ApiServer) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    (api.blobs_root / input_blobs(api)[0]).unlink()
    reply = await api.request("GET", f"/v1/files/{file['id']}/content")
    assert (reply.status, reply.error["code"]) == (500, "blob_unreadable")


@pytest.mark.rule("H12")
async def test_bytes_lost_behind_the_first_chunk_cut_the_connection(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a file that is too large to be looked at before it is sent."""
    monkeypatch.setattr(reading, "CHECKED_AHEAD_BYTES", 0)
    content = LINE + b" " * (MAX_FILE_BYTES - len(LINE))
    file = (await api.upload(part("file", content, filename="a.jsonl"), PURPOSE)).json
    blob = api.blobs_root / input_blobs(api)[0]
    blob.write_bytes(content[:100_000])
    with pytest.raises(asyncio.IncompleteReadError):
        await api.request("GET", f"/v1/files/{file['id']}/content")


@pytest.mark.rule("H12")
async def test_changed_bytes_are_a_500_and_are_not_sent(api: ApiServer) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    blob = api.blobs_root / input_blobs(api)[0]
    blob.write_bytes(blob.read_bytes().replace(b"POST", b"QOST"))
    reply = await api.request("GET", f"/v1/files/{file['id']}/content")
    assert (reply.status, reply.error["code"]) == (500, "blob_unreadable")
    assert b"QOST" not in reply.body


@pytest.mark.rule("F16")
@pytest.mark.parametrize("purpose", ["assistants", "user_data"])
async def test_files_of_some_purposes_cannot_be_downloaded(api: ApiServer, purpose: str) -> None:
    file = (await api.upload(FILE, part("purpose", purpose.encode()))).json
    reply = await api.request("GET", f"/v1/files/{file['id']}/content")
    assert (reply.status, reply.error["message"]) == (
        400,
        f"Not allowed to download files of purpose: {purpose}",
    )


@pytest.mark.rule("F14")
@pytest.mark.parametrize("path", ["/v1/files/{}", "/v1/files/{}/content", "DELETE /v1/files/{}"])
@pytest.mark.parametrize("file_id", ["file-none", "x", "file-%00", "file-%ff", "a" * 300])
async def test_an_unknown_file_is_not_found(api: ApiServer, path: str, file_id: str) -> None:
    method, _, target = path.rpartition(" ")
    reply = await api.request(method or "GET", target.format(file_id))
    assert (reply.status, reply.error["param"]) == (404, "id")
    assert reply.error["message"].startswith("No such File object: ")


@pytest.mark.rule("F17")
async def test_a_deleted_file_is_gone(api: ApiServer) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    path = f"/v1/files/{file['id']}"
    reply = await api.request("DELETE", path, headers={"Content-Type": "application/json"})
    assert list(reply.json.items()) == [("id", file["id"]), ("object", "file"), ("deleted", True)]
    for method, target in [("GET", path), ("GET", path + "/content"), ("DELETE", path)]:
        assert (await api.request(method, target)).status == 404


@pytest.mark.rule("F20")
async def test_an_expired_file_is_not_found_by_the_clock(api: ApiServer) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    api.clock.now = file["expires_at"] - 1
    assert (await api.request("GET", f"/v1/files/{file['id']}")).status == 200
    api.clock.now = file["expires_at"]
    assert (await api.request("GET", f"/v1/files/{file['id']}")).status == 404
    assert (await api.request("GET", f"/v1/files/{file['id']}/content")).status == 404
    assert (await api.request("GET", "/v1/files")).json["data"] == []


# -- lists ---------------------------------------------------------------------------------------


async def uploaded(api: ApiServer, count: int) -> list[str]:
    return [(await api.upload(PURPOSE, FILE)).json["id"] for _ in range(count)]


@pytest.mark.rule("F18")
async def test_files_are_listed_newest_first_in_pages(api: ApiServer) -> None:
    ids = await uploaded(api, 3)
    first = (await api.request("GET", "/v1/files?limit=2")).json
    assert list(first) == ["object", "data", "first_id", "last_id", "has_more"]
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[2], ids[1], True)
    rest = (await api.request("GET", f"/v1/files?limit=2&after={ids[1]}")).json
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    ascending = (await api.request("GET", "/v1/files?order=asc")).json
    assert [file["id"] for file in ascending["data"]] == ids


@pytest.mark.rule("F18")
async def test_an_empty_page_has_null_ids(api: ApiServer) -> None:
    assert (await api.request("GET", "/v1/files")).json == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.rule("F18")
async def test_a_purpose_filters_and_one_that_nobody_knows_finds_nothing(api: ApiServer) -> None:
    await uploaded(api, 1)
    other = (await api.upload(FILE, part("purpose", b"evals"))).json["id"]
    found = (await api.request("GET", "/v1/files?purpose=evals")).json
    assert [file["id"] for file in found["data"]] == [other]
    assert (await api.request("GET", "/v1/files?purpose=nobody")).json["data"] == []


@pytest.mark.rule("F19")
async def test_a_cursor_may_be_deleted_meanwhile_but_not_invented(api: ApiServer) -> None:
    ids = await uploaded(api, 3)
    await api.request("DELETE", f"/v1/files/{ids[1]}")
    page = (await api.request("GET", f"/v1/files?after={ids[1]}")).json
    assert [file["id"] for file in page["data"]] == [ids[0]]
    assert (await api.request("GET", f"/v1/files?after={ids[0]}")).json["data"] == []
    for unknown in ("file-none", "file-%00"):
        reply = await api.request("GET", f"/v1/files?after={unknown}")
        assert (reply.status, reply.error["param"]) == (404, "after")


@pytest.mark.rule("F18")
@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=10001", "limit", "integer_above_max_value"),
        ("limit=ten", "limit", "invalid_type"),
        ("order=newest", "order", "invalid_value"),
    ],
)
async def test_list_parameters_are_checked(
    api: ApiServer, query: str, param: str, code: str
) -> None:
    reply = await api.request("GET", f"/v1/files?{query}")
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)


# -- the official client -------------------------------------------------------------------------


async def test_the_official_client_uploads_waits_reads_lists_and_deletes(
    client: AsyncOpenAI, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(LINE * 100)
    file = await client.files.create(
        file=path, purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert file.expires_at == file.created_at + 7200
    assert (await client.files.wait_for_processing(file.id)).status == "processed"
    assert (await client.files.content(file.id)).content == LINE * 100
    assert [found.id async for found in client.files.list(purpose="batch")] == [file.id]
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError) as raised:
        await client.files.retrieve(file.id)
    assert raised.value.request_id is not None
    assert raised.value.request_id.startswith("req_")


@pytest.mark.rule("F18")
async def test_the_official_client_pages_through_every_file(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    ids = await uploaded(api, 5)
    listed = [file.id async for file in client.files.list(limit=2)]
    assert listed == ids[::-1]


@pytest.mark.rule("F2")
async def test_a_generator_uploads_without_a_length(api: ApiServer) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield form(FILE, PURPOSE)

    async with AsyncOpenAI(base_url=api.base_url, api_key="any", max_retries=0) as client:
        http = client._client  # the SDK's own HTTP client, so that no other one is needed
        reply = await http.post(
            f"{api.base_url}/files", content=body(), headers={"Content-Type": FORM}
        )
    assert reply.status_code == 200
    assert json.loads(reply.content)["bytes"] == len(LINE)


async def test_the_bytes_are_where_the_row_says(api: ApiServer, store: Database) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    row = await store.get_file(DEFAULT_PROJECT, FileId(file["id"]), now=int(api.clock.now))
    assert row is not None
    assert row.purpose is Purpose.BATCH
    (only,) = await store.file_ranges(row.id)
    assert api.blobs.path(only.blob).read_bytes() == LINE
