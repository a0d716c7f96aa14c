"""What the pages tell a user to type is real: scripts and files exist, modules run, flags are known, Python imports."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "playground" / "data" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    """Every command of every page, once; those in running text too."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`((?:python -m|bash scripts/)[^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in lines:
            if command := line.partition(" #")[0].strip():
                if not command.startswith("#"):
                    found[command] = None
    return list(found)


def flags_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def known_flags(module: str, *subcommand: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *subcommand, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[\w-]+", done.stdout))


TRAINING_SCRIPTS = ("pretrain", "finetune_lora", "finetune", "slurm_finetune_lora")
HELP = {
    "training": ("llava_sp.train", "llava_sp.train.launch"),
    "quickstart": ("llava_sp.playground quickstart",),
    "evaluation": ("llava_sp.eval",),
}

NOT_INSTALLED = "vlmeval"
"""A package that an example imports and the tests do without; `tests/eval/adapters` has what stands for it."""


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Known flags by module (and subcommand), each asked for once."""
    return {}


@pytest.mark.parametrize("command", commands())
def test_commands(command, flags):
    words = shlex.split(command)
    if words[0] in ("bash", "sbatch"):
        script = ROOT / words[1]
        assert script.exists(), f"{words[1]} is not there"
        modules = HELP["quickstart"] if script.stem == "quickstart" else ()
        if script.parent.name == "eval":
            modules = HELP["evaluation"]
        if script.stem in TRAINING_SCRIPTS:
            modules = HELP["training"]
            for word in words[2:]:
                if word.endswith((".yaml", ".json")):
                    assert (ROOT / word).exists(), f"{word} is not there"
    elif words[:2] == ["python", "-m"]:
        subcommand = words[3] if len(words) > 3 and re.fullmatch(r"[a-z][a-z-]*", words[3]) else ""
        modules = (f"{words[2]} {subcommand}".strip(),)
    else:
        assert words[0] in ("pip", "sbatch"), f"a command of an unknown kind: {command}"
        return
    known: set[str] = {"--help"}
    for module in modules:
        if module not in flags:
            flags[module] = known_flags(*module.split())
        known |= flags[module]
    spelled = {flag.replace("_", "-") for flag in known} | known
    assert flags_of(words) <= spelled, f"unknown flags: {sorted(flags_of(words) - spelled)}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:llava_sp|configs|scripts|tests)/[\w./-]+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_python_examples_import_what_is_there():
    examples = [block for page in PAGES for block in blocks(page, "python") if f"from {NOT_INSTALLED}" not in block]
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
