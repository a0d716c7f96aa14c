#!/usr/bin/env bash
# POPE on all GPUs: bash scripts/eval/pope.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" pope "$@"
