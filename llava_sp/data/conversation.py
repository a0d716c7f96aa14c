"""The conversation templates: LLaVA's under its names, and those that families of LLMs publish for themselves."""

from dataclasses import replace

from llava_sp.data.jinja import BOS, EOS, SYSTEM
from llava_sp.data.rendering import Rendered, Role, Template
from llava_sp.utils.errors import UserError

__all__ = ["Rendered", "Template", "get_template"]

_HUMAN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# In training; LLaVA's own prompt for inference in v0 adds an example conversation, which no model was trained with.
_V0 = Template(
    name="v0",
    system=_HUMAN_SYSTEM,
    opening=BOS,
    heading=f"{SYSTEM}\n\n",
    human=Role("### Human: ", "\n"),
    assistant=Role("### Assistant: ", "\n"),
    ending="### ",
    stop="###",
    drops_leading_answer=False,
    counts_turns=True,
)
_V1 = Template(
    name="v1",
    system=_HUMAN_SYSTEM.replace("human", "user"),
    opening=BOS,
    heading=f"{SYSTEM} ",
    human=Role("USER: ", " ", empty="USER:"),
    assistant=Role("ASSISTANT: ", EOS, empty="ASSISTANT:"),
    stop=EOS,
    splits_at=" ASSISTANT: ",
)
_LLAMA_2 = Template(
    name="llama_2",
    system="You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information.",
    opening="",
    preamble=f"<<SYS>>\n{SYSTEM}\n<</SYS>>\n\n",
    human=Role(f"{BOS}[INST] ", " [/INST]", empty=""),
    assistant=Role(" ", f" {EOS}", empty=""),
    stop=EOS,
    splits_at="[/INST] ",
)
_PLAIN = Template(
    name="plain",
    system="",
    opening=BOS,
    human=Role("", ""),
    assistant=Role("", "\n"),
    stop="\n",
    drops_leading_answer=False,
    caption_only=True,
)
# Mistral-7B v0.1 and v0.2 (https://docs.mistral.ai/cookbook/concept-deep-dive-tokenization-templates).
_MISTRAL = Template(
    name="mistral",
    system="",
    opening=BOS,
    preamble=f"{SYSTEM}\n\n",
    human=Role("[INST] ", " [/INST]"),
    assistant=Role(" ", EOS),
    stop=EOS,
)
# Qwen2's default system prompt; Qwen2.5 names itself and its maker in place of it.
_QWEN2 = Template(
    name="qwen2",
    system="You are a helpful assistant.",
    opening="",
    heading=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
    human=Role("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=Role("<|im_start|>assistant\n", "<|im_end|>\n"),
    stop="<|im_end|>",
    tokens=("<|im_start|>", "<|im_end|>"),
    strips=True,
)
_LLAMA_3 = Template(
    name="llama_3",
    system="",
    opening=BOS,
    heading=f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>",
    human=Role("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=Role("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    stop="<|eot_id|>",
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    strips=True,
)
_TEMPLATES = {
    template.name: template
    for template in (
        _PLAIN,
        _V0,
        _V1,
        replace(_V1, name="llava_v1", system=_HUMAN_SYSTEM),
        _LLAMA_2,
        replace(_LLAMA_2, name="llava_llama_2", system=_LLAVA_SYSTEM),
        # LLaVA-1.6's for Mistral: a begin token at the start alone, and a space before the end token.
        replace(_LLAMA_2, name="mistral_instruct", system="", opening=BOS, human=Role("[INST] ", " [/INST]", empty="")),
        _MISTRAL,
        # Mistral-7B v0.3, whose brackets are tokens; its tokenizer itself puts a space before the text that follows.
        replace(
            _MISTRAL,
            name="mistral_v3",
            human=Role("[INST]", "[/INST]"),
            assistant=Role("", EOS),
            tokens=("[INST]", "[/INST]"),
        ),
        _QWEN2,
        # LLaVA-1.6's ChatML: without line breaks between turns.
        replace(
            _QWEN2,
            name="chatml_direct",
            system="Answer the questions.",
            heading=f"<|im_start|>system\n{SYSTEM}<|im_end|>",
            human=Role("<|im_start|>user\n", "<|im_end|>"),
            assistant=Role("<|im_start|>assistant\n", "<|im_end|>"),
        ),
        _LLAMA_3,
        replace(_LLAMA_3, name="llava_llama_3", system=_LLAVA_SYSTEM),
    )
}
_ALIASES = {
    "default": "v0",
    "vicuna_v0": "v0",
    "llava_v0": "v0",
    "vicuna_v1": "v1",
    "v0_plain": "plain",
    "llava_plain": "plain",
    "llava_mistral_instruct": "mistral_instruct",
    "chatml": "qwen2",
    "qwen_1_5": "qwen2",
    "qwen_2": "qwen2",
}


def get_template(name: str) -> Template:
    """Returns the template of that name, or of one of LLaVA's other names of it (`--version`, `--conv-mode`).

    Raises:
        UserError: There is no such template; the message lists the names.
    """
    template = _TEMPLATES.get(_ALIASES.get(name, name))
    if template is None:
        raise UserError(
            f"There is no conversation template {name!r}. Choose one of {', '.join([*_TEMPLATES, *_ALIASES])}."
        )
    return template
