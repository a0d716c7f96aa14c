#!/usr/bin/env bash
# SEED-Bench (image) on all GPUs: bash scripts/eval/seed.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" seed "$@"
