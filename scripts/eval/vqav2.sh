#!/usr/bin/env bash
# VQAv2 test-dev, to be scored by its server, on all GPUs: bash scripts/eval/vqav2.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" vqav2 "$@"
