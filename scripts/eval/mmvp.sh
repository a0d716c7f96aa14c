#!/usr/bin/env bash
# MMVP on all GPUs: bash scripts/eval/mmvp.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" mmvp "$@"
