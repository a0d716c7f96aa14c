#!/usr/bin/env bash
# RefCOCO, RefCOCO+ and RefCOCOg on all GPUs: bash scripts/eval/refcoco.sh --model-path MODEL [flags of python -m llava_sp.eval]
exec bash "$(dirname "$0")/benchmark.sh" refcoco,refcoco+,refcocog "$@"
