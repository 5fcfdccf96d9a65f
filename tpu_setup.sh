#!/usr/bin/env bash
# Creates a Cloud TPU VM slice, installs this project on its workers, and runs a training there; see --help.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/tpu/common.sh
source "$here/deploy/tpu/common.sh"
# shellcheck source=deploy/tpu/slice.sh
source "$here/deploy/tpu/slice.sh"
# shellcheck source=deploy/tpu/source.sh
source "$here/deploy/tpu/source.sh"

usage() {
  cat <<'TEXT'
usage: ./tpu_setup.sh COMMAND (--name=TPU --zone=ZONE | --local) [options] [-- FLAGS of python -m research.train]

commands; each can be repeated, and says when there is nothing to do
  create    create the slice
  install   put the code and its packages on every worker, and check the devices
  run       start a training on every worker; it goes on when the connection is lost
  status    the state of the slice, and of the training on every worker
  logs      the end of a worker's log
  attach    follow a worker's log until the training ends; Ctrl-C leaves the training running
  stop      save the training and end it (--yes)
  delete    delete the slice and what is on its disks (--yes)
After a preemption, create --yes, install and run with the same --workdir continue the training.

where
  --name=TPU              the name of the slice, and of its queued resource
  --zone=ZONE             its zone
  --project=PROJECT       its project (default: gcloud's)
  --local                 this machine is the TPU VM (install, run, status, logs, attach, stop)

create
  --accelerator-type=TYPE such as v6e-8, v5litepod-16, v5p-32
  --version=IMAGE         the VM's image (default: the one Google names for JAX on that type)
  --spot                  cheaper, and may be taken away at any time
  --queued                wait in line for capacity, as a queued resource
  --price-per-chip-hour=X your price, from cloud.google.com/tpu/pricing, to say what the slice costs

install
  --ref=COMMIT            a commit, tag or branch (default: this checkout's newest commit that origin has)
  --repository=URL        where the workers clone from (default: this checkout's origin)

run
  --config=CONFIG         as research.train takes it
  --workdir=DIR           the run directory, which all workers share and which outlives them: NFS or a bucket (required)
  --data_dir=DIR          for --config.data.data_dir
  --weights=SOURCE        for --config.init_from
  -- FLAGS                more flags, such as --config.train.steps=1000

  --worker=N              logs, attach: of which worker (default: 0)
  --lines=N               logs, attach: how many lines (default: 50)
  --now                   stop: without saving
  --yes                   do what deletes or ends something
  --dry-run               print the commands without running them
TEXT
}

command="" name="" zone="" project="" local=0 dry_run=0 yes=0
type="" image="" spot=0 queued=0 price=""
repository="" ref=""
config="" workdir="" data_dir="" weights="" flags=()
worker=0 lines=50 now=0

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --) shift; flags=("$@"); return ;;
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --accelerator-type=*) type=${1#*=} ;;
      --version=*) image=${1#*=} ;;
      --price-per-chip-hour=*) price=${1#*=} ;;
      --repository=*) repository=${1#*=} ;;
      --ref=*) ref=${1#*=} ;;
      --config=*) config=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --data_dir=*) data_dir=${1#*=} ;;
      --weights=*) weights=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --lines=*) lines=${1#*=} ;;
      --local) local=1 ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --now) now=1 ;;
      --yes) yes=1 ;;
      --dry-run) dry_run=1 ;;
      --help | -h) usage; exit 0 ;;
      --config.*) fail "${1%%=*} is a flag of research.train: write it after --" ;;
      -*) fail "unknown argument '$1'; see --help" ;;
      *) [ -z "$command" ] || fail "two commands, '$command' and '$1'; give one"; command=$1 ;;
    esac
    shift
  done
}

check() {
  case "$command" in
    create | delete) [ "$local" = 0 ] || fail "$command needs gcloud: it can't be used with --local" ;;
    install | run | status | logs | attach | stop) ;;
    "") fail "the command is missing: create, install, run, status, logs, attach, stop or delete; see --help" ;;
    *) fail "unknown command '$command'; see --help" ;;
  esac
  is_count "$lines" || fail "--lines is '$lines'; it must be a number"
  is_count "$worker" || fail "--worker is '$worker'; it must be the number of a worker, from 0"
  [ "$command" = run ] || [ ${#flags[@]} = 0 ] || fail "only run takes flags after --"
  [ "$local" = 0 ] || return 0
  [ -n "$name" ] || fail "--name is missing: the name of the slice, or use --local on the VM itself; see --help"
  [ -n "$zone" ] || fail "--zone is missing; 'gcloud compute tpus tpu-vm list --zone=-' shows where $name is"
  [ "$dry_run" = 1 ] || command -v gcloud >/dev/null || fail "gcloud is not installed; it is needed to reach $name"
}

install() {
  require_ready
  if [ "$local" = 0 ]; then
    choose_source
    echo "== code"
    on_workers all "$(checkout_command)" ||
      fail "a worker could not get $ref from $repository (see above): it needs a URL that needs no key, or a key on every worker"
  fi
  echo "== packages"
  ask_workers all install || fail "the installation failed (see above); run install again when it is mended"
  echo "== devices"
  local expected=()
  [ -z "$type" ] || expected=("$(devices "$type")")
  ask_workers all devices ${expected[@]+"${expected[@]}"} || fail "the devices are not what they should be (see above)"
}

run() {
  [ -n "$config$workdir" ] || fail "--config is missing: what to train"
  [ -n "$workdir" ] || fail "--workdir is missing: a folder that all workers share and that outlives them (NFS or a bucket)"
  local train=(--distributed "--workdir=$workdir")
  [ -z "$config" ] || train+=("--config=$config")
  [ -z "$data_dir" ] || train+=("--config.data.data_dir=$data_dir")
  [ -z "$weights" ] || train+=("--config.init_from=$weights")
  require_ready
  # First every worker is asked, so that a refusal starts none.
  ask_workers all ready "$workdir" || fail "nothing was started (see above; install puts the project on the workers)"
  ask_workers all start "${train[@]}" ${flags[@]+"${flags[@]}"} || fail "a worker did not start (see above); stop --yes ends the others"
  say_done "started; it goes on without this connection: status, logs and attach show it, stop ends it"
}

status() {
  if [ "$local" = 0 ]; then
    look
    say "$(described_slice)"
    [ "$node" = READY ] || return 0
  fi
  ask_workers all status
}

logs() {
  require_ready
  ask_workers "$worker" logs "$lines"
}

attach() {
  require_ready
  ssh_flags=(--ssh-flag=-t) # so that Ctrl-C ends what follows the log
  ask_workers "$worker" attach "$lines"
}

stop() {
  if [ "$local" = 0 ]; then
    look
    [ "$node" = READY ] || { say "$(described_slice): nothing to stop"; return 0; }
  fi
  ask_workers all stop "$yes" "$now"
}

parse "$@"
check
"$command"
