#!/usr/bin/env bash
# ScienceQA on all GPUs: bash scripts/eval/sqa.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" scienceqa "$@"
