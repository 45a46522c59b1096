// Run a batch, cancel it when something is done, keep both files: the official Node client.
//
//     npm install openai && node node.mjs requests.jsonl

import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";

const client = new OpenAI(); // OPENAI_BASE_URL and OPENAI_API_KEY

const file = await client.files.create({
  file: fs.createReadStream(process.argv[2]),
  purpose: "batch",
});
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
console.log("created", batch.id);

while (
  batch.status === "validating" ||
  (batch.status === "in_progress" && batch.request_counts.completed === 0)
) {
  await sleep(500);
  batch = await client.batches.retrieve(batch.id);
}

if (batch.status === "in_progress") batch = await client.batches.cancel(batch.id);
while (batch.status === "finalizing" || batch.status === "cancelling") {
  await sleep(500);
  batch = await client.batches.retrieve(batch.id);
}

const { completed, failed, total } = batch.request_counts;
console.log(`${batch.status}: ${completed} of ${total} completed, ${failed} failed`);
for (const [id, name] of [
  [batch.output_file_id, "output.jsonl"],
  [batch.error_file_id, "error.jsonl"],
]) {
  if (id) fs.writeFileSync(name, await (await client.files.content(id)).text());
}
