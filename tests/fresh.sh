#!/usr/bin/env bash
# Both README commands from a clone, in an environment with nothing but Python, make and git:
# an empty HOME, no caches, no virtual environment. `bash tests/fresh.sh demo` runs only that one.
set -euo pipefail
here=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir "$place/home" "$place/bin"
python=$(python3 -c 'import sys; print(sys.executable)')
ln -s "$python" "$place/bin/python3"
for tool in make git bash sh; do ln -s "$(command -v $tool)" "$place/bin/$tool"; done
# Where packages come from is the machine's business, not the environment that is under test.
passed=$(env | grep -E '^(PIP_[A-Z_]*|SSL_[A-Z_]*|REQUESTS_CA_BUNDLE|[a-zA-Z]*_proxy|CI)=' || true)
mapfile -t keep <<<"$passed"
git clone --quiet "$here" "$place/batchline"
cd "$place/batchline"
clean() {
  env -i "${keep[@]}" HOME="$place/home" PATH="$place/bin:/usr/bin:/bin:/usr/sbin:/sbin" LANG=C.UTF-8 \
    PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 "$@"
}
for target in "${@:-demo test}"; do
  for one in $target; do
    echo "== make $one (from a clone, in an empty environment)"
    SECONDS=0
    clean make "$one"
    echo "== make $one took ${SECONDS} s"
  done
done
