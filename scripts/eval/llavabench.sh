#!/usr/bin/env bash
# LLaVA-Bench (in the Wild), scored by a judge model, on all GPUs: bash scripts/eval/llavabench.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" llava_bench "$@"
