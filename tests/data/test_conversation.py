"""One renderer for ids and labels: equal to LLaVA's recordings, and to the Jinja template that is shipped."""

import copy
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.conversation import get_template
from llava_sp.data.problems import Problem, SampleError
from llava_sp.utils.errors import UserError
from tests.data.conftest import GOLDEN
from tests.families import TOKENIZERS
from tests.tiny import TOKENIZER

NAMES = ["plain", "v0", "v1", "llava_v1", "llama_2", "llava_llama_2", "mistral_instruct", "mistral"]
"""Templates that need no tokens of their own."""
CASES = [(name, kind) for name in NAMES for kind in TOKENIZERS] + [
    ("mistral_v3", "mistral_v3"),
    *[(name, kind) for name in ("qwen2", "chatml_direct") for kind in ("qwen2", "qwen2_base")],
    *[(name, kind) for name in ("llama_3", "llava_llama_3") for kind in ("llama_3", "llama_3_base")],
]
"""Every template with every kind of tokenizer that it fits."""
CHATS = [(name, kind) for name, kind in CASES if name != "plain"]


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


@pytest.fixture
def render(tokenizer: Any, image_token_id: int) -> Any:
    return lambda name, *turns: get_template(name).render(list(turns), tokenizer, image_token_id)


def learned_text(rendered: Any, tokenizer: Any) -> str:
    return tokenizer.decode([label for label in rendered.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("case", GOLDEN)
def test_ids_and_labels_equal_llavas(case: str, render: Any, image_token_id: int) -> None:
    recorded = GOLDEN[case]
    rendered = render(case.split("/")[0], *recorded["conversations"])
    assert rendered.input_ids == [image_token_id if token == -200 else token for token in recorded["input_ids"]]
    assert rendered.labels == recorded["labels"]


def test_rendering_leaves_the_turns_as_they_are(render: Any) -> None:
    turns = [human(f"Look. {IMAGE_TOKEN}"), gpt("Yes.")]
    before = copy.deepcopy(turns)
    render("v1", *turns)
    assert turns == before


def test_llama_2_text(render: Any, tokenizer: Any) -> None:
    rendered = render("llava_llama_2", human(f"{IMAGE_TOKEN}\nA?"), gpt("B."), human("C?"), gpt("D."))
    text = tokenizer.decode(rendered.input_ids)
    assert text.startswith("<s> [INST] <<SYS>>\nYou are a helpful language and vision assistant.")
    assert text.endswith("<</SYS>>\n\n<image> \nA? [/INST] B. </s><s> [INST] C? [/INST] D. </s>")
    assert learned_text(rendered, tokenizer) == "B. </s> D. </s>"


def test_v0_text_and_its_sliding_mask(render: Any, tokenizer: Any) -> None:
    rendered = render("v0", human("A?"), gpt("B."), human("C?"), gpt("D."))
    text = tokenizer.decode(rendered.input_ids)
    assert text.endswith("questions.\n\n### Human: A?\n### Assistant: B.\n### Human: C?\n### Assistant: D.\n### ")
    assert learned_text(rendered, tokenizer).startswith("##")  # the first two tokens of the first question
    assert learned_text(rendered, tokenizer).endswith("D.\n### ")


def test_v0_keeps_a_leading_answer_and_v1_drops_it(render: Any, tokenizer: Any) -> None:
    turns = gpt("I am first."), human("Hi"), gpt("Hello")
    assert "I am first." in tokenizer.decode(render("v0", *turns).input_ids)
    assert render("v1", *turns) == render("v1", *turns[1:])


def test_the_two_v1_systems_differ_by_one_word() -> None:
    v1, llava_v1 = get_template("v1"), get_template("llava_v1")
    assert v1.system.replace("user", "human") == llava_v1.system != v1.system


@pytest.mark.parametrize(
    "turns",
    [
        [human("A?"), gpt("B."), human("C?")],
        [human("A?"), gpt("")],
        [human("Say ASSISTANT: now"), gpt("B.")],
        [human("A?"), gpt("The end token is </s> here.")],
        [human("What is <unk>?"), gpt("B.")],
    ],
    ids=["no answer", "empty answer", "separator in a question", "end token in an answer", "padding in a question"],
)
def test_what_llava_masks_whole(turns: list[dict[str, str]], render: Any) -> None:
    assert set(render("v1", *turns).labels) == {IGNORE_INDEX}


def test_an_empty_answer_among_others_teaches_nothing_itself(render: Any, tokenizer: Any) -> None:
    rendered = render("v1", human("A?"), gpt(""), human("C?"), gpt("D."))
    assert "A? ASSISTANT:USER: C? ASSISTANT: D.</s>" in tokenizer.decode(rendered.input_ids)
    assert learned_text(rendered, tokenizer) == "D.</s>"


def test_the_image_is_never_a_label(render: Any, image_token_id: int) -> None:
    for name in NAMES:
        rendered = render(name, human(f"A {IMAGE_TOKEN}"), gpt(f"B {IMAGE_TOKEN}"))
        assert image_token_id in rendered.input_ids
        assert image_token_id not in rendered.labels


# Any text, without what a fixed vocabulary or a template's separators would change.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<>[]"), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "ASSISTANT:" not in text
)


@settings(max_examples=60, deadline=None)
@given(rounds=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), image=st.booleans())
def test_the_learned_ids_of_v1_are_the_answers(
    rounds: list[tuple[str, str]], image: bool, tokenizer: Any, image_token_id: int
) -> None:
    turns = [turn for question, answer in rounds for turn in (human(question), gpt(answer))]
    if image:
        turns[0] = human(f"{IMAGE_TOKEN}\n{rounds[0][0]}")
    rendered = get_template("v1").render(turns, tokenizer, image_token_id)
    assert len(rendered.input_ids) == len(rendered.labels)
    assert rendered.input_ids.count(image_token_id) == int(image)
    answers = "".join(f" {answer}</s>" for _, answer in rounds)
    assert "".join(_spoken(rendered.labels, tokenizer)) == answers


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "v0"])
@settings(max_examples=8, deadline=None)
@given(rounds=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), image=st.booleans())
def test_what_is_learned_is_the_answers_and_what_ends_them(
    rounds: list[tuple[str, str]], image: bool, name: str, kind: str, tokenizers: dict[str, Any]
) -> None:
    template, tokenizer = get_template(name), tokenizers[kind]
    if name == "plain":
        rounds, image = rounds[:1], True
    turns = [turn for question, answer in rounds for turn in (human(question), gpt(answer))]
    if image:
        turns[0] = human(f"{IMAGE_TOKEN}\n{rounds[0][0]}")
    rendered = template.render(turns, tokenizer, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    end = template.split_after()[0].replace("</s>", tokenizer.eos_token)
    expected = [(answer.strip() if template.strips else answer) + end for _, answer in rounds]
    if kind.startswith("qwen2"):  # Qwen's tokenizer composes accents
        expected = [unicodedata.normalize("NFC", answer) for answer in expected]
    found = _spoken(rendered.labels, tokenizer)
    assert [answer.lstrip(" ") for answer in found] == [answer.lstrip(" ") for answer in expected]
    assert template.end_token_id(tokenizer) in (None, rendered.labels[-1], rendered.labels[-2])


@pytest.mark.parametrize(("name", "kind"), CHATS)
@settings(max_examples=8, deadline=None)
@given(rounds=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), image=st.booleans())
def test_a_prompt_is_how_the_conversation_begins(
    rounds: list[tuple[str, str]], image: bool, name: str, kind: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    turns = [turn for question, answer in rounds for turn in (human(question), gpt(answer))]
    if image:
        turns[0] = human(f"{IMAGE_TOKEN}\n{rounds[0][0]}")
    template = get_template(name)
    prompt = template.render_prompt(turns[:-1], tokenizer, image_token_id)
    assert template.render(turns, tokenizer, image_token_id).input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize(("name", "kind"), CHATS)
@settings(max_examples=8, deadline=None)
@given(
    rounds=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    image=st.booleans(),
    listed=st.booleans(),
)
def test_the_jinja_template_equals_the_renderer(
    rounds: list[tuple[str, str]], image: bool, listed: bool, name: str, kind: str, tokenizers: dict[str, Any]
) -> None:
    template, tokenizer = get_template(name), tokenizers[kind]
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    turns, messages = [], []
    for number, (question, answer) in enumerate(rounds):
        shown = image and number == 0
        turns += [human(f"{question}\n{IMAGE_TOKEN}" if shown else question), gpt(answer)]
        content = [{"type": "text", "text": question}] + [{"type": "image"}] * shown if listed else turns[-2]["value"]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    chat = {"chat_template": template.chat_template(), "return_dict": True}
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **chat)["input_ids"]
    assert prompt == template.render_prompt(turns[:-1], tokenizer, image_token_id)
    whole = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **chat)
    rendered = template.render(turns, tokenizer, image_token_id)
    assert whole["input_ids"] == rendered.input_ids
    # LLaVA's mask of v0 is not "the answers"; and transformers finds no token at the space in front of an answer where
    # the tokenizer's offsets leave spaces out.
    space_is_lost = kind.startswith("llama_3") and template.assistant.before.endswith(" ")
    if name != "v0" and not space_is_lost:
        assert whole["assistant_masks"] == [int(label != IGNORE_INDEX) for label in rendered.labels]


def test_the_jinja_template_takes_another_system_prompt(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for name, expected in (
        ("v1", "<s>Be brief. USER: Hi ASSISTANT:"),
        ("llama_2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"),
    ):
        text = tokenizer.apply_chat_template(
            messages, chat_template=get_template(name).chat_template(), tokenize=False, add_generation_prompt=True
        )
        assert text == expected


def test_the_jinja_template_of_captions(tokenizer: Any, image_token_id: int) -> None:
    template = get_template("plain")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]}],
        chat_template=template.chat_template(),
        return_dict=True,
        add_generation_prompt=True,
    )["input_ids"]
    assert ids == [tokenizer.bos_token_id, image_token_id]
    assert ids == template.render_prompt([human(f"{IMAGE_TOKEN}\nDescribe it.")], tokenizer, image_token_id)


def test_another_models_begin_and_end_tokens(tokenizer: Any, image_token_id: int) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    rendered = get_template("v1").render([human("A?"), gpt("B.")], tokenizer, image_token_id)
    assert rendered.input_ids[0] == tokenizer.bos_token_id
    assert rendered.labels[-1] == tokenizer.eos_token_id == rendered.input_ids[-1]


@pytest.mark.parametrize("name", ["v1", "llama_2", "mistral_instruct"])
def test_a_begin_token_that_is_the_end_token_too(name: str, tokenizer: Any, image_token_id: int) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": "</s>"})
    rendered = get_template(name).render([human("A?"), gpt("B."), human("C?"), gpt("D.")], tokenizer, image_token_id)
    assert learned_text(rendered, tokenizer).replace(" ", "") == "B.</s>D.</s>"


@pytest.mark.parametrize(
    ("name", "turns", "problem", "culprit"),
    [
        ("v1", [], Problem.ROLES, "empty"),
        ("v1", [gpt("Only me.")], Problem.ROLES, "empty"),
        ("v1", [human("A?"), human("B?")], Problem.ROLES, "Turn 2 of 2 is from 'human'"),
        (
            "v1",
            [gpt("A"), human("B?"), {"from": "system", "value": "C"}],
            Problem.ROLES,
            "Turn 3 of 3 is from 'system'",
        ),
        ("v0", [human("A?"), gpt("B"), gpt("C")], Problem.ROLES, "Turn 3 of 3 is from 'gpt'"),
        ("v1", [gpt("A"), gpt("B")], Problem.ROLES, "Turn 2 of 2 is from 'gpt'"),
        ("plain", [gpt(IMAGE_TOKEN), human("B")], Problem.ROLES, "Turn 1 of 2 is from 'gpt'"),
        ("llama_2", [human(""), gpt("B")], Problem.ROLES, "first question is empty"),
        ("plain", [human("A?"), gpt("B")], Problem.IMAGE_COUNT, IMAGE_TOKEN),
        ("plain", [human(IMAGE_TOKEN), gpt("B"), human("C?"), gpt("D")], Problem.ROLES, "not 4 turns"),
    ],
)
def test_a_wrong_conversation_is_refused(
    name: str, turns: list[dict[str, str]], problem: Problem, culprit: str, render: Any
) -> None:
    with pytest.raises(SampleError, match=culprit) as caught:
        render(name, *turns)
    assert caught.value.problem is problem


def test_a_prompt_must_end_with_a_question(tokenizer: Any, image_token_id: int) -> None:
    with pytest.raises(SampleError, match="end with a question"):
        get_template("v1").render_prompt([human("A?"), gpt("B.")], tokenizer, image_token_id)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("default", "v0"),
        ("llava_v0", "v0"),
        ("vicuna_v1", "v1"),
        ("v0_plain", "plain"),
        ("llava_v1", "llava_v1"),
        ("llava_mistral_instruct", "mistral_instruct"),
        ("chatml", "qwen2"),
        ("qwen_1_5", "qwen2"),
        ("llava_llama_3", "llava_llama_3"),
    ],
)
def test_llavas_names_are_known(alias: str, name: str) -> None:
    assert get_template(alias).name == name


def test_an_unknown_template_is_refused_with_the_names() -> None:
    with pytest.raises(UserError, match=r"'v7'.*plain, v0, v1"):
        get_template("v7")


def test_a_template_of_another_family_is_refused(tokenizers: dict[str, Any]) -> None:
    for name, kind, token in (("qwen2", "llama_3", "im_start"), ("llama_3", "llama", "start_header_id")):
        tokenizer = tokenizers[kind]
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        with pytest.raises(UserError, match=rf"'{name}' needs the token '<.{token}.>'"):
            get_template(name).render_prompt([human("A?")], tokenizer, image_token_id)


def test_a_tokenizer_without_the_image_token_is_refused(image_token_id: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with pytest.raises(UserError, match=IMAGE_TOKEN):
        get_template("v1").render([human("A?"), gpt("B.")], tokenizer, image_token_id)


def _spoken(labels: list[int], tokenizer: Any) -> list[str]:
    """The text of each run of learned labels, its leading space kept."""
    runs: list[list[int]] = []
    previous = IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
        previous = label
    # A leading token keeps the decoder from stripping the run's own first space.
    lead = tokenizer.convert_tokens_to_ids(":")
    return [tokenizer.decode([lead, *run], clean_up_tokenization_spaces=False)[1:] for run in runs]
