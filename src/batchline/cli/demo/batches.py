"""What the demo asks of the Batch API, in the terms of the official client.

Owns the shape of the input file and the few calls that are made more than once. Imports `openai`,
so it is imported only when that is known to be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import openai
from openai.types import Batch

from batchline.cli.demo.accounting import Counts, Mismatch
from batchline.cli.demo.docstrings import Docstring

MODEL: Final = "all-MiniLM-L6-v2"
ENDPOINT: Final = "/v1/embeddings"
TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})


def connect(server: str) -> openai.OpenAI:
    """The official client of a server on loopback; proxies of the environment are ignored."""
    return openai.OpenAI(
        base_url=f"{server}/v1",
        api_key="not-needed",
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def input_file_of(docstrings: Sequence[Docstring]) -> bytes:
    """The JSONL of one batch: a line per docstring, with its qualified name as `custom_id`."""
    lines = (
        {
            "custom_id": one.name,
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": MODEL, "input": one.text},
        }
        for one in docstrings
    )
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def create(client: openai.OpenAI, input_file_id: str) -> Batch:
    """A new batch over an uploaded file."""
    return client.batches.create(
        input_file_id=input_file_id, endpoint=ENDPOINT, completion_window="24h"
    )


def counts_of(batch: Batch) -> Counts:
    """The batch's `request_counts`, which every batch has.

    Raises:
        Mismatch: it has none.
    """
    counts = batch.request_counts
    if counts is None:
        raise Mismatch(f"{batch.id} has no request_counts")
    return Counts(total=counts.total, completed=counts.completed, failed=counts.failed)


def problems_of(batch: Batch) -> str:
    """Why a batch failed, as far as it says so: its first three problems on one line."""
    problems = (batch.errors.data if batch.errors else None) or []
    return "; ".join(f"line {one.line}: {one.message}" for one in problems[:3]) or "no reason given"
