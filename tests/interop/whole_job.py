"""The whole job with the official Python client, newest or 1.x: a JSON line for each step.

    python whole_job.py INPUT.jsonl CANCEL_AT FAILED_BATCH_ID

Uploads, creates, lists every batch, polls until CANCEL_AT lines are done, cancels, polls to the
end, downloads both files into the working directory, and tries to cancel a batch that has failed.
The Node and the Go program beside it print the same lines.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import openai

POLL_S = 0.05


def tell(step: str, **seen: object) -> None:
    print(json.dumps({"step": step, **seen}), flush=True)


def main() -> None:
    path, cancel_at, failed_batch_id = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    client = openai.OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY

    with path.open("rb") as content:
        file = client.files.create(file=content, purpose="batch")
    tell("uploaded", filename=file.filename, bytes=file.bytes, purpose=file.purpose)
    file = client.files.wait_for_processing(file.id)
    tell("processed", id=file.id, status=file.status)

    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    tell("created", id=batch.id, status=batch.status, endpoint=batch.endpoint)
    tell("listed", ids=[one.id for one in client.batches.list(limit=100)])

    while (counts := batch.request_counts) is None or counts.completed < cancel_at:
        time.sleep(POLL_S)
        batch = client.batches.retrieve(batch.id)
    tell("running", status=batch.status, model=batch.model, total=counts.total)
    batch = client.batches.cancel(batch.id)
    tell("cancelling", id=batch.id, status=batch.status)
    while batch.status == "cancelling":
        time.sleep(POLL_S)
        batch = client.batches.retrieve(batch.id)
    tell("ended", status=batch.status)

    assert batch.output_file_id
    assert batch.error_file_id
    Path("output.jsonl").write_bytes(client.files.content(batch.output_file_id).content)
    Path("error.jsonl").write_bytes(client.files.content(batch.error_file_id).content)

    try:
        client.batches.cancel(failed_batch_id)
    except openai.APIStatusError as refusal:
        tell(
            "refused",
            status=refusal.status_code,
            code=refusal.code,
            type=refusal.type,
            message=refusal.body["message"] if isinstance(refusal.body, dict) else None,
        )
    client.close()


if __name__ == "__main__":
    main()
