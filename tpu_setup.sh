#!/usr/bin/env bash
# Installs this project on every worker of a Cloud TPU VM, checks the devices, and runs a config.
#
#   ./tpu_setup.sh --name=my-tpu --zone=us-central2-b [--project=P] [--config=configs/bert_sst2.py]
#   ./tpu_setup.sh --local          # when logged in on the TPU VM itself
#
# Requires gcloud (except with --local) and an existing TPU VM. --dry-run prints the commands without running them.
set -euo pipefail

name="" zone="" project="" local=0 dry_run=0
config="configs/bert_sst2.py"
repository=$(git -C "$(dirname "$0")" config --get remote.origin.url || true)
folder="research"
workdir=""
venv=".venv-tpu"

usage() {
  cat <<'TEXT'
usage: tpu_setup.sh (--name=TPU --zone=ZONE [--project=PROJECT] | --local) [options]

  --name=TPU          the TPU VM's name; all of its workers are set up
  --zone=ZONE         its zone
  --project=PROJECT   its project (default: gcloud's)
  --local             set up this machine, if it is the TPU VM
  --repository=URL    where the workers clone the code from (default: this checkout's origin)
  --config=FILE       the config to run (default: configs/bert_sst2.py); "" only installs and checks
  --workdir=DIR       the run directory; with several workers on a shared file system (NFS, a mounted bucket)
  --dry-run           print the commands without running them
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

for argument in "$@"; do
  case "$argument" in
    --name=*) name=${argument#*=} ;;
    --zone=*) zone=${argument#*=} ;;
    --project=*) project=${argument#*=} ;;
    --repository=*) repository=${argument#*=} ;;
    --config=*) config=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --local) local=1 ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown argument '$argument'; see --help" ;;
  esac
done

if [ "$local" = 0 ]; then
  [ -n "$name" ] || fail "--name is missing: the name of the TPU VM, or use --local on the VM itself; see --help"
  [ -n "$zone" ] || fail "--zone is missing; 'gcloud compute tpus tpu-vm list --zone=-' shows where $name is"
  [ -n "$repository" ] || fail "--repository is missing: this checkout has no remote 'origin' to clone from"
  [ "$dry_run" = 1 ] || command -v gcloud >/dev/null || fail "gcloud is not installed; it is needed to reach $name"
fi

# Runs a shell command on every worker, or locally.
on_workers() {
  local command=(bash -c "$1")
  if [ "$local" = 0 ]; then
    command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$1")
    [ -z "$project" ] || command+=("--project=$project")
  fi
  printf '+'
  printf ' %q' "${command[@]}"
  printf '\n'
  [ "$dry_run" = 1 ] || "${command[@]}"
}

quote() { printf '%q' "$1"; }

if [ "$local" = 0 ]; then
  echo "== code"
  on_workers "if [ -d $folder/.git ]; then git -C $folder pull --ff-only; else git clone $(quote "$repository") $folder; fi"
  enter="cd $folder && "
else
  enter="cd $(quote "$(cd "$(dirname "$0")" && pwd)") && "
fi

echo "== install"
on_workers "${enter}python3 -m venv $venv && $venv/bin/python -m pip install --upgrade pip && $venv/bin/python -m pip install -e '.[tpu]'"

echo "== devices"
check='import jax; jax.distributed.initialize(); d = jax.devices(); '
check+='assert d[0].platform == "tpu", f"JAX sees {d[0].platform}, not TPU"; '
check+='print(f"worker {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of {len(d)} x {d[0].device_kind}")'
on_workers "${enter}$venv/bin/python -c $(quote "$check")"

if [ -n "$config" ]; then
  echo "== run"
  run="$venv/bin/python -m research.train --distributed --config=$(quote "$config")"
  # Every worker must use the same directory; the time stamp of the default would differ.
  [ -n "$workdir" ] || workdir="runs/$(basename "${config%%.py*}")-tpu"
  on_workers "${enter}${run} --workdir=$(quote "$workdir")"
fi
