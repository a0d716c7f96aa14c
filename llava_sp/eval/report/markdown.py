"""The report as Markdown: the tables, without the answers."""

import re

from llava_sp.eval.report import content
from llava_sp.eval.report.content import Table
from llava_sp.eval.report.results import Output, Result


def markdown(outputs: list[Output]) -> str:
    """Writes the report on the first output folder, compared with the others.

    Args:
        outputs: What to report on, then what to compare it with.
    """
    parts = ["# Evaluation", _list([f"{name}: {output.model}" for name, output in _named(outputs)])]
    problems = [f"{name}: {problem}" for name, output in _named(outputs) for problem in output.problems]
    if problems:
        parts += ["## What is missing", _list(problems)]
    parts += ["## Headlines", _table(content.headlines(outputs)), _escape(content.ON_PUBLISHED)]
    for title, table, notes in content.comparisons(outputs):
        parts += [f"## {_escape(title)}", _table(table), _list(notes), _escape(content.ON_COMPARISONS)]
    for result in outputs[0].results.values():
        parts += _section(result)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(result: Result) -> list[str]:
    parts = [f"## {_escape(result.title)}"]
    if result.headline is None:
        return [*parts, content.ON_SERVERS]
    parts.append(_escape(result.fields["rule"]))
    parts.append(_list([f"{name}: {value}" for name, value in result.remarks.items()]))
    figures = {"figure": result.metrics, "category": result.categories}
    for name, group in figures.items():
        if group:
            parts.append(_table(Table([name, ""], [[key, f"{value:.2f}"] for key, value in group.items()])))
    return parts


def _named(outputs: list[Output]) -> list[tuple[str, Output]]:
    return list(zip(content.labels(outputs), outputs, strict=True))


def _table(table: Table) -> str:
    rows = [table.head, ["---", *["---:"] * (len(table.head) - 1)]]
    lines = [rows[0], *table.rows]
    escaped = [" | ".join(map(_escape, line)) for line in lines]
    return "\n".join(f"| {line} |" for line in (escaped[0], " | ".join(rows[1]), *escaped[1:]))


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Makes text of others harmless: one line, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&!])", r"\\\1", " ".join(text.split()))
