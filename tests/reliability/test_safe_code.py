"""What can do harm is used where it is looked after, and nowhere else in the code."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import yaml

import llava_sp
from llava_sp.train import yaml_files

SOURCE = Path(llava_sp.__file__).parent
HOMES = {
    "torch.load": {"convert/tensors.py", "train/pickles.py"},
    "subprocess": {"playground/quickstart.py", "utils/git.py", "utils/ranks.py"},
    "socket": {"utils/lock.py", "utils/ranks.py"},
    "importlib.import_module": {"__init__.py", "utils/commands.py"},
    "urllib.request": {"eval/benchmarks/judge.py"},
    "yaml.load": {"train/yaml_files.py"},  # by a loader of its own, a SafeLoader
}
"""What a program can do harm with, and the only files that use it; here they name modules and commands themselves."""

NOWHERE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "torch.hub", "torch.jit"),
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code", "telnetlib", "xmlrpc"),
    *("yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("http.server", "socketserver", "requests", "httpx"),
}


def used_in(tree: ast.AST) -> Iterator[str]:
    """Yields the dotted names that a module imports or uses, by the names they have where they come from."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in known or hasattr(builtins, first):
                yield known.get(first, first) + dot + rest


def test_what_can_do_harm_has_one_home() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        used = set(used_in(ast.parse(file.read_text())))
        for harm in (*HOMES, *NOWHERE):
            found = any(use == harm or use.startswith(f"{harm}.") for use in used)
            assert not found or name in HOMES.get(harm, ()), f"{name} uses {harm}"


def test_every_call_that_can_run_code_says_that_it_may_not() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            where = f"{file.relative_to(SOURCE)}, line {call.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
            said = ast.unparse(call.func)
            assert given.get("trust_remote_code", "False") == "False", where
            assert given.get("shell", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where
            if said == "yaml.load":
                assert issubclass(yaml_files._Loader, yaml.SafeLoader) and "_Loader" in ast.unparse(call), where
            if said == "torch.load":
                assert given.get("weights_only") == "True", where
            if said.lower().startswith("auto") and said.endswith((".from_pretrained", ".from_config")):
                passed = any(keyword.arg is None for keyword in call.keywords)  # ** of a dictionary that says so
                assert given.get("trust_remote_code") == "False" or passed, where
