#!/usr/bin/env bash
# TextVQA on all GPUs: bash scripts/eval/textvqa.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" textvqa "$@"
