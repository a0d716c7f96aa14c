"""The one place that turns a conversation into token ids and labels, for training and inference alike.

A template is data: the text around each turn. Rendering lays the turns out, tokenises the whole once, and labels the
tokens that begin inside an answer's stretch of the text, so that ids and labels cannot drift apart. Text that spells a
special token becomes that token in a message too, as in LLaVA; what is learned goes by the text's place all the same.
Under LLaVA's templates every id and label equals LLaVA's; where LLaVA does something else than label the answers,
`_masks_whole` and `_count_v0_labels` say so.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.jinja import BOS, EOS, SYSTEM, to_jinja
from llava_sp.data.problems import Problem, SampleError
from llava_sp.utils.errors import UserError
from llava_sp.utils.tokenization import restore_sentencepiece_prefix

Turns = Sequence[dict[str, str]]
"""LLaVA's `conversations`: `{"from": "human" or "gpt", "value": text}`, taking turns."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the language model sees it.

    Attributes:
        input_ids: Token ids, L of them, with ONE image id for each `<image>`.
        labels: The same ids where the model learns, `IGNORE_INDEX` elsewhere; L.
    """

    input_ids: list[int]
    labels: list[int]


class Message(NamedTuple):
    """What one speaker says."""

    speaker: str  # "human" or "gpt"
    text: str


@dataclass(frozen=True)
class Role:
    """The text around a speaker's message.

    Attributes:
        before: What precedes the message. Its trailing spaces belong to the message, as they do in the tokens.
        after: What follows the message.
        empty: What stands for the whole turn if the message is empty; None if nothing special does.
    """

    before: str
    after: str
    empty: str | None = None

    @property
    def open(self) -> str:
        """The turn's beginning, up to where the speaker starts."""
        return self.before.rstrip(" ")


@dataclass(frozen=True)
class Template:
    """How a conversation is laid out as text, and which of it is learned.

    Attributes:
        name: The name by which configuration and checkpoints refer to it.
        system: The system prompt.
        opening: What precedes everything else.
        human: The layout of questions.
        assistant: The layout of answers.
        stop: Text that ends an answer. What follows it in the assistant's turn is not learned.
        heading: Where the system prompt stands before the first turn; left out if there is none.
        preamble: Where it stands inside the first question's turn; left out if there is none.
        ending: What follows the last turn.
        tokens: Special tokens in these texts that the tokenizer must have.
        strips: Whether messages lose the white space around them. They must where a line break precedes them, or a
            byte-level tokenizer would join both into one token, half question and half answer.
        drops_leading_answer: Whether a conversation that begins with an answer loses that answer.
        splits_at: What stands between a question and its answer, where LLaVA cuts a round in two; see `_masks_whole`.
        counts_turns: Whether labels follow LLaVA's count of v0, see `_count_v0_labels`.
        caption_only: Whether there is one question, of which only `<image>` is kept (stage 1).
    """

    name: str
    system: str
    opening: str
    human: Role
    assistant: Role
    stop: str
    heading: str = ""
    preamble: str = ""
    ending: str = ""
    tokens: tuple[str, ...] = ()
    strips: bool = False
    drops_leading_answer: bool = True
    splits_at: str = ""
    counts_turns: bool = False
    caption_only: bool = False

    def render(self, turns: Turns, tokenizer: Any, image_token_id: int) -> Rendered:
        """Tokenises a whole conversation and labels what is learned of it.

        Args:
            turns: LLaVA's `conversations`.
            tokenizer: A fast tokenizer that has `<image>` as a special token. If it is a LLaMA tokenizer, its prefix
                space is made right in place, see `restore_sentencepiece_prefix`.
            image_token_id: The id of `<image>`.

        Raises:
            SampleError: The conversation is empty, or its turns are not human, gpt, human, gpt ...
            UserError: The tokenizer does not fit.
        """
        self._check_tokenizer(tokenizer, image_token_id)
        messages = self._messages(turns)
        if self.caption_only and len(messages) != 2:
            raise SampleError(
                Problem.ROLES,
                f"The template {self.name!r} takes one question and one answer, not {len(messages)} turns.",
            )
        layout = self._in_words_of(tokenizer)
        text, answers = layout._lay_out(messages)
        text += layout.ending
        input_ids, starts = _tokenise(text, tokenizer)
        if self.counts_turns:
            labels = layout._count_v0_labels(input_ids, messages, tokenizer)
        elif self.splits_at and self._masks_whole(text, input_ids, tokenizer):
            labels = [IGNORE_INDEX] * len(input_ids)
        else:
            labels = _label(input_ids, starts, answers)
        for position, token in enumerate(input_ids):
            if token == image_token_id:
                labels[position] = IGNORE_INDEX
        return Rendered(input_ids, labels)

    def render_prompt(
        self, turns: Turns, tokenizer: Any, image_token_id: int, *, as_written: bool = False
    ) -> list[int]:
        """Tokenises a conversation that ends with a question, up to where the answer begins.

        Other arguments, and errors, are those of `render`.

        Args:
            turns: The conversation.
            tokenizer: The LLM's tokenizer.
            image_token_id: Id of `<image>`.
            as_written: Whether `<image>` and the white space around a turn stay as they are. LLaVA trims them when it
                trains, and not when it evaluates.

        Returns:
            The token ids; unless `as_written`, `render` begins with the same ones when the answer is there.
        """
        self._check_tokenizer(tokenizer, image_token_id)
        return _tokenise(self._in_words_of(tokenizer).prompt_text(turns, as_written=as_written), tokenizer)[0]

    def prompt_text(self, turns: Turns, *, as_written: bool = False) -> str:
        """Returns the text that `render_prompt` tokenises, with LLaMA's names of the begin and end tokens."""
        messages = self._messages(turns, as_written=as_written)
        if messages[-1].speaker != "human":
            raise SampleError(Problem.ROLES, "A prompt must end with a question, a turn from 'human'.")
        return self._lay_out(messages)[0] + self.assistant.open

    def chat_template(self) -> str:
        """Returns the same layout as a Jinja template, for `apply_chat_template` and serving engines."""
        return to_jinja(self)

    def end_token_id(self, tokenizer: Any) -> int | None:
        """Returns the id of the token that ends an answer; None if mere text ends it, as in `plain` and `v0`."""
        if self.stop == EOS:
            return tokenizer.eos_token_id
        return tokenizer.convert_tokens_to_ids(self.stop) if self.stop in self.tokens else None

    def split_after(self) -> tuple[str, str]:
        """Splits what follows an answer into what is learned, up to `stop`, and the rest."""
        before, stop, rest = self.assistant.after.partition(self.stop)
        return before + stop, rest

    def _check_tokenizer(self, tokenizer: Any, image_token_id: int) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer {tokenizer.name_or_path!r} is a slow one; a fast one is needed to place labels."
            )
        if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != image_token_id:
            raise UserError(
                f"The tokenizer {tokenizer.name_or_path!r} does not have {IMAGE_TOKEN!r} as token {image_token_id}: "
                "add it as a special token."
            )
        for token in self.tokens:
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise UserError(
                    f"The template {self.name!r} needs the token {token!r}, and the tokenizer "
                    f"{tokenizer.name_or_path!r} does not have it. Choose the template of this LLM's own family."
                )
        restore_sentencepiece_prefix(tokenizer)

    def _in_words_of(self, tokenizer: Any) -> "Template":
        """Returns this template with the tokenizer's own begin and end tokens."""

        def own(text: str) -> str:
            return text.replace(BOS, tokenizer.bos_token or "").replace(EOS, tokenizer.eos_token)

        def own_role(role: Role) -> Role:
            return Role(own(role.before), own(role.after), role.empty)

        if (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS):
            return self
        human, assistant = own_role(self.human), own_role(self.assistant)
        return replace(self, opening=own(self.opening), human=human, assistant=assistant, stop=own(self.stop))

    def _messages(self, turns: Turns, *, as_written: bool = False) -> list[Message]:
        """Checks the turns and, unless `as_written`, brings their text into LLaVA's form, with `<image>` in front."""
        skipped = int(self.drops_leading_answer and len(turns) > 0 and turns[0]["from"] == "gpt")
        if len(turns) == skipped:
            raise SampleError(Problem.ROLES, "The conversation is empty.")
        may_lead = not (self.drops_leading_answer or self.caption_only)
        speakers = ("gpt", "human") if may_lead and turns[0]["from"] == "gpt" else ("human", "gpt")
        messages = []
        for number, turn in enumerate(turns[skipped:]):
            speaker = speakers[number % 2]
            if turn["from"] != speaker:
                where = f"Turn {number + skipped + 1} of {len(turns)}"
                raise SampleError(Problem.ROLES, f"{where} is from {turn['from']!r} and should be from {speaker!r}.")
            text = turn["value"] if as_written else lead_with_image(turn["value"])
            messages.append(Message(speaker, text.strip() if self.strips else text))
        question = messages[0].text
        if self.caption_only:
            if IMAGE_TOKEN not in question:
                raise SampleError(Problem.IMAGE_COUNT, f"The template {self.name!r} needs {IMAGE_TOKEN} to begin with.")
            messages[0] = Message("human", IMAGE_TOKEN)
        if self.preamble and not question:
            raise SampleError(Problem.ROLES, f"The first question is empty; the template {self.name!r} needs one.")
        return messages

    def _lay_out(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Lays out the turns; returns the text, and the stretch of it that is learned of each answer.

        A stretch goes from the space before the answer to what ends it.
        """
        text = self._head()
        answers: list[tuple[int, int]] = []
        _, rest = self.split_after()
        for number, message in enumerate(messages):
            begin, turn = len(text), self._turn(message, first=number == 0)
            text += turn
            if message.speaker == "gpt" and (message.text or self.assistant.empty is None):
                answers.append((begin + len(self.assistant.open), len(text) - len(rest)))
        return text, answers

    def _head(self) -> str:
        """Lays out what precedes the first turn."""
        return self.opening + (self.heading.replace(SYSTEM, self.system) if self.system else "")

    def _turn(self, message: Message, first: bool) -> str:
        """Lays out one turn."""
        role = self.human if message.speaker == "human" else self.assistant
        if not message.text and role.empty is not None:
            return role.empty
        preamble = self.preamble.replace(SYSTEM, self.system) if first and self.system else ""
        return role.before + preamble + message.text + role.after

    def _masks_whole(self, text: str, input_ids: list[int], tokenizer: Any) -> bool:
        """Tells whether LLaVA learns nothing from the whole sample.

        It takes what lies between two end tokens for a round, and cuts it in two at `splits_at`. That does not come out
        even after a question without an answer, and when a message itself holds one of the separators (but where it is
        the round's only one, as after an empty question: LLaVA then learns what follows it, we the whole answer). It
        also pads with <unk>, if there is one; if that is written in a message, it spoils LLaVA's count.
        """
        *rounds, rest = text.split(tokenizer.eos_token)
        if tokenizer.bos_token == tokenizer.eos_token:  # as in GPT-NeoX's: nothing lies in front of a begin token
            rounds = [one for one in rounds if one]
        uneven = bool(rest) or any(one.count(self.splits_at) != 1 for one in rounds)
        unknown = tokenizer.unk_token_id  # that of Qwen's tokenizers is an end token
        return uneven or (tokenizer.pad_token_id == unknown != tokenizer.eos_token_id and unknown in input_ids)

    def _count_v0_labels(self, input_ids: list[int], messages: list[Message], tokenizer: Any) -> list[int]:
        """LLaVA's labels for v0: all is learned but the opening and, roughly, the questions.

        LLaVA tokenises each turn by itself and adds up the lengths. Each counts a begin token that the whole does not
        have there, so the mask slides by about a token a turn; and it leaves out a question's first two tokens.
        """

        def length(text: str) -> int:
            return len(_tokenise(text, tokenizer)[0])

        labels = list(input_ids)
        position = length(self._head())
        labels[:position] = [IGNORE_INDEX] * position
        for message in messages:
            end = position + length((tokenizer.bos_token or "") + self._turn(message, first=False))
            if message.speaker == "human":
                masked = range(len(labels))[position + 2 : end]
                labels[masked.start : masked.stop] = [IGNORE_INDEX] * len(masked)
            position = end
        return labels


def lead_with_image(text: str) -> str:
    """Moves `<image>` to the front of a turn, on a line of its own, as LLaVA does; a turn without it stays as it is."""
    if IMAGE_TOKEN not in text:
        return text
    return f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()


def _tokenise(text: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the token ids, and where in the text each token starts."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded.input_ids, [start for start, _ in encoded.offset_mapping]


def _label(input_ids: list[int], starts: list[int], stretches: list[tuple[int, int]]) -> list[int]:
    """Labels each token that begins inside one of the stretches of text with itself."""
    labels = [IGNORE_INDEX] * len(input_ids)
    for begin, end in stretches:
        learned = slice(bisect_left(starts, begin), bisect_left(starts, end))
        labels[learned] = input_ids[learned]
    return labels
