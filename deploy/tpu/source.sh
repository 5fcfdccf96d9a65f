# shellcheck shell=bash disable=SC2154,SC2034 # the options are variables of tpu_setup.sh
# Which code the workers get: a repository that they can clone, and a commit that it has.

git_here() { git -C "$here" "$@"; }

# Fails for a repository that no other machine can clone; warns of one that needs a key.
check_repository() {
  case "$1" in
    "") fail "this checkout has no remote 'origin' that workers could clone; push it somewhere, or give --repository=URL" ;;
    file://* | /* | ./* | ../* | "~"* | [A-Za-z]:[\\/]*) fail "workers can't clone $1, which is on this machine; push it somewhere, and give --repository=https://…" ;;
    https://* | http://* | git://*) ;;
    ssh://* | *@*:*) check_key "$1" ;;
    *) fail "workers can't clone $1: it is not a URL; give --repository=https://…" ;;
  esac
}

# A key on this machine is not on the workers; only they know whether they have one.
check_key() {
  local https
  https=$(sed -E 's#^(ssh://)?([^@/]+@)?([^:/]+)(:[0-9]+)?[:/]#https://\3/#' <<<"$1")
  warn "workers clone $1 with a key of their own, and can't without one; if it is public, give --repository=$https"
}

# choose_source: sets `repository` and `ref`, and warns of what the workers will not get.
choose_source() {
  local given=$repository
  [ -n "$given" ] || repository=$(git_here config --get remote.origin.url || true)
  check_repository "$repository"
  if [ -n "$given" ]; then
    ref=${ref:-origin/HEAD}
    return
  fi
  [ -z "$(git_here status --porcelain --untracked-files=no)" ] || warn "uncommitted changes in $here do not reach the workers"
  if [ -n "$ref" ]; then choose_given; else choose_pushed; fi
}

is_pushed() { [ -n "$(git_here branch --remotes --contains "$1" 2>/dev/null)" ]; }
commit_of() { git_here rev-parse --verify --quiet "$1^{commit}"; }

# --ref: as a branch of origin, else as a commit or tag of this checkout, else as the workers understand it.
choose_given() {
  local commit
  commit=$(commit_of "refs/remotes/origin/$ref" || commit_of "$ref" || true)
  [ -n "$commit" ] || return 0
  is_pushed "$commit" || warn "--ref=$ref is not on a branch of origin, as far as this checkout knows: push it, or workers can't get it"
  ref=$commit
}

# Without --ref: HEAD if origin has it, else its newest ancestor that origin has.
choose_pushed() {
  local commit count=0
  for commit in $(git_here rev-list --first-parent --max-count=1000 HEAD); do
    if is_pushed "$commit"; then
      [ "$count" = 0 ] || warn "$count commits are not pushed: workers get $(git_here log -1 --format='%h (%s)' "$commit")"
      ref=$commit
      return
    fi
    count=$((count + 1))
  done
  fail "origin has no commit of this branch, as far as this checkout knows; push it, or name one with --ref"
}

# A shell command that makes or updates the clone, and puts it on `ref`. It asks for no password.
checkout_command() {
  local url="" at=""
  url=$(quoted "$repository")
  at=$(quoted "$ref")
  say "export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND='ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new'; [ -d research/.git ] || git clone $url research && cd research && git remote set-url origin $url && git fetch --tags origin && git -c advice.detachedHead=false checkout --detach $at"
}
