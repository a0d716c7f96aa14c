#!/usr/bin/env bash
# All checks and tests under the lowest supported and the newest transformers, each in an environment of its own:
#   bash scripts/test_versions.sh                    both
#   bash scripts/test_versions.sh 5.19.0 5.21.1      others
#   TESTS="tests/model tests/parity" bash scripts/test_versions.sh
set -euo pipefail
cd "$(dirname "$0")/.."
lowest=$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
[ $# -gt 0 ] || set -- "$lowest" newest
failed=()
for version in "$@"; do
    pin=transformers
    [ "$version" = newest ] || pin="transformers==$version"
    echo "== $pin"
    # shellcheck disable=SC2086 - several folders are several words
    VENV=".venv-transformers-$version" PINS=$pin bash scripts/test.sh ${TESTS:-} || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || { echo "error: failed under transformers ${failed[*]}" >&2; exit 1; }
