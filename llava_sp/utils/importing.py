"""Doing something once another package is there, without importing it oneself."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(package: str, action: Callable[[], None]) -> None:
    """Runs `action` right after `package` is imported for the first time; at once if it is there already.

    Args:
        package: Name of a top-level package.
        action: What to do; it may import the package.
    """
    if package in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(package, action))


class _Watcher(MetaPathFinder):
    """Finds one package as Python would, and adds an action to what importing it does."""

    def __init__(self, package: str, action: Callable[[], None]) -> None:
        self.package = package
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self.action()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
