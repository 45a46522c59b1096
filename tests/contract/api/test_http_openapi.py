"""`/openapi.json` and `/docs`: `docs/compatibility.md`, rule X7."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.contract.api.serving import MAX_UPLOAD_BYTES, ApiServer, assert_usual_headers
from tests.support.openapi import Documented

PAGES = ["/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]


@pytest.mark.rule("X7")
async def test_the_document_is_that_of_the_server_with_its_settings(api: ApiServer) -> None:
    reply = await api.request("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.json == Documented(max_upload_bytes=MAX_UPLOAD_BYTES).document
    bodies = reply.json["components"]["schemas"]
    assert bodies["CreateUpload"]["properties"]["bytes"]["maximum"] == MAX_UPLOAD_BYTES
    assert bodies["CreateBatch"]["properties"]["completion_window"]["enum"] == ["24h"]


@pytest.mark.rule("X7")
async def test_the_page_and_all_that_it_loads_come_from_this_server(api: ApiServer) -> None:
    page = await api.request("GET", "/docs")
    text = page.body.decode()
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    loaded = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert loaded == ["/docs/swagger-ui.css", "data:,", "/docs/swagger-ui-bundle.js"]
    assert "url: '/openapi.json'" in text
    assert "//" not in text.replace("<!-- ", "")
    for path, kind in zip(PAGES[2:], ["text/javascript", "text/css"], strict=True):
        reply = await api.request("GET", path)
        assert (reply.status, reply.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert len(reply.body) > 100_000
        assert_usual_headers(reply)


@pytest.mark.rule("X7")
async def test_the_page_tells_the_browser_to_run_no_script_but_its_own(api: ApiServer) -> None:
    page = await api.request("GET", "/docs")
    rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    begin = page.body.rindex(b"<script>") + len(b"<script>")
    inline = page.body[begin : page.body.index(b"</script>", begin)]
    allowed = base64.b64encode(hashlib.sha256(inline).digest()).decode()
    assert rules["script-src"] == f"'self' 'sha256-{allowed}'"


@pytest.mark.rule("X7")
@pytest.mark.parametrize("path", PAGES)
async def test_the_pages_need_no_key_and_without_keys_a_loopback_host(
    api: ApiServer, path: str
) -> None:
    foreign = {"Host": "batch.example.com"}
    refused = await api.request("GET", path, headers=foreign)
    assert (refused.status, refused.error["code"]) == (403, "host_not_allowed")
    await api.keys.create("alpha")
    assert (await api.request("GET", path, headers=foreign)).status == 200
