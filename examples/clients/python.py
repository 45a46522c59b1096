"""Run a batch, cancel it when something is done, keep both files: the official Python client.

python python.py requests.jsonl
"""

import sys
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY

with Path(sys.argv[1]).open("rb") as requests:
    file = client.files.create(file=requests, purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
print("created", batch.id)

while batch.status == "validating" or (
    batch.status == "in_progress" and batch.request_counts.completed == 0
):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)

if batch.status == "in_progress":
    batch = client.batches.cancel(batch.id)
while batch.status in ("finalizing", "cancelling"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)

counts = batch.request_counts
print(f"{batch.status}: {counts.completed} of {counts.total} completed, {counts.failed} failed")
if batch.output_file_id:
    client.files.content(batch.output_file_id).write_to_file("output.jsonl")
if batch.error_file_id:
    client.files.content(batch.error_file_id).write_to_file("error.jsonl")
client.close()
