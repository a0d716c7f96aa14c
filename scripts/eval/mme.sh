#!/usr/bin/env bash
# MME on all GPUs: bash scripts/eval/mme.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" mme "$@"
