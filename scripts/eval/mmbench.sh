#!/usr/bin/env bash
# MMBench dev on all GPUs: bash scripts/eval/mmbench.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" mmbench "$@"
