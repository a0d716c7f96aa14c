"""`python -m llava_sp.eval.report`: a report on an evaluation's output, and its comparison with others."""

import argparse
import sys
from pathlib import Path

from llava_sp.eval.report.markdown import markdown
from llava_sp.eval.report.page import page
from llava_sp.eval.report.results import read_output
from llava_sp.flags import parse_flags
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.files import write_text, writing
from llava_sp.utils.logging import get_logger, setup_logging

logger = get_logger(__name__)


@command_line
def main() -> None:
    """Writes the report that the command line asks for."""
    setup_logging()
    parser = argparse.ArgumentParser(
        prog="python -m llava_sp.eval.report",
        description="Writes a report, report.md and report.html, on an output folder of python -m llava_sp.eval.",
    )
    add = parser.add_argument
    add("--results", type=Path, help="the output folder; default: the first of --compare")
    add("--compare", type=Path, nargs="+", default=[], help="output folders of other models to compare it with")
    add("--output", type=Path, help="the report's name, without .md and .html; default: report in the output folder")
    add("--samples", type=int, default=12, help="right answers to show of each benchmark, and wrong ones (default: 12)")
    add("--data-root", type=Path, help="the benchmarks' data, if they are no longer where they were")
    options = parse_flags(parser, sys.argv[1:])
    folders = [options.results, *options.compare] if options.results else options.compare
    if not folders:
        raise UserError("There is nothing to report on; name an output folder with --results.")
    if options.samples < 0:
        raise UserError(f"--samples must be at least 0, not {options.samples}.")

    outputs = [read_output(folder) for folder in folders]
    for output in outputs:
        for problem in output.problems:
            logger.warning("%s: %s", output.path, problem)
    report = options.output or folders[0] / "report"
    written = {"md": markdown(outputs), "html": page(outputs, count=options.samples, data_root=options.data_root)}
    for suffix, text in written.items():
        path = report.with_name(f"{report.name}.{suffix}")
        with writing(path):
            # An answer can hold half a character, which no file can.
            write_text(path, text.encode(errors="replace").decode())
        out(f"{path} is written")


if __name__ == "__main__":
    main()
