// The whole job with the official Node client; see whole_job.py beside this folder.
//
//     node whole_job.mjs INPUT.jsonl CANCEL_AT FAILED_BATCH_ID

import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";

const POLL_MS = 50;
const [path, cancelAt, failedBatchId] = process.argv.slice(2);
const client = new OpenAI(); // OPENAI_BASE_URL and OPENAI_API_KEY

function tell(step, seen) {
  console.log(JSON.stringify({ step, ...seen }));
}

async function download(fileId, name) {
  const answer = await client.files.content(fileId);
  fs.writeFileSync(name, Buffer.from(await answer.arrayBuffer()));
}

let file = await client.files.create({ file: fs.createReadStream(path), purpose: "batch" });
tell("uploaded", { filename: file.filename, bytes: file.bytes, purpose: file.purpose });
file = await client.files.waitForProcessing(file.id);
tell("processed", { id: file.id, status: file.status });

let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
tell("created", { id: batch.id, status: batch.status, endpoint: batch.endpoint });
const ids = [];
for await (const one of client.batches.list({ limit: 100 })) ids.push(one.id);
tell("listed", { ids });

while (batch.request_counts.completed < Number(cancelAt)) {
  await sleep(POLL_MS);
  batch = await client.batches.retrieve(batch.id);
}
tell("running", { status: batch.status, model: batch.model, total: batch.request_counts.total });
batch = await client.batches.cancel(batch.id);
tell("cancelling", { id: batch.id, status: batch.status });
while (batch.status === "cancelling") {
  await sleep(POLL_MS);
  batch = await client.batches.retrieve(batch.id);
}
tell("ended", { status: batch.status });

await download(batch.output_file_id, "output.jsonl");
await download(batch.error_file_id, "error.jsonl");

try {
  await client.batches.cancel(failedBatchId);
} catch (refusal) {
  if (!(refusal instanceof OpenAI.APIError)) throw refusal;
  const { status, code, type, error } = refusal;
  tell("refused", { status, code, type, message: error.message });
}
