"""Flags for how answers are generated, with LLaVA's names and meaning; those of the model are in `llava_sp.flags`."""

import argparse

from llava_sp.eval.inference import GenerationSettings


def add_generation_flags(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Adds the flags of `GenerationSettings`."""
    add = parser.add_argument
    add("--temperature", type=float, default=0.2, help="0: greedy, as LLaVA's figures were made (default: %(default)s)")
    add("--top-p", type=float, help="sample from the likeliest tokens that have this probability together")
    add("--num-beams", type=int, default=1, help="beams of a beam search (default: %(default)s)")
    add("--max-new-tokens", type=int, default=max_new_tokens, help="longest answer in tokens (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")


def generation_settings(options: argparse.Namespace) -> GenerationSettings:
    """Returns the settings that the flags ask for."""
    return GenerationSettings(
        temperature=options.temperature,
        top_p=options.top_p,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
