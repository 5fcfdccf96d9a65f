#!/usr/bin/env bash
# What an accelerator has to show, in one command of at most 8 minutes; see accelerator.py for the parts and the flags.
#
#   benchmarks/accelerator.sh --out=RESULTS.jsonl
#   benchmarks/accelerator.sh --rehearse           # everything, tiny, on the CPU
#
# Where .gpu/env lies in the project's root, it is sourced first: it sets PYTHONPATH, TFDS_DATA_DIR and the like.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -f .gpu/env ]; then
  # shellcheck disable=SC1091
  source .gpu/env
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/accelerator.py "$@"
