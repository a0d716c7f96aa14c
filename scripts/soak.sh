#!/usr/bin/env bash
# The long form of tests/reliability: every random fault so many times, a kill at every file event, more fuzzing.
#   bash scripts/soak.sh                 50 of each random fault; under two hours on two cores
#   bash scripts/soak.sh 10 -k crashes   10 of each; further arguments go to pytest
# It ends with counts: faults injected, survived, runs that ended with the bits of an undisturbed one, cases fuzzed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export SOAK=${1:-50} FUZZ_CASES=${FUZZ_CASES:-200000}
# No bound on a test, for here one may take an hour.
exec python -m pytest -o faulthandler_timeout=0 --numprocesses "${TEST_PROCESSES:-2}" --durations 10 tests/reliability \
    "${@:2}"
