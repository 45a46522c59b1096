"""The server that the environment names."""

from __future__ import annotations

from batchline.cli.client.api import Api
from batchline.config.loading import api_settings


def api() -> Api:
    """Nothing is sent yet.

    Raises:
        ConfigError: `OPENAI_BASE_URL` is no base URL, or `OPENAI_API_KEY` cannot be sent.
    """
    return Api(api_settings())
