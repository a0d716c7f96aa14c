#!/usr/bin/env bash
# MM-Vet, scored by a judge model, on all GPUs: bash scripts/eval/mmvet.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" mmvet "$@"
