#!/usr/bin/env bash
# GQA on all GPUs: bash scripts/eval/gqa.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" gqa "$@"
