"""Token ids of conversations, and which of them have a loss.

The tokens are those of the whole rendered text. The assistant's text in it is found by the template's own marks
(``{% generation %}``), else by rendering the turns before each answer. Of a conversation longer than the input length
the earliest exchanges are left out, each from a turn of the user to the next; the system prompt and the last answer
stay.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from merganser.errors import InputError, first_line
from merganser.models.base import Lengths
from merganser.models.chat_template import ChatTemplate
from merganser.models.parts import Parts
from merganser.models.truncation import CHUNK
from merganser.streams.bad_rows import Problem
from merganser.streams.conversation import Conversation, Turn

CACHED_TOKENS = 1 << 24
"""Tokens of encoded conversations that are kept: they are checked, counted and trained one after the other."""

_OTHER_MODEL = "Use a model whose chat template renders turns one after the other"
_REMEDIES = {
    "marks": f"{_OTHER_MODEL}, or remove the marks {{% generation %}} from its template.",
    "begins": f"{_OTHER_MODEL}.",
    "changes": f"{_OTHER_MODEL}, or set train_turns: last to train the last answers alone.",
}
_NO_LOSS = "Use a larger training.max_input, give the last answer weight 1, or remove the row."


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids up to where an answer begins.

    ``conversation`` is what they were made of; ``cut``: earlier exchanges, or the end of a text, were left out.
    """

    ids: list[int]
    conversation: Conversation
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as token ids.

    Attributes:
        ids: up to the end of the last answer.
        spans: first token and last token + 1 of each part with a loss.
        start: first token of the last answer.
        cut, answer_cut: whether the input, or the last answer, is longer than the lengths.
    """

    ids: array[int]
    spans: tuple[tuple[int, int], ...]
    start: int
    cut: bool
    answer_cut: bool


class ChatTokens:
    """Encodes conversations for one tokenizer.

    Args:
        tokenizer: with a chat template.
        name: of the model, for messages.
        system: the system prompt of conversations that have none.
        lengths: longest prompt and longest answer.
        ends: token ids at which the model ends an answer.
    """

    def __init__(self, tokenizer: Any, name: str, system: str | None, lengths: Lengths, ends: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate.of(tokenizer, name)
        self.system = system
        self.lengths = lengths
        self.added = {*tokenizer.added_tokens_decoder, *ends}
        self._cache: dict[Conversation, Encoded | Problem] = {}
        self._cached = 0
        self._default_system: str | None = None

    # -- prompts ---------------------------------------------------------------------------------------------------

    def prompts(self, contexts: Sequence[Conversation]) -> list[Prompt | Problem]:
        """Encode conversations up to where the next answer begins, at most ``lengths.input`` tokens.

        Raises:
            InputError: the template alone is longer, or does not end in time.
        """
        contexts = [self._with_system(context) for context in contexts]
        made = self._render(contexts)
        long = [i for i, prompt in enumerate(made) if isinstance(prompt, Prompt) and self._too_long(prompt)]
        for i, prompt in zip(long, self._shortened([contexts[i] for i in long]), strict=True):
            made[i] = replace(prompt, cut=True) if isinstance(prompt, Prompt) else prompt
        return made

    def prompt_ids(self, contexts: Sequence[Conversation]) -> list[list[int]]:
        """Return the token ids of :meth:`prompts`.

        Raises:
            InputError: as there; also a conversation that the template does not render.
        """
        ids = []
        for prompt in self.prompts(contexts):
            if isinstance(prompt, Problem):
                raise InputError(f"{str(prompt)[0].upper()}{str(prompt)[1:]}.", prompt.remedy_text())
            ids.append(prompt.ids)
        return ids

    def _with_system(self, conversation: Conversation) -> Conversation:
        return conversation if self.system is None else conversation.with_system(self.system)

    def _too_long(self, prompt: Prompt | Problem) -> bool:
        return isinstance(prompt, Prompt) and len(prompt.ids) > self.lengths.input

    def _render(self, contexts: Sequence[Conversation]) -> list[Prompt | Problem]:
        """Render and tokenise prompts, however long."""
        answers = self.template.prompts(contexts)
        rows = iter(self._tokens([answer["text"] for answer in answers if "text" in answer]))
        return [
            Prompt(next(rows), context) if "text" in answer else _fails(answer)
            for answer, context in zip(answers, contexts, strict=True)
        ]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = []
        for start in range(0, len(texts), CHUNK):
            part = list(texts[start : start + CHUNK])
            rows += self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        return rows

    # -- too long --------------------------------------------------------------------------------------------------

    def _shortened(self, contexts: Sequence[Conversation]) -> list[Prompt | Problem]:
        """Leave out as few of the earliest exchanges as needed: a binary search in all conversations at once."""
        suffixes = [_suffixes(context) for context in contexts]
        low, high = [1] * len(contexts), [len(choices) for choices in suffixes]
        made: dict[int, Prompt | Problem] = {}
        while active := [i for i in range(len(contexts)) if low[i] < high[i]]:
            middle = {i: (low[i] + high[i]) // 2 for i in active}
            rendered = self._render([suffixes[i][middle[i]] for i in active])
            for i, prompt in zip(active, rendered, strict=True):
                if self._too_long(prompt):
                    low[i] = middle[i] + 1
                else:
                    high[i], made[i] = middle[i], prompt
        # Where even the last exchange is too long, a text in it is cut.
        return [made[i] if i in made else self._cut(choices[-1]) for i, choices in enumerate(suffixes)]

    def _cut(self, context: Conversation) -> Prompt | Problem:
        """Cut the longest text of a user or a tool at its end; leave the system prompt out where it takes all."""
        without = replace(context, turns=context.turns[1:])
        for candidate in [context, without] if context.has_system else [context]:
            prompt = self._cut_longest(candidate)
            if prompt is not None:
                return prompt
        raise InputError(
            f"The chat template alone takes more than the input length of {self.lengths.input} tokens.",
            "Use a larger input length.",
        )

    def _cut_longest(self, context: Conversation) -> Prompt | Problem | None:
        """Return the prompt with a text cut as far as needed; ``None`` where nothing of the text would be left."""
        texts = {i: turn.content for i, turn in enumerate(context.turns) if turn.role in ("user", "tool")}
        encoded = self.tokenizer(
            list(texts.values()), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = dict(zip(texts, encoded["offset_mapping"], strict=True))
        longest = max(offsets, key=lambda i: len(offsets[i]))
        room = len(offsets[longest])
        (prompt,) = self._render([context])
        while isinstance(prompt, Prompt) and self._too_long(prompt):
            room -= len(prompt.ids) - self.lengths.input
            if room < 1:
                return None
            kept = replace(context.turns[longest], content=texts[longest][: offsets[longest][room - 1][1]])
            turns = [*context.turns[:longest], kept, *context.turns[longest + 1 :]]
            (prompt,) = self._render([replace(context, turns=tuple(turns))])
        return prompt

    # -- whole conversations ---------------------------------------------------------------------------------------

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Problem]:
        """Encode conversations that end with an answer.

        Returns:
            For each its tokens, or what is wrong: the template fails, or changes turns when others follow, or no turn
            with a loss fits into the input length.

        Raises:
            InputError: the template alone is longer than the input length, or does not end in time.
        """
        new = [chat for chat in dict.fromkeys(conversations) if chat not in self._cache]
        made = {chat: self._cache[chat] for chat in conversations if chat in self._cache}
        made |= zip(new, self._encode(new), strict=True)
        if self._cached > CACHED_TOKENS:
            self._cache.clear()
            self._cached = 0
        for chat in new:
            encoded = self._cache[chat] = made[chat]
            self._cached += len(encoded.ids) if isinstance(encoded, Encoded) else 1
        return [made[chat] for chat in conversations]

    def _encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Problem]:
        prompts = self.prompts([chat.context for chat in conversations])
        whole = [
            replace(prompt.conversation, turns=(*prompt.conversation.turns, chat.answer))
            for prompt, chat in zip(prompts, conversations, strict=True)
            if isinstance(prompt, Prompt)
        ]
        answers = iter(zip(self._spans(whole), whole, strict=True))
        made: list[Encoded | Problem] = []
        for prompt in prompts:
            if isinstance(prompt, Problem):
                made.append(prompt)
                continue
            spans, chat = next(answers)
            made.append(self._lengthened(spans, chat, prompt.cut) if isinstance(spans, _Tokens) else spans)
        return made

    def _spans(self, conversations: Sequence[Conversation]) -> list[_Tokens | Problem]:
        """Render and tokenise whole conversations, and find the tokens of the assistant's turns."""
        answers = self.template.spans(conversations)
        made: list[_Tokens | Problem] = []
        for start in range(0, len(answers), CHUNK):
            part = answers[start : start + CHUNK]
            texts = [answer.get("text", "") for answer in part]
            rows = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for answer, ids, offsets in zip(part, rows["input_ids"], rows["offset_mapping"], strict=True):
                if "text" in answer:
                    made.append(self._apart(answer["text"], answer["spans"], ids, offsets))
                else:
                    made.append(_fails(answer) if "error" in answer else _rewrites(answer["rewritten"]))
        return made

    def _apart(
        self, text: str, spans: list[tuple[int, int]], ids: list[int], offsets: list[tuple[int, int]]
    ) -> _Tokens:
        """Find the tokens of the spans of a text; tokenise it in two parts if a token holds the end of the last prompt.

        The model will read that prompt by itself. Where the template has marks they decide, as in transformers.
        """
        border = spans[-1][0]
        first = _token_span(offsets, *spans[-1])[0]  # of an empty last turn, the number of all tokens
        if not self.template.marked and first < len(offsets) and offsets[first][0] < border:
            rows = self.tokenizer(
                [text[:border], text[border:]], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids = [token for row in rows["input_ids"] for token in row]
            before, after = rows["offset_mapping"]
            offsets = [*before, *((start + border, end + border) for start, end in after)]
        return _Tokens(ids, offsets, text, [_token_span(offsets, *span) for span in spans])

    def _lengthened(self, tokens: _Tokens, chat: Conversation, cut: bool) -> Encoded | Problem:
        """Place the loss: on an answer and the token that ends it, at most ``lengths.target`` tokens of the last."""
        spans = tokens.spans if self.template.marked else [self._without_space(tokens, *span) for span in tokens.spans]
        start, end = spans[-1]
        ids = tokens.ids[:end]
        if not self.template.marked and not (ids and ids[-1] in self.added):
            ids.append(self.tokenizer.eos_token_id)  # a template that does not end an answer
            end += 1
        answer_cut = end - start > self.lengths.target
        end = min(end, start + self.lengths.target)
        spans = [*spans[:-1], *([(start, end)] if chat.answer.trained else [])]
        if not spans:
            return Problem("no turn with a loss is left" if cut else "no turn has a loss", _NO_LOSS)
        return Encoded(array("l", ids[:end]), tuple(spans), start, cut, answer_cut)

    def _without_space(self, tokens: _Tokens, start: int, end: int) -> tuple[int, int]:
        """Return a span without the white space after the token that ends the answer."""
        while end - start > 1 and tokens.ids[end - 2] in self.added and tokens.is_space(end - 1):
            end -= 1
        return start, end

    # -- default system prompt -------------------------------------------------------------------------------------

    @property
    def default_system(self) -> str:
        """Return what the template puts before a conversation that has no system prompt; empty where nothing.

        It is what stands before the first turn of a user and not before the second, special tokens apart.
        """
        if self._default_system is None:
            marks = [f"turn-{number}-of-three" for number in range(3)]
            roles = ("user", "assistant", "user")
            turns = tuple(Turn(role, mark) for role, mark in zip(roles, marks, strict=True))  # type: ignore[arg-type]
            (answer,) = self.template.prompts([Conversation(turns)])
            self._default_system = _default_system(answer.get("text", ""), marks, self.tokenizer)
        return self._default_system


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a rendered conversation, with their places in its text, and the spans of answers in tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    text: str
    spans: list[tuple[int, int]]

    def is_space(self, position: int) -> bool:
        """Return whether a token is white space."""
        start, end = self.offsets[position]
        return self.text[start:end].isspace()


def _token_span(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Return the first token and the last token + 1 that hold a character of ``text[start:end]``."""
    first = bisect.bisect_right(offsets, start, key=lambda offset: offset[1])
    last = bisect.bisect_left(offsets, end, lo=first, key=lambda offset: offset[0])
    return first, last


def _suffixes(context: Conversation) -> list[Conversation]:
    """Return the conversation from each turn of the user on, the first first, all with the system prompt."""
    turns = context.turns
    system = turns[:1] if context.has_system else ()
    return [replace(context, turns=(*system, *turns[i:])) for i, turn in enumerate(turns) if turn.role == "user"]


def _fails(answer: dict[str, Any]) -> Problem:
    reason = first_line(Exception(answer["error"]))[:300].rstrip(".")
    remedy = "Correct these rows, or use a model whose chat template renders such conversations."
    return Problem(f"the chat template fails: {reason}", remedy)


def _rewrites(how: str) -> Problem:
    remedy = next(remedy for word, remedy in _REMEDIES.items() if word in how)
    return Problem(f"the chat template does not keep turns as they are: {how}", remedy)


def _default_system(text: str, marks: Sequence[str], tokenizer: Any) -> str:
    """Return the words before the first mark that do not stand between the second and the third."""
    if not all(mark in text for mark in marks):
        return ""
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        text = text.replace(token, "\0")
    before = text[: text.index(marks[0])]
    between = text[text.index(marks[1]) + len(marks[1]) : text.index(marks[2])]
    common = 0
    while common < min(len(before), len(between)) and before[-1 - common] == between[-1 - common]:
        common += 1
    words = before[: len(before) - common].replace("\0", " ")
    return words.strip().removeprefix("system").strip()


def encode_shared(chat: ChatTokens, conversations: Sequence[Conversation], parts: Parts) -> list[Encoded | Problem]:
    """Return :meth:`ChatTokens.encode`, or the tokens of the same conversations that another run has encoded.

    Where one of them cannot be encoded, nothing is shared.

    Raises:
        InputError: as there.
    """
    if not parts.shares:
        return chat.encode(conversations)
    made: list[Encoded | Problem] = []

    def encode() -> list[dict[str, Any]]:
        made.extend(chat.encode(conversations))
        if not all(isinstance(encoded, Encoded) for encoded in made):
            return []
        return [
            {
                "ids": encoded.ids.tolist(),
                "spans": encoded.spans,
                "start": encoded.start,
                "cut": int(encoded.cut),
                "answer_cut": int(encoded.answer_cut),
            }
            for encoded in made
            if isinstance(encoded, Encoded)
        ]

    rows = parts.tokens("conversations", conversations, encode)
    return made or [
        Encoded(
            array("l", row["ids"]),
            tuple((first, last) for first, last in row["spans"]),
            row["start"],
            bool(row["cut"]),
            bool(row["answer_cut"]),
        )
        for row in rows
    ]
