#!/usr/bin/env bash
# MMBench-CN dev on all GPUs: bash scripts/eval/mmbench_cn.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" mmbench_cn "$@"
