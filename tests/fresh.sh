#!/usr/bin/env bash
# Both README commands from a clone of HEAD, as on a machine that has never seen Batchline: no
# environment but a PATH of exactly the programs that are needed, an empty HOME, no caches.
#
#   bash tests/fresh.sh              make demo, then make test
#   bash tests/fresh.sh interop      any other target
#
# Fails when a command does, and when something that it started still runs afterwards.
set -euo pipefail

here=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
place=$(cd "$(mktemp -d)" && pwd -P)
[ $# -gt 0 ] || set -- demo test

# Every process of ours has this in its environment, and no other process has.
mark="HOME=$place/home"

left_running() {
  local entry
  for entry in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$entry/environ" | grep -qxF -- "$mark"; } 2>/dev/null; then
      echo "${entry#/proc/}"
    fi
  done
}

clean_up() {
  local pid
  for pid in $(left_running); do kill -9 "$pid" 2>/dev/null || true; done
  rm -rf "$place"
}
trap clean_up EXIT

# -- the environment ------------------------------------------------------------------------------

# PostgreSQL's tests run as another user when they run as root; that user has to get through.
mkdir "$place/home" "$place/bin" "$place/tmp"
chmod 711 "$place"
chmod 1777 "$place/tmp"

# A virtual environment must not be made from another one, nor from a version manager's shim.
ln -s "$(python3 -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')" \
  "$place/bin/python3"
needed=(make git sh bash cat rm mkdir touch)
wished=(strace mount umount initdb pg_config) # tests that need these are skipped without them
wished+=(cp sleep curl node npm go)            # `make interop` needs these
for program in "${needed[@]}" "${wished[@]}"; do
  if found=$(command -v "$program"); then
    ln -s "$found" "$place/bin/$program"
  elif [[ " ${needed[*]} " == *" $program "* ]]; then
    echo "this needs $program" >&2
    exit 2
  fi
done

# Where packages come from, and through which proxy, is the machine's business and not under test.
keep=()
for name in $(compgen -e); do
  case $name in
    PIP_* | npm_config_* | NPM_CONFIG_* | GOPROXY | GOSUMDB) keep+=("$name=${!name}") ;;
    SSL_* | REQUESTS_CA_BUNDLE | NODE_EXTRA_CA_CERTS | *_proxy | *_PROXY | CI) keep+=("$name=${!name}") ;;
  esac
done
if [ -z "${PIP_CONFIG_FILE:-}" ]; then
  for file in "$HOME/.pip/pip.conf" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"; do
    if [ -f "$file" ]; then keep+=("PIP_CONFIG_FILE=$file"); fi
  done
fi

clean() {
  env -i ${keep[@]+"${keep[@]}"} "$mark" PATH="$place/bin" TMPDIR="$place/tmp" LANG=C.UTF-8 \
    PIP_NO_CACHE_DIR=1 GOFLAGS=-modcacherw "$@" # Go's module cache could not be removed otherwise
}

# -- the commands ---------------------------------------------------------------------------------

git clone --quiet "$here" "$place/batchline"
cd "$place/batchline"
echo "== a clone of $(git log -1 --format='%h %s')"
if [ -n "$(git -C "$here" status --porcelain)" ]; then
  echo "== what is not committed is not in it"
fi

status=0
for target in "$@"; do
  echo "== make $target"
  SECONDS=0
  clean make "$target" || status=$?
  echo "== make $target took $SECONDS s, exit code $status"
  [ "$status" -eq 0 ] || exit "$status"
done

# A process that was told to end may take a moment to do so.
for _ in $(seq 50); do
  left=$(left_running)
  [ -n "$left" ] || break
  sleep 0.1
done
if [ -n "$left" ]; then
  echo "== still running:" >&2
  for pid in $left; do tr '\0' ' ' <"/proc/$pid/cmdline" >&2 && echo >&2; done
  exit 1
fi
echo "== nothing is left running"
