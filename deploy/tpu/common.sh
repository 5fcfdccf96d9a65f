# shellcheck shell=bash disable=SC2154 # the options are variables of tpu_setup.sh
# Messages, quoting, and commands on the workers of a slice.

say() { printf '%s\n' "$1"; }
# What has been done; a dry run does nothing.
say_done() { [ "$dry_run" = 1 ] || say "$1"; }
warn() { printf 'warning: %s\n' "$1" >&2; }
fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

is_count() { [[ $1 =~ ^[0-9]+$ ]]; }

# The arguments as a shell reads them back, in quotes only where they need them.
quoted() {
  local each words=()
  for each in "$@"; do
    if [[ $each =~ ^[A-Za-z0-9_./:=@%+,~-]+$ && $each != *=~* && $each != "~"* ]]; then
      words+=("$each")
    elif [[ $each == *\'* && $each != *[\"\$\`\\!]* ]]; then
      words+=("\"$each\"")
    else
      words+=("'${each//\'/\'\\\'\'}'")
    fi
  done
  printf '%s' "${words[*]-}"
}

# Prints a command and, unless this is a dry run, runs it.
execute() {
  say "+ $(quoted "$@")"
  [ "$dry_run" = 1 ] || "$@"
}

# where: the zone and project, as arguments of gcloud.
where() {
  place=("--zone=$zone")
  [ -z "$project" ] || place+=("--project=$project")
}

ssh_flags=()

# on_workers WORKER COMMAND: runs a shell command on a worker, on "all" of them, or with --local here.
on_workers() {
  if [ "$local" = 1 ]; then
    execute bash -c "$2"
    return
  fi
  where
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" ${ssh_flags[@]+"${ssh_flags[@]}"} "--command=$2"
}

# ask_workers WORKER ARGUMENTS...: runs deploy/tpu/worker.sh of the checkout there.
ask_workers() {
  local of=$1 script="research/deploy/tpu/worker.sh"
  shift
  [ "$local" = 0 ] || script="$here/deploy/tpu/worker.sh"
  on_workers "$of" "bash $(quoted "$script" "$@")"
}
