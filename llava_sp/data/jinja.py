"""A conversation template in Jinja, so that `apply_chat_template` and serving engines lay text out as training did."""

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_sp.constants import IMAGE_TOKEN

if TYPE_CHECKING:
    from llava_sp.data.rendering import Role, Template

BOS, EOS, SYSTEM = "<s>", "</s>", "{system}"
"""What stands in a template's text for the tokenizer's own begin and end tokens, and for the system prompt."""

_VARIABLES = {BOS: "bos_token", EOS: "eos_token", SYSTEM: "system.text"}

_PRELUDE = """
{%- macro flat(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}{{- IMAGE if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro said(content) -%}
  {%- set text = flat(content) -%}
  {%- if IMAGE in text -%}{{- (IMAGE + '\\n' + text.replace(IMAGE, '').strip()).strip() -}}
  {%- else -%}{{- text -}}
  {%- endif -%}
{%- endmacro -%}
{%- set system = namespace(text=DEFAULT_SYSTEM) -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- set system.text = flat(messages[0]['content'])STRIP -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
"""


def to_jinja(template: "Template") -> str:
    """Writes a template in Jinja, with `{% generation %}` around what is learned.

    It takes messages whose content is a string or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`,
    and a first message from `system` in place of the template's own system prompt.
    """
    strip = ".strip()" if template.strips else ""
    prelude = _PRELUDE.replace("DEFAULT_SYSTEM", _quoted(template.system)).replace("IMAGE", _quoted(IMAGE_TOKEN))
    head = [prelude.replace("STRIP", strip).strip()]
    if template.drops_leading_answer:
        head.append("{%- if messages[0]['role'] == 'assistant' -%}{%- set messages = messages[1:] -%}{%- endif -%}")
    question = _quoted(IMAGE_TOKEN) if template.caption_only else "text"
    learned, rest = template.split_after()
    return "\n".join(
        [
            *head,
            _output(template.opening) + _of_system(template.heading),
            "{%- for message in messages -%}",
            "{%- if message['role'] != ('user' if (loop.index0 % 2 == 0) == (messages[0]['role'] == 'user') "
            "else 'assistant') -%}",
            "{{- raise_exception('Messages must be from user and assistant in turn.') -}}",
            "{%- endif -%}",
            "{%- set text = said(message['content'])" + strip + " -%}",
            "{%- if message['role'] == 'user' -%}",
            _turn(template.human, _of_system(template.preamble, "loop.first and ") + _value(question)),
            "{%- else -%}",
            _turn(replace(template.assistant, after=rest), _value("text") + _output(learned), learned=True),
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            _output(template.assistant.open),
            "{%- else -%}",
            _output(template.ending),
            "{%- endif -%}",
        ]
    )


def _turn(role: "Role", message: str, learned: bool = False) -> str:
    """Writes one turn around the Jinja outputs of its message."""
    body = _output(role.before[len(role.open) :]) + message
    if learned:
        body = "{%- generation -%}" + body + "{%- endgeneration -%}"
    turn = _output(role.open) + body + _output(role.after)
    if role.empty is None:
        return turn
    return "{%- if text -%}" + turn + "{%- else -%}" + _output(role.empty) + "{%- endif -%}"


def _of_system(text: str, condition: str = "") -> str:
    """Writes text that is left out if there is no system prompt."""
    return "{%- if " + condition + "system.text -%}" + _output(text) + "{%- endif -%}" if text else ""


def _output(text: str) -> str:
    """Writes text as Jinja outputs, its placeholders as variables."""
    parts = [part for part in re.split("(" + "|".join(map(re.escape, _VARIABLES)) + ")", text) if part]
    return "".join(_value(_VARIABLES.get(part) or _quoted(part)) for part in parts)


def _value(expression: str) -> str:
    return "{{- " + expression + " -}}"


def _quoted(text: str) -> str:
    """Writes text as a Jinja string, in which JSON's escapes mean the same."""
    return json.dumps(text)
