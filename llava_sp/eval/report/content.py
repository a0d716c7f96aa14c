"""What the Markdown and the page both show: the figures published elsewhere, and the tables."""

from dataclasses import dataclass

from llava_sp.eval.report.compare import LEVEL, Comparison, compare
from llava_sp.eval.report.results import Output, Result
from llava_sp.utils.errors import UserError


@dataclass(frozen=True)
class Published:
    """Figures that others published.

    Attributes:
        title: Whose they are.
        source: Where they are from.
        figures: The headlines by benchmark.
    """

    title: str
    source: str
    figures: dict[str, float]


_NAMES = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "llava_bench", "mmvet")
PUBLISHED = (
    Published(
        "LLaVA-1.5-7B LoRA",
        "LLaVA's own figures, second-hand",
        dict(zip(_NAMES, (79.1, 63.0, 68.4, 58.2, 86.4, 1476.9, 67.9, 30.2), strict=True)),
    ),
    Published(
        "LLaVA-SP 7B, 336 px",
        "a third party's table, second-hand",
        dict(zip(_NAMES, (79.2, 62.7, 68.4, 58.5, 86.6, 1470.7, 61.7, 33.8), strict=True)) | {"seed": 67.9},
    ),
)

INTERVAL = f"{LEVEL:.0%} interval"
ON_PUBLISHED = (
    "Published figures are quoted second-hand, not measured here: "
    + "; ".join(f"{published.title}: {published.source}" for published in PUBLISHED)
    + ". They may have been made with other data files, servers or judges."
)
ON_SERVERS = "Its server scores it; the file to hand in is beside the answers."
ON_COMPARISONS = (
    f"Differences are the first model's figure minus the other's. The {INTERVAL} is a paired bootstrap's, over the "
    "questions that both have: it says how the difference of the mean score varies with the choice of questions, and "
    "nothing of other seeds of training. Of twenty comparisons of equals, about one is told apart by chance."
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        head: Names of the columns.
        rows: The cells.
    """

    head: list[str]
    rows: list[list[str]]


def labels(outputs: list[Output]) -> list[str]:
    """Returns what to call the output folders: their names, or their whole paths if two have the same."""
    names = [output.path.resolve().name for output in outputs]
    return names if len(set(names)) == len(names) else [str(output.path) for output in outputs]


def headlines(outputs: list[Output]) -> Table:
    """Puts the headlines beside those published elsewhere."""
    head = ["benchmark", "figure", *labels(outputs), *(f"{column.title} ({column.source})" for column in PUBLISHED)]
    rows = []
    for name in dict.fromkeys(name for output in outputs for name in output.results):
        results = [output.results.get(name) for output in outputs]
        some = next(result for result in results if result)
        figure = " / ".join(dict.fromkeys(str(result.headline) for result in results if result and result.headline))
        others = [f"{column.figures[name]}" if name in column.figures else "-" for column in PUBLISHED]
        rows.append([some.title, figure or "-", *map(_told, results), *others])
    return Table(head, rows)


def comparisons(outputs: list[Output]) -> list[tuple[str, Table, list[str]]]:
    """Compares the first output with each of the others: a title, a table, and what to know about its rows."""
    first, *names = labels(outputs)
    found = []
    for other, name in zip(outputs[1:], names, strict=True):
        rows, notes = [], []
        for result in outputs[0].results.values():
            if result.name not in other.results:
                notes.append(f"{result.title}: {name} has no result.")
                continue
            if not result.items and not other.results[result.name].items:
                notes.append(f"{result.title}: scored by its server; there are no scores to compare here.")
                continue
            try:
                comparison = compare(result, other.results[result.name])
            except UserError as error:
                notes.append(str(error))
                continue
            rows.append(_row(comparison, comparison.verdict(first, name)))
            notes.extend(f"{result.title}: {note}" for note in comparison.notes)
        head = ["benchmark", "difference of the figure", "of the mean score", INTERVAL, "questions", "verdict"]
        found.append((f"{first} compared with {name}", Table(head, rows), notes))
    return found


def _row(found: Comparison, verdict: str) -> list[str]:
    headline = "-" if found.headline is None else f"{found.headline:+.2f}"
    interval = f"{found.low:+.2f} to {found.high:+.2f}"
    return [found.title, headline, f"{found.mean:+.2f}", interval, str(found.questions), verdict]


def _told(result: Result | None) -> str:
    if result is None:
        return "-"
    told = "scored by its server" if result.value is None else f"{result.value:.2f}"
    return told + (f" ({', '.join(result.marks)})" if result.marks else "")
