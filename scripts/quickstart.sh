#!/usr/bin/env bash
# The whole recipe on the tiny world: both stages, VQA on held-out questions, a table, samples, loss curves.
#   bash scripts/quickstart.sh                      LLaVA-SP-Cropping
#   bash scripts/quickstart.sh --variant pooling    or none: LLaVA-1.5, the matched baseline
#   bash scripts/quickstart.sh --compare            all three, side by side
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec python -m llava_sp.playground quickstart "$@"
