#!/usr/bin/env bash
# VizWiz test, to be scored by its server, on all GPUs: bash scripts/eval/vizwiz.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" vizwiz "$@"
