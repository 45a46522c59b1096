"""Validation of content that a test made up, with the service's limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from batchline.domain.model import Endpoint
from batchline.service.validation import ValidationJob

MIB: Final = 1024 * 1024


def job_for(folder: Path, content: bytes, **changes: Any) -> ValidationJob:
    source = folder / "input.jsonl"
    source.write_bytes(content)
    job = ValidationJob(
        input_path=str(source),
        input_bytes=len(content),
        plan_path=str(folder / "plan"),
        endpoint=Endpoint.CHAT_COMPLETIONS,
        max_file_bytes=209_715_200,
        max_lines=50_000,
        max_line_bytes=64 * MIB,
    )
    return replace(job, **changes)
