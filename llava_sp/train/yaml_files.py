"""Configurations of training runs: YAML files whose names and values are those of flags."""

import json
from pathlib import Path
from typing import Any

import yaml

from llava_sp.utils.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML without references to lists and mappings, for a few lines of those stand for billions of items."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Reads a value."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                what = f"*{event.anchor} refers to a list or a mapping, which is not supported"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML file of `name: value` lines.

    Raises:
        UserError: The file is missing, is no YAML, or is no mapping.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UserError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8.") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply.") from None
    except Exception as error:  # YAMLError, and whatever comes of a date or a tagged value that is none
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form 'name: value'.")
    return values


def as_flags(values: dict[str, Any]) -> list[str]:
    """Writes a YAML mapping as flags, so that one parser converts and checks both."""
    argv: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        else:  # in one word, so that no value is taken for a flag
            argv.append(f"--{name}={_to_json(name, value) if isinstance(value, dict) else value}")
    return argv


def _to_json(name: str, value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:  # as of a date
        raise UserError(f"{name}: {error}.") from None
