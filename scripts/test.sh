#!/usr/bin/env bash
# All checks and tests. Arguments go to pytest:
#   bash scripts/test.sh
#   bash scripts/test.sh tests/model -k generates
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# One thread a process: the tests run side by side. No test needs the network.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== import layers"
lint-imports
echo "== pytest"
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" "$@"
