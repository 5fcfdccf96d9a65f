# shellcheck shell=bash disable=SC2154 # the options are variables of tpu_setup.sh
# The slice: its type, its state, creating and deleting it.

# A type is VERSION-NUMBER. The number counts TensorCores up to v4 and for v5p, two a chip, and chips for v5e and v6e.
# JAX has a device for each TensorCore of v2 and v3, and for each chip of the others.
# (cloud.google.com/tpu/docs, pages v2 to v6e, read on 2026-11-28)
generation() { say "${1%-*}"; }

chips() {
  local number=${1##*-}
  case "$(generation "$1")" in
    v2 | v3 | v4 | v5p) say $((number / 2)) ;;
    v5litepod | v6e) say "$number" ;;
  esac
}

devices() {
  case "$(generation "$1")" in
    v2 | v3) say "${1##*-}" ;;
    *) chips "$1" ;;
  esac
}

# Google's image for JAX (cloud.google.com/tpu/docs/runtimes, read on 2026-11-28).
image_of() {
  case "$(generation "$1")" in
    v2 | v3 | v4) say "tpu-ubuntu2204-base" ;;
    v5litepod) say "v2-alpha-tpuv5-lite" ;;
    v5p) say "v2-alpha-tpuv5" ;;
    v6e) say "v2-alpha-tpuv6e" ;;
  esac
}

check_type() {
  [ -n "$type" ] || fail "--accelerator-type is missing, such as v6e-8; 'gcloud compute tpus accelerator-types list --zone=$zone' shows the zone's"
  [[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
    fail "--accelerator-type is '$type'; Cloud TPU VMs are v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N (TPU7x is for deploy/jobset)"
  [ -z "$price" ] || [[ $price =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--price-per-chip-hour is '$price'; it must be a number, such as 1.5"
}

say_cost() {
  local count
  count=$(chips "$type")
  if [ -n "$price" ]; then
    say "$name: $count chips x $price = $(awk "BEGIN { printf \"%.2f\", $count * $price }") an hour, from READY until it is deleted"
  else
    say "$name: $count chips are billed from READY until it is deleted; --price-per-chip-hour says what that costs"
  fi
}

# described KIND FORMAT: what gcloud says of the tpu-vm or the queued-resources; "absent" if there is none.
described() {
  local errors output status=0
  errors=$(mktemp)
  where
  output=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" "--format=$2" 2>"$errors") || status=$?
  if [ "$status" != 0 ] && ! grep -q "NOT_FOUND: Resource" "$errors"; then
    cat "$errors" >&2
    rm -f "$errors"
    fail "gcloud can't say whether $name exists (see above); nothing was changed"
  fi
  rm -f "$errors"
  if [ "$status" = 0 ]; then say "$output"; else say "absent"; fi
}

# look: sets `node`, the state of the slice, `queue`, that of its queued resource where it matters, and `type` if it is
# not given.
# A dry run asks nobody: there is no slice yet when it is created, and else it is READY.
node="" queue="" found=""
look() {
  local both
  if [ "$dry_run" = 1 ]; then
    node=READY queue=absent
    [ "$command" != create ] || node=absent
    [ "$queued$command" != 1delete ] || queue=ACTIVE
    return
  fi
  both=$(described tpu-vm 'value(state,acceleratorType)')
  read -r node found <<<"$both"
  queue=absent
  [[ $node = READY && " create status delete " != *" $command "* ]] || queue=$(described queued-resources 'value(state.state)')
  [ -n "$type" ] || type=$found
}

described_slice() {
  local text="$name does not exist"
  [ "$node" = absent ] || text="$name is $node${found:+ ($found)}"
  [ "$queue" = absent ] || text+="; its queued resource is $queue"
  say "$text"
}

is_gone() { [[ " PREEMPTED TERMINATED " == *" $node "* ]] || [[ $node = absent && " SUSPENDED FAILED " == *" $queue "* ]]; }
is_going() { [[ $node = DELETING || " DELETING SUSPENDING " == *" $queue "* ]]; }

# Fails unless commands can be run on the workers.
require_ready() {
  [ "$local" = 0 ] || return 0
  look
  [ "$node" != READY ] || return 0
  if is_gone; then fail "$(described_slice); create --yes makes it again"; fi
  [ "$node$queue" != absentabsent ] || fail "$name does not exist in $zone; create makes it"
  fail "$(described_slice); try again when it is READY"
}

create() {
  check_type
  look
  if is_gone; then
    [ "$yes" = 1 ] || fail "$(described_slice); with --yes, what is left of it is deleted and it is created again"
    remove
  elif is_going; then
    fail "$(described_slice); run create again when it is gone"
  elif [ "$node" = STOPPED ]; then
    say_cost
    where
    execute gcloud compute tpus tpu-vm start "$name" "${place[@]}"
    return
  elif [ "$node$queue" != absentabsent ]; then
    [ -z "$found" ] || [ "$found" = "$type" ] || fail "$name exists as $found, not $type; delete it, or take another --name"
    say "$(described_slice): nothing to create"
    return
  fi
  say_cost
  if [ "$queued" = 1 ]; then create_queued; else create_now; fi
}

create_now() {
  local options=("--accelerator-type=$type" "--version=${image:-$(image_of "$type")}")
  [ "$spot" = 0 ] || options+=(--spot)
  where
  with_advice gcloud compute tpus tpu-vm create "$name" "${place[@]}" "${options[@]}"
}

create_queued() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=${image:-$(image_of "$type")}")
  [ "$spot" = 0 ] || options+=(--spot)
  where
  with_advice gcloud compute tpus queued-resources create "$name" "${place[@]}" "${options[@]}"
  say_done "$name waits in line; status says when it is READY"
}

# Runs a command that creates something; where it fails, its errors are followed by what helps.
with_advice() {
  local errors advice="see above"
  errors=$(mktemp)
  if { execute "$@" 2>&1 1>&3 | tee "$errors" >&2; } 3>&1; then
    rm -f "$errors"
    return
  fi
  if grep -qi "quota" "$errors"; then
    advice="the quota of the project in $zone is used up or zero: ask for more at console.cloud.google.com/iam-admin/quotas, or take another --zone"
  elif grep -qi "capacity\|RESOURCE_EXHAUSTED" "$errors"; then
    advice="the zone has none to give now: --queued waits for one, --spot or another --zone may have one"
  elif grep -q "ALREADY_EXISTS" "$errors"; then
    advice="somebody has created it meanwhile; run create again"
  fi
  rm -f "$errors"
  fail "$name was not created: $advice"
}

# Deletes the slice; a queued resource takes its slice with it.
remove() {
  where
  if [ "$queue" != absent ]; then
    execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

delete() {
  look
  if [ "$node$queue" = absentabsent ]; then
    say "$name does not exist in $zone: nothing to delete"
    return
  fi
  [ "$yes" = 1 ] || [ "$dry_run" = 1 ] || fail "$(described_slice); with --yes it is deleted, with its disks and any training that is running"
  remove || fail "$name may not be deleted, and is billed until it is: see above, then run delete again"
  say_done "$name is deleted"
}
