"""Importing the package: cheap, clean, and known to transformers' Auto classes in either order."""

import subprocess
import sys

import pytest

KNOWS = "AutoConfig.for_model('llava_sp'); AutoModelForImageTextToText._model_mapping[llava_sp.LlavaSPConfig]"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "imports",
    [
        "import llava_sp; from transformers import AutoConfig, AutoModelForImageTextToText",
        "from transformers import AutoConfig, AutoModelForImageTextToText; import llava_sp",
        "import llava_sp.model.modeling_llava_sp; from transformers import AutoConfig, AutoModelForImageTextToText",
    ],
)
def test_the_auto_classes_know_the_model_in_either_order(imports):
    done = run(f"{imports}; {KNOWS}")
    assert done.returncode == 0, done.stderr


def test_importing_is_cheap():
    assert run("import sys, llava_sp; assert not {'torch', 'transformers'} & set(sys.modules)").returncode == 0
    assert run("import sys, llava_sp.data.records; assert 'torch' not in sys.modules").returncode == 0


def test_public_names_touch_neither_wandb_nor_deepspeed():
    code = "import sys; from llava_sp import *; assert not {'wandb', 'deepspeed'} & set(sys.modules)"
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_refused():
    assert "has no attribute 'LlavaSP'" in run("import llava_sp; llava_sp.LlavaSP").stderr
