"""Templates lay conversations out as the families of LLMs themselves publish it, with and without a system prompt."""

from dataclasses import replace
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.data.conversation import get_template
from tests.tiny import TOKENIZER

SYSTEM = "Be brief."
ROUNDS = [("What is France's capital?", "Paris!"), ("And its\nriver?", "The Seine.")]

# https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is France's capital?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nParis!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd its\nriver?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
# https://qwen.readthedocs.io/en/latest/getting_started/concepts.html
QWEN2 = (
    "<|im_start|>user\nWhat is France's capital?<|im_end|>\n<|im_start|>assistant\nParis!<|im_end|>\n"
    "<|im_start|>user\nAnd its\nriver?<|im_end|>\n<|im_start|>assistant\n"
)
QWEN2_SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
# https://huggingface.co/Qwen/Qwen2-7B-Instruct/blob/main/tokenizer_config.json
QWEN2_DEFAULT = "You are a helpful assistant."
# https://github.com/LLaVA-VL/LLaVA-NeXT/blob/main/llava/conversation.py
LLAVA_DEFAULT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def in_families_words(name: str, system: str | None) -> tuple[str, str]:
    """The published text of `ROUNDS` up to its last answer, and what follows that answer; None for no system prompt."""
    if name.startswith("qwen2"):
        return QWEN2_SYSTEM.format(QWEN2_DEFAULT if system is None else system) + QWEN2, "<|im_end|>\n"
    if name == "llava_llama_3" and system is None:
        system = LLAVA_DEFAULT
    head = "<|begin_of_text|>" + (LLAMA_3_SYSTEM.format(system) if system else "")
    return head + LLAMA_3, "<|eot_id|>"


def conversation() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`ROUNDS` as LLaVA's turns, and as messages."""
    turns, messages = [], []
    for question, answer in ROUNDS:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns, messages


def check(name: str, system: str | None, tokenizer: Any, prompt: list[int], whole: list[int]) -> None:
    """Compares the renderer and the Jinja template with the published ids, of the prompt and of the whole."""
    template = get_template(name)
    turns, messages = conversation()
    jinja = {"chat_template": template.chat_template(), "return_dict": True}
    if system is not None:
        template = replace(template, system=system)
        messages = [{"role": "system", "content": system}, *messages]
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert template.render_prompt(turns[:-1], tokenizer, image) == prompt
    assert template.render(turns, tokenizer, image).input_ids == whole
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **jinja)
    assert asked["input_ids"] == prompt
    assert tokenizer.apply_chat_template(messages, **jinja)["input_ids"] == whole


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama_3", "llama_3"),
        ("llama_3", "llama_3_base"),
        ("llava_llama_3", "llama_3"),
        ("qwen2", "qwen2"),
        ("qwen2", "qwen2_base"),
    ],
)
def test_byte_level_families(name: str, kind: str, system: str | None, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    text, end = in_families_words(name, system)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer(text + ROUNDS[-1][1] + end, add_special_tokens=False).input_ids
    check(name, system, tokenizer, prompt, whole)


def in_mistrals_ids(name: str, system: str | None, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The published ids of `ROUNDS` up to its last answer, and with it: pieces that SentencePiece encodes one by one.

    https://docs.mistral.ai/cookbook/concept-deep-dive-tokenization-templates, tokenizers V1 and V3. The system prompt
    stands before the first question, as with V1; V3's own library puts it before the last.
    """
    encode = SentencePieceProcessor(model_file=str(TOKENIZER / "tokenizer.model")).encode
    prompt, whole = [], [tokenizer.bos_token_id]
    for number, (question, answer) in enumerate(ROUNDS):
        if number == 0 and system:
            question = f"{system}\n\n{question}"
        if name == "mistral":
            asked = encode(f"[INST] {question} [/INST]")
        else:
            begin, end = tokenizer.convert_tokens_to_ids(["[INST]", "[/INST]"])
            asked = [begin, *encode(question), end]
        prompt = [*whole, *asked]
        whole = [*prompt, *encode(answer), tokenizer.eos_token_id]
    return prompt, whole


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("name", ["mistral", "mistral_v3"])
def test_mistral(name: str, system: str | None, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    check(name, system, tokenizer, *in_mistrals_ids(name, system, tokenizer))
