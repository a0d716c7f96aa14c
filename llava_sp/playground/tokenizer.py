"""Trains the tiny world's tokenizer: SentencePiece BPE with byte fallback, as LLaMA's and Vicuna's."""

import io
from collections.abc import Iterator
from pathlib import Path

from llava_sp.data.conversation import get_template
from llava_sp.playground.language import caption, training_questions
from llava_sp.playground.scenes import TRAIN, generator, sample_scene
from llava_sp.utils.files import atomic_path, write_json

VOCABULARY = 640
_SCENES = 3000


def train_tokenizer(folder: Path, seed: int) -> int:
    """Writes `tokenizer.model` and `tokenizer_config.json` into `folder`, and returns the size of the vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(seed),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    with atomic_path(folder / "tokenizer.model") as path:
        path.write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 2048,
    }
    write_json(folder / "tokenizer_config.json", config)
    return VOCABULARY


def _corpus(seed: int) -> Iterator[str]:
    """Yields the world's sentences, and the words of the conversation's layout as often."""
    layout = get_template("v1").prompt_text([{"from": "human", "value": ""}]).removeprefix("<s>")
    for index in range(_SCENES):
        rng = generator(seed, TRAIN, index)
        things = sample_scene(rng)
        yield layout
        yield caption(things)
        for number, question in enumerate(training_questions(things, rng)):
            before = "" if number else "\n"  # a conversation's first question stands on a line of its own
            yield f"{before}{question.text} ASSISTANT: {question.answer}"
