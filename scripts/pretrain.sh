#!/usr/bin/env bash
# Stage 1 (projector and spatial modules) at 7B. Flags pass through and win over configs/train/pretrain.yaml:
#   bash scripts/pretrain.sh --per_device_train_batch_size 8 --output_dir checkpoints/mine
#   bash scripts/pretrain.sh configs/ablations/tokens_12.yaml --dry_run
# All GPUs of this machine are used; --nproc_per_node N takes fewer, see 'python -m llava_sp.train.launch --help'.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv/bin/activate ] && source .venv/bin/activate
exec python -m llava_sp.train.launch configs/train/pretrain.yaml "$@"
