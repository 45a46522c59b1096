"""`/openapi.json` and `/docs`, the framework's page over it.

The page is Swagger UI from an installed package, never from a CDN: a script from elsewhere would
run on this server's origin, where it could use whatever key is typed into the page and, as long as
there are no keys, everything (decision 0011). The policy of the page has the browser enforce that.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

from batchline.api.openapi import document
from batchline.api.request import answer
from batchline.api.schemas import Limits
from batchline.api.services import services

SCRIPT: Final = "swagger-ui-bundle.js"
STYLE: Final = "swagger-ui.css"

_INLINE: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_ASSETS: Final = files("fastapi_offline") / "static"

router = APIRouter()


@router.get("/openapi.json", response_model=None)
async def openapi(request: Request) -> Response:
    parts = services(request)
    limits = Limits(
        windows=list(parts.dry_run.settings.windows),
        max_upload_bytes=parts.uploads.limits.max_bytes,
    )
    return answer(document(limits))


@router.get("/docs", response_model=None)
async def page() -> Response:
    html = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Batchline",
        swagger_js_url=f"/docs/{SCRIPT}",
        swagger_css_url=f"/docs/{STYLE}",
        swagger_favicon_url="data:,",  # none; by default a picture of somebody else's site
        swagger_ui_parameters={"validatorUrl": None},  # by default the document is sent to one
    )
    html.headers["content-security-policy"] = policy(bytes(html.body))
    return html


# Not `async`: the framework then reads the file on a thread.
@router.get(f"/docs/{SCRIPT}", response_model=None)
def script() -> Response:
    return Response((_ASSETS / SCRIPT).read_bytes(), media_type="text/javascript")


@router.get(f"/docs/{STYLE}", response_model=None)
def style() -> Response:
    return Response((_ASSETS / STYLE).read_bytes(), media_type="text/css")


def policy(html: bytes) -> str:
    """The Content-Security-Policy of a page: its own inline scripts, and nothing from elsewhere."""
    inline = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
        for text in _INLINE.findall(html)
    ]
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' {' '.join(inline)}",
            "style-src 'self' 'unsafe-inline'",  # the page makes its styles as it goes
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
