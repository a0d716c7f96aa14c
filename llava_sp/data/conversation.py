"""The conversation templates, by LLaVA's names."""

from dataclasses import replace

from llava_sp.data.jinja import BOS, EOS, SYSTEM
from llava_sp.data.rendering import Rendered, Role, Template
from llava_sp.utils.errors import UserError

__all__ = ["Rendered", "Template", "get_template"]

_HUMAN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_V0 = Template(
    name="v0",
    system=_HUMAN_SYSTEM,
    opening=f"{BOS}{SYSTEM}\n\n",
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
    opening=f"{BOS}{SYSTEM} ",
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
_TEMPLATES = {
    template.name: template
    for template in (
        _PLAIN,
        _V0,
        _V1,
        replace(_V1, name="llava_v1", system=_HUMAN_SYSTEM),
        _LLAMA_2,
        replace(
            _LLAMA_2,
            name="llava_llama_2",
            system="You are a helpful language and vision assistant. You are able to understand the visual content "
            "that the user provides, and assist the user with a variety of tasks using natural language.",
        ),
    )
}
_ALIASES = {
    "default": "v0",
    "vicuna_v0": "v0",
    "llava_v0": "v0",
    "vicuna_v1": "v1",
    "v0_plain": "plain",
    "llava_plain": "plain",
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
