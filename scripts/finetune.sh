#!/usr/bin/env bash
# Stage 2 in full at 7B, from stage 1's result. Flags pass through and win over configs/train/finetune.yaml:
#   bash scripts/finetune.sh --per_device_train_batch_size 8 --output_dir checkpoints/mine
#   bash scripts/finetune.sh --init_from checkpoints/pretrain-pooling --dry_run
# The checkpoint to start from says which LLM, vision tower and variant it is.
# All GPUs of this machine are used; --nproc_per_node N takes fewer, see 'python -m llava_sp.train.launch --help'.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv/bin/activate ] && source .venv/bin/activate
exec python -m llava_sp.train.launch configs/train/finetune.yaml "$@"
