#!/usr/bin/env bash
# Measures a machine with one GPU, in one command of at most 8 minutes; accelerator.py documents the parts and flags.
#
#   benchmarks/accelerator.sh --out=RESULTS.jsonl
#   benchmarks/accelerator.sh --rehearse           # everything at tiny sizes, on the CPU
#
# If .gpu/env exists in the repository root, it is sourced first; it may set PYTHONPATH, TFDS_DATA_DIR, …
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -f .gpu/env ]; then
  # shellcheck disable=SC1091
  source .gpu/env
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/accelerator.py "$@"
