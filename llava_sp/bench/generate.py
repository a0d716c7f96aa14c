"""Measures how fast questions are answered in batches, against a loop over one at a time, in one run.

Both answer the same questions, and every answer must be the same. By default the tiny world's parts answer, with a
projector that has learned nothing. What batching gains depends on the questions to an image, for a batch computes what
they share once, and on the length of answers, which is a given one here: a further token is mostly overhead.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava_sp.data.conversation import get_template
from llava_sp.eval.inference import Failure, GenerationSettings, generate_answers
from llava_sp.eval.questions import Question
from llava_sp.model import loading
from llava_sp.playground import BASE
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError


def main(arguments: list[str]) -> None:
    """Measures each length of answers; prints the rates and their ratio."""
    options = parse(arguments)
    bench = Bench(options)
    bench.answer(options.questions, options.new_tokens[0])  # warms up
    told = f"{options.questions} questions, {options.per_image} to an image, best of {options.repeats} runs"
    out(f"{torch.get_num_threads()} threads, {options.device}, {told}")
    out(f"{'new tokens':>10} {'one by one':>14} {f'batches of {options.batch_size}':>15} {'ratio':>6}")
    for new_tokens in options.new_tokens:
        runs = [
            (*bench.answer(1, new_tokens), *bench.answer(options.batch_size, new_tokens))
            for _ in range(options.repeats)
        ]
        _, expected, _, answers = runs[0]
        different = sum(answers[name] != expected[name] for name in expected)
        if different:
            out(f"{different} of {len(expected)} answers differ")
        single, batched = min(run[0] for run in runs), min(run[2] for run in runs)
        count = options.questions
        out(f"{new_tokens:>10} {count / single:>10.2f} q/s {count / batched:>11.2f} q/s {single / batched:>5.1f}x")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the benchmark's flags."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.bench generate", description=summary(__doc__))
    add = parser.add_argument
    add("--model-path", help="checkpoint (default: the tiny world's parts)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:N")
    add("--questions", type=int, default=64, help="questions (default: %(default)s)")
    add("--per-image", type=int, default=4, help="questions to an image, as in the tiny world (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="questions at a time (default: %(default)s)")
    add("--new-tokens", type=int, nargs="+", default=[4, 32], help="lengths of answers (default: 4 32)")
    add("--repeats", type=int, default=3, help="runs of each, of which the fastest counts (default: %(default)s)")
    options = parser.parse_args(arguments)
    numbers = (options.questions, options.per_image, options.batch_size, options.repeats, *options.new_tokens)
    if min(numbers) < 1:
        raise UserError("--questions, --per-image, --batch-size, --repeats and --new-tokens must be at least 1.")
    return options


class Bench:
    """A model and questions about images of noise."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.model_path is None:
            model, self.processor = loading.build(
                str(BASE / "llm"), str(BASE / "vision_tower"), overrides={"sfe_channels": 64}
            )
            self.model = model.to(options.device)
        else:
            self.model, self.processor = loading.load(options.model_path, device_map=options.device)
        random = np.random.default_rng(0)
        sides = random.integers(60, 160, (-(-options.questions // options.per_image), 2))
        self.images = [random.integers(0, 255, (*side, 3), dtype=np.uint8) for side in sides]
        words = random.integers(2, 15, options.questions)
        self.questions = [
            Question(number, f"What is {'very ' * count}big?", f"{number // options.per_image}.png")
            for number, count in enumerate(words)
        ]

    def answer(self, batch_size: int, new_tokens: int) -> tuple[float, dict[str | int, str | Failure]]:
        """Answers all questions; returns the seconds that it took, loading the images included, and the answers."""
        settings = GenerationSettings(temperature=0, max_new_tokens=new_tokens)
        self.model.generation_config.min_new_tokens = new_tokens
        template = get_template(self.processor.conversation_template)
        with tempfile.TemporaryDirectory() as folder:
            for number, image in enumerate(self.images):
                Image.fromarray(image).save(Path(folder) / f"{number}.png")
            start = time.perf_counter()
            answers = generate_answers(
                self.model,
                self.processor,
                self.questions,
                image_folder=folder,
                template=template,
                settings=settings,
                batch_size=batch_size,
            )
            found = {question.id: answer for question, answer in answers}
            return time.perf_counter() - start, found
