#!/usr/bin/env bash
# What tpu_setup.sh does on a worker, in this checkout: worker.sh install | devices [COUNT] | ready WORKDIR |
# start FLAGS... | status | logs LINES | attach LINES | stop YES NOW, where YES and NOW are 0 or 1.
#
# The training is alive while somebody holds the lock: its supervisor, its process and their children do, and the system
# releases it however they end. ~/.research-tpu has the lock, the process id, the exit code and the log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

self="$PWD/deploy/tpu/worker.sh"
python="$PWD/.venv-tpu/bin/python"
state="$HOME/.research-tpu"
log="$state/log"
mkdir -p "$state"

say() { printf '%s: %s\n' "$(hostname)" "$1"; }
fail() {
  printf 'error: %s: %s\n' "$(hostname)" "$1" >&2
  exit 2
}
warn() { printf 'warning: %s: %s\n' "$(hostname)" "$1" >&2; }
now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

alive() { ! flock --nonblock "$state/lock" true; }
process() { cat "$state/pid" 2>/dev/null || true; }
refuse_alive() {
  if alive; then fail "a training is alive (process $(process)): status and logs show it, stop ends it"; fi
}

# --- install ---

# The images' own Python is often older than pyproject.toml's requires-python; JAX 0.11 and later need 3.12.
is_new_enough() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_uv() {
  PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null && return
  say "installing uv"
  curl -LsSf https://astral.sh/uv/install.sh | UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh
  command -v uv >/dev/null || fail "uv can't be installed; put a Python 3.11 or newer on this image, or uv"
}

make_environment() {
  if [ -x "$python" ] && is_new_enough "$python"; then
    say "the environment exists: $("$python" --version)"
  elif is_new_enough python3; then
    say "$(python3 --version) makes the environment"
    python3 -m venv .venv-tpu
  else
    say "$(python3 --version 2>&1) is older than 3.11: uv brings another"
    find_uv
    rm -rf .venv-tpu
    uv venv --seed --python 3.12 .venv-tpu
  fi
}

install_packages() {
  refuse_alive # it would change the code under it
  make_environment
  "$python" -m pip install --quiet --upgrade pip
  "$python" -m pip install --quiet -e '.[tpu]'
}

# Joins the other workers, which must do the same, and compares the number of devices with COUNT, if it is given.
devices() {
  refuse_alive # which has the devices
  "$python" - "${1:-}" <<'PYTHON'
import sys

import jax

try:
    jax.distributed.initialize()
except (RuntimeError, ValueError) as error:
    sys.exit(f"error: the workers can't find each other: {error}")
kind, count, expected = jax.devices()[0], jax.device_count(), sys.argv[1]
print(f"worker {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of {count} x {kind.device_kind}")
if kind.platform != "tpu":
    sys.exit(f"error: JAX sees {kind.platform}, not TPU: something else may hold the devices")
if expected and count != int(expected):
    sys.exit(f"error: JAX sees {count} devices; this type of slice has {expected}")
PYTHON
}

# --- run ---

# The nearest folder of a path that exists.
existing() {
  local folder=$1
  until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
  printf '%s' "$folder"
}

warn_of_lost_disk() {
  [[ $1 != *://* ]] || return 0
  local folder
  folder=$(existing "$1")
  if [ "$(stat -c %d "$folder")" = "$(stat -c %d /)" ] || [ "$(stat -f -c %T "$folder")" = tmpfs ]; then
    warn "--workdir=$1 is on this VM's own disk: it is lost with the VM, and other workers don't see it; use NFS or a bucket"
  fi
}

ready() {
  refuse_alive
  [ -x "$python" ] || fail "nothing is installed; run install first"
  warn_of_lost_disk "$1"
}

# The lock is taken here and passed on to the supervisor, so that of two starts at once one is refused.
start() {
  exec 9>>"$state/lock"
  flock --nonblock 9 || fail "a training is alive (process $(process)): status and logs show it, stop ends it"
  rm -f "$state/pid" "$state/exit" "$state/stopping"
  setsid bash "$self" supervise "$@" </dev/null >>"$log" 2>&1 &
  # Only when it has its own session may this one end.
  until [ -s "$state/pid" ]; do
    kill -0 $! 2>/dev/null || fail "the training did not start: $(last_line)"
    sleep 0.02
  done
  say "started; the log is $log"
}

# In a session of its own, which no lost connection ends.
supervise() {
  trap '' HUP
  local code=0
  printf '== %s research.train' "$(now)"
  printf ' %q' "$@"
  printf '\n'
  PYTHONUNBUFFERED=1 "$python" -m research.train "$@" &
  echo $! >"$state/pid"
  wait $! || code=$?
  echo "$code" >"$state/exit"
  printf '== %s ended with exit code %s\n' "$(now)" "$code"
}

# Progress bars are lines that end with a carriage return.
last_line() { tail -c 2000 "$log" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 || true; }

status() {
  if alive; then
    say "running, process $(process); last line: $(last_line)"
  elif [ -s "$state/exit" ]; then
    say "ended with exit code $(cat "$state/exit")"
  elif [ -s "$state/pid" ]; then
    say "ended without an exit code: killed, or the VM was restarted; run continues it"
  else
    say "no training has been started here"
  fi
}

logs() {
  [ -f "$log" ] || fail "no training has been started here"
  tail -n "$1" "$log"
}

# Follows the log to the end of the training, and has its exit code.
attach() {
  logs "$1"
  if alive; then tail -n 0 -f --pid="$(process)" "$log"; fi
  status
  return "$(cat "$state/exit" 2>/dev/null || echo 0)"
}

stop() {
  alive || { say "no training is alive: nothing to stop"; return 0; }
  local id
  id=$(process)
  [ "$1" = 1 ] || fail "a training is alive (process $id); with --yes it is saved and ended"
  if [ "$2" = 1 ]; then
    kill -KILL "$id" || true
  elif [ ! -e "$state/stopping" ]; then # a second SIGTERM would end it without saving
    touch "$state/stopping"
    kill -TERM "$id" || true
  fi
  flock --timeout 300 "$state/lock" true || fail "it is still saving after 300 s; stop again waits longer, --now ends it without saving"
  say "stopped"
}

command=${1:-}
[ $# = 0 ] || shift
case "$command" in
  install) install_packages ;;
  devices | ready | start | supervise | status | logs | attach | stop) "$command" "$@" ;;
  *) fail "unknown command '$command'" ;;
esac
