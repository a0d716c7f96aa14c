#!/usr/bin/env bash
# Answers and scores benchmarks on all GPUs; CUDA_VISIBLE_DEVICES chooses among them. The other scripts here name theirs:
#   bash scripts/eval/pope.sh --model-path MODEL
#   bash scripts/eval/benchmark.sh pope,mme,gqa --model-path MODEL --data-root playground/data/eval --output results/mine
#   bash scripts/eval/benchmark.sh list
# A run that was interrupted goes on where it ended. All flags: python -m llava_sp.eval --help
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -f .venv/bin/activate ] && source .venv/bin/activate
exec python -m llava_sp.eval --benchmark "$@"
