"""The bytes of the backend's answers."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from tests.support.scripted_backend.script import Answer, Fault

# What every good answer says that it used, in the words of its endpoint.
INPUT_TOKENS: Final = 11
CACHED_TOKENS: Final = 3
OUTPUT_TOKENS: Final = 7
REASONING_TOKENS: Final = 2

_CHAT_USAGE: Final = (
    b'{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,'
    b'"prompt_tokens_details":{"cached_tokens":3},'
    b'"completion_tokens_details":{"reasoning_tokens":2}}'
)
_EMBEDDINGS_USAGE: Final = b'{"prompt_tokens":11,"total_tokens":11}'
_RESPONSES_USAGE: Final = (
    b'{"input_tokens":11,"output_tokens":7,"total_tokens":18,'
    b'"input_tokens_details":{"cached_tokens":3},'
    b'"output_tokens_details":{"reasoning_tokens":2}}'
)
_IMAGES_USAGE: Final = (
    b'{"input_tokens":11,"output_tokens":7,"total_tokens":18,'
    b'"input_tokens_details":{"text_tokens":8,"image_tokens":3}}'
)

# %b in order: model, text, usage. `text` begins with the request's own marker.
_TEMPLATES: Final = {
    "/v1/chat/completions": (
        b'{"id":"chatcmpl-scripted","object":"chat.completion","created":1750000000,"model":%b,'
        b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"logprobs":null,'
        b'"finish_reason":"stop"}],"usage":%b}'
    ),
    "/v1/completions": (
        b'{"id":"cmpl-scripted","object":"text_completion","created":1750000000,"model":%b,'
        b'"choices":[{"index":0,"text":"%b","logprobs":null,"finish_reason":"stop"}],"usage":%b}'
    ),
    # Vectors have no place for a text: the marker is an extension field.
    "/v1/embeddings": (
        b'{"object":"list","model":%b,"marker":"%b","data":[{"object":"embedding","index":0,'
        b'"embedding":[0.125,-0.5,0.25]}],"usage":%b}'
    ),
    "/v1/responses": (
        b'{"id":"resp_scripted","object":"response","created_at":1750000000,"status":"completed",'
        b'"error":null,"model":%b,"output":[{"type":"message","id":"msg_scripted","role":'
        b'"assistant","status":"completed","content":[{"type":"output_text","text":"%b",'
        b'"annotations":[]}]}],"usage":%b}'
    ),
    # Moderations and videos tell no usage: `%.0b` takes it and writes nothing.
    "/v1/moderations": (
        b'{"id":"modr-scripted","model":%b,"marker":"%b","results":[{"flagged":false,'
        b'"categories":{},"category_scores":{}}]%.0b}'
    ),
    "/v1/images/generations": (
        b'{"created":1750000000,"model":%b,"data":[{"b64_json":"aGk=","marker":"%b"}],"usage":%b}'
    ),
    "/v1/images/edits": (
        b'{"created":1750000000,"model":%b,"data":[{"b64_json":"aGk=","marker":"%b"}],"usage":%b}'
    ),
    "/v1/videos": (
        b'{"id":"video_scripted","object":"video","status":"queued","model":%b,"prompt":"%b"%.0b}'
    ),
    "/v1/rerank": (
        b'{"id":"rerank-scripted","model":%b,"results":[{"index":0,"relevance_score":0.5,'
        b'"document":{"text":"%b"}}],"usage":%b}'
    ),
    "/v1/score": (
        b'{"id":"score-scripted","object":"list","model":%b,"marker":"%b",'
        b'"data":[{"index":0,"object":"score","score":0.5}],"usage":%b}'
    ),
}
_USAGES: Final = {
    "/v1/chat/completions": _CHAT_USAGE,
    "/v1/completions": _CHAT_USAGE,
    "/v1/embeddings": _EMBEDDINGS_USAGE,
    "/v1/responses": _RESPONSES_USAGE,
    "/v1/moderations": b"null",
    "/v1/images/generations": _IMAGES_USAGE,
    "/v1/images/edits": _IMAGES_USAGE,
    "/v1/videos": b"null",
    "/v1/rerank": b'{"total_tokens":11}',
    "/v1/score": b'{"prompt_tokens":11,"total_tokens":11,"completion_tokens":0,'
    b'"prompt_tokens_details":null}',
}
ENDPOINTS: Final = frozenset(_TEMPLATES)

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_HTML: Final = b"<html><body><h1>scripted: no JSON here</h1></body></html>\n"


def response(path: str, marker: bytes, model: bytes, answer: Answer) -> bytes:
    """Head and body. `marker` is JSON string content, `model` a whole JSON token."""
    if answer.fault is Fault.NOT_HTTP:
        return b"ICY 200 nonsense\r\n\r\n"
    body, content_type = _body(path, marker, model, answer)
    return packed(answer, body, content_type)


def packed(answer: Answer, body: bytes, content_type: str) -> bytes:
    """The body under a head that announces it as the answer asks."""
    head = [
        f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Scripted')}",
        f"content-type: {content_type}",
    ]
    if answer.retry_after is not None:
        head.append(f"retry-after: {answer.retry_after}")
    if answer.chunked:
        head.append("transfer-encoding: chunked")
        body = _chunks(body)
    else:
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def _body(path: str, marker: bytes, model: bytes, answer: Answer) -> tuple[bytes, str]:
    if answer.fault is Fault.NOT_JSON:
        return _HTML, "text/html"
    if answer.body is not None:
        return answer.body.encode(), answer.content_type
    if answer.status >= 300:
        return envelope(answer.status, answer.code), answer.content_type
    return good(path, marker, model, answer), answer.content_type


def good(path: str, marker: bytes, model: bytes, answer: Answer) -> bytes:
    """The body of a good answer. `marker` is JSON string content, `model` a whole JSON token."""
    usage = _USAGES[path]
    text = marker.ljust(answer.text_bytes, b"y")
    if answer.fault is Fault.WRONG_USAGE:
        usage = b'"plenty"'
    if answer.fault is Fault.INVALID_UTF8:
        text += b"\xff"
    body = _TEMPLATES[path] % (model, text, usage)
    if answer.fault is Fault.PRETTY:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False).encode()
    return body


def envelope(status: int, code: str | None) -> bytes:
    """The API's error body."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    error = {"message": f"scripted {status}", "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}).encode()


def catalogue(models: tuple[str, ...]) -> bytes:
    """The body of GET /v1/models."""
    listed = [
        {"id": model, "object": "model", "created": 1750000000, "owned_by": "scripted"}
        for model in models
    ]
    return json.dumps({"object": "list", "data": listed}).encode()


def metrics(running: int) -> bytes:
    """The body of GET /metrics, as vLLM's, with so many requests running."""
    return (
        b"# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{engine="0",model_name="test-model"} %b\n'
        b'vllm:num_requests_waiting{engine="0",model_name="test-model"} 0.0\n'
    ) % str(float(running)).encode()


def _chunks(body: bytes) -> bytes:
    # Two chunks, so that the seam is inside the body.
    halves = filter(None, (body[: len(body) // 2], body[len(body) // 2 :]))
    return b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
