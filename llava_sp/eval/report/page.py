"""The report as one page of HTML that loads nothing: style and images are in it, and there is no script."""

import json
import math
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path

from llava_sp.eval.report import content
from llava_sp.eval.report.content import Table
from llava_sp.eval.report.results import Output, Result
from llava_sp.eval.report.sheet import Sample, samples

LONGEST = 1500
"""Characters of a question or answer that are shown."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5c6670; --paper: #fff; --panel: #f4f6f8; --line: #d5dbe1;
  --bar: #3d6fa5; --right: #1f7a4d; --wrong: #b3382c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #9aa4ae; --paper: #14171a; --panel: #1e2327;
  --line: #384048; --bar: #6d9fd6; --right: #5cc08d; --wrong: #ef8478; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3, h4 { line-height: 1.25; margin: 1.6em 0 .5em; }
h2 { border-top: 1px solid var(--line); padding-top: 1em; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: bottom; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
.bars td { vertical-align: middle; }
.track { width: min(22rem, 40vw); height: .7rem; background: var(--panel); }
.track div { height: 100%; background: var(--bar); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
article { background: var(--panel); border-left: 4px solid var(--wrong); padding: .8rem; overflow-wrap: anywhere; }
article.right { border-color: var(--right); }
article img { max-width: 100%; height: auto; display: block; margin-bottom: .5rem; }
.verdict { font-weight: 600; color: var(--wrong); margin: 0; }
.right .verdict { color: var(--right); }
dl { margin: .4rem 0 0; }
dt { color: var(--dim); font-size: .8rem; }
dd { margin: 0 0 .4rem; white-space: pre-wrap; unicode-bidi: isolate; }
summary { cursor: pointer; margin: .8rem 0; }
pre { background: var(--panel); padding: .8rem; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(outputs: list[Output], *, count: int, data_root: Path | None) -> str:
    """Writes the report on the first output folder, compared with the others.

    Args:
        outputs: What to report on, then what to compare it with.
        count: Right answers to show of each benchmark at most, and wrong ones.
        data_root: The folder of all benchmarks' data, if not where it was when the answers were made.
    """
    named = list(zip(content.labels(outputs), outputs, strict=True))
    results = outputs[0].results.values()
    problems = [f"{name}: {problem}" for name, output in named for problem in output.problems]
    body = [
        "<h1>Evaluation</h1>",
        _list(f"{name}: {output.model}" for name, output in named),
        _part("What is missing", _list(problems)) if problems else "",
        _part("Headlines", _table(content.headlines(outputs)), _dim(content.ON_PUBLISHED)),
        *(
            _part(title, _table(table), _list(notes), _dim(content.ON_COMPARISONS))
            for title, table, notes in content.comparisons(outputs)
        ),
        *(_section(result, count, data_root) for result in results),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Evaluation of {escape(named[0][0])}</title>",
            f"<style>{_STYLE}</style></head><body>",
            *filter(None, body),
            "</body></html>\n",
        ]
    )


def _section(result: Result, count: int, data_root: Path | None) -> str:
    """Writes what there is to say about one benchmark."""
    made_with = json.dumps(result.made_with, indent=2, ensure_ascii=False)
    told = _folded("What it was made with", f"<pre>{escape(made_with)}</pre>")
    if result.headline is None:
        return _part(result.title, _dim(content.ON_SERVERS), told)
    figures = [[name, f"{value:.2f}"] for name, value in result.metrics.items()]
    return _part(
        result.title,
        f"<p>{escape(result.fields['rule'])}</p>",
        _list(f"{name}: {value}" for name, value in result.remarks.items()),
        _bars(result.categories) if result.categories else "",
        _folded("All figures", _table(Table(["figure", ""], figures))),
        _sheet(result, count, data_root),
        told,
    )


def _bars(categories: dict[str, float]) -> str:
    """Draws a bar for each category, all from 0 to the same hundred."""
    end = 100 * max(1, math.ceil(max(categories.values()) / 100))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.2f}</td>"
        f'<td><div class="track"><div style="width:{100 * max(0.0, value) / end:.2f}%"></div></div></td></tr>'
        for name, value in categories.items()
    )
    head = f"<tr><th>category</th><th></th><th>0 to {end}</th></tr>"
    return f'<div class="scroll"><table class="bars">{head}{rows}</table></div>'


def _sheet(result: Result, count: int, data_root: Path | None) -> str:
    """Writes the answers to look at, by category."""
    chosen, problems = samples(result, count, data_root)
    groups = []
    for category, group in groupby(chosen, key=lambda sample: sample.expected.category):
        title = f"<h4>{escape(category)}</h4>" if category else ""
        groups.append(f'{title}<div class="sheet">{"".join(map(_card, group))}</div>')
    right = sum(sample.right for sample in chosen)
    said = len(result.answer_to)
    summary = f"{len(chosen) - right} wrong and {right} right answers of {said}"
    return _list(problems) + (_folded(summary, "".join(groups)) if chosen else "")


def _card(sample: Sample) -> str:
    name = "right" if sample.right else "wrong"
    image = f'<img src="{sample.image}" alt="">' if sample.image else _dim(sample.without)
    told = {"question": sample.question, "answer": sample.answer, "expected": sample.expected.answer}
    texts = "".join(f"<dt>{name}</dt><dd>{escape(_short(text))}</dd>" for name, text in told.items() if text)
    return f'<article class="{name}">{image}<p class="verdict">{name}: {sample.score:g}</p><dl>{texts}</dl></article>'


def _part(title: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *filter(None, parts), "</section>"])


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _list(lines: Iterable[str]) -> str:
    told = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{told}</ul>" if told else ""


def _dim(text: str) -> str:
    return f'<p class="dim">{escape(text)}</p>'


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
