#!/usr/bin/env bash
# Run a batch, cancel it when something is done, keep both files: curl, and Python to read JSON.
#
#     bash curl.sh requests.jsonl
set -euo pipefail
: "${OPENAI_BASE_URL:?such as http://127.0.0.1:8484/v1}"

api() { # api PATH [curl options]
  curl --silent --show-error --fail-with-body \
    -H "Authorization: Bearer ${OPENAI_API_KEY:-any}" "$OPENAI_BASE_URL/$1" "${@:2}"
}
get() { # get NAME, from the JSON on standard input; nothing for null
  python3 -c 'import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."): value = value[name]
print("" if value is None else value)' "$1"
}

file=$(api files -F purpose=batch -F "file=@$1" | get id)
batch=$(api batches -H 'Content-Type: application/json' -d '{
  "input_file_id": "'"$file"'", "endpoint": "/v1/chat/completions", "completion_window": "24h"
}')
id=$(get id <<<"$batch")
echo "created $id"

look() { batch=$(api "batches/$id") && status=$(get status <<<"$batch"); }
look
while [ "$status" = validating ] ||
  { [ "$status" = in_progress ] && [ "$(get request_counts.completed <<<"$batch")" = 0 ]; }; do
  sleep 0.5
  look
done

if [ "$status" = in_progress ]; then api "batches/$id/cancel" -X POST >/dev/null && look; fi
while [ "$status" = finalizing ] || [ "$status" = cancelling ]; do
  sleep 0.5
  look
done

counts() { get "request_counts.$1" <<<"$batch"; }
echo "$status: $(counts completed) of $(counts total) completed, $(counts failed) failed"
output=$(get output_file_id <<<"$batch")
errors=$(get error_file_id <<<"$batch")
if [ -n "$output" ]; then api "files/$output/content" -o output.jsonl; fi
if [ -n "$errors" ]; then api "files/$errors/content" -o error.jsonl; fi
