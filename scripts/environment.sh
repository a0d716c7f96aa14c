# Sourced, by the other scripts too: makes .venv and installs the project into it, once, then activates it.
#   PYTHON=python3.12 bash scripts/quickstart.sh    another interpreter (3.11 or later)
#   TORCH="torch==2.11.0" bash scripts/test.sh      another PyTorch
#   VENV=.venv-old PINS="transformers==5.18.0" bash scripts/test.sh      other versions, in a folder of their own
# If the interpreter already sees a PyTorch with CUDA, that one is used, and nothing of it is downloaded.
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-}
VENV=${VENV:-.venv}
PINS=${PINS:-}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1 || echo missing); Python 3.11 or later is needed (set PYTHON)." >&2
    return 2
}

installed=$VENV/installed-for
wanted="$(cksum <pyproject.toml) ${TORCH:-any} $PINS $("$PYTHON" --version)"
if [ -f "$installed" ] && [ "$(cat "$installed")" = "$wanted" ]; then
    echo "== environment: $VENV is there and fits, reused"
    source "$VENV/bin/activate"
else
    echo "== environment: installing into $VENV (once; some minutes)"
    if [ -d "$VENV" ] && [ "$("$VENV/bin/python" --version 2>&1)" != "$("$PYTHON" --version)" ]; then
        echo "   $VENV is of another Python, made anew"
        rm -rf "$VENV"
    fi
    if [ ! -x "$VENV/bin/python" ]; then
        cuda='import torch, sys; sys.exit(not torch.version.cuda)'
        if "$PYTHON" -c "$cuda" 2>/dev/null; then
            echo "   using the PyTorch with CUDA that $PYTHON has"
            "$PYTHON" -m venv --system-site-packages "$VENV" || return
        else
            "$PYTHON" -m venv "$VENV" || return
        fi
    fi
    source "$VENV/bin/activate"
    # PyTorch first: an open requirement of another package would choose its own build.
    if [ -n "$TORCH" ] || ! python -c 'import torch' 2>/dev/null; then
        echo "   ${TORCH:=torch==2.13.0}"
        python -m pip install --quiet "$TORCH" || return
    fi
    echo "   llava_sp and what it needs"
    # shellcheck disable=SC2086 - several pins are several words
    python -m pip install --quiet --editable ".[dev]" $PINS || return
    echo "$wanted" >"$installed"
fi
