"""A chat template in Ollama's language, made from what the tokenizer's own template renders.

Ollama runs templates of Go (``text/template``), not of Jinja. For a model that it imports, it takes a template of its
own if the model's differs by fewer than 100 characters from one in a list (``template/index.json`` in
https://github.com/ollama/ollama); otherwise it sends the turns of a conversation without any marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merganser.models.chat_template import ChatTemplate
from merganser.streams.conversation import Conversation, Role, Turn

_SYSTEM, _ASKED, _SAID, _AGAIN = "Quokka", "Wombat", "Numbat", "Bilby"
"""Contents that no template has a reason to change, or to have in itself."""


@dataclass(frozen=True)
class Marks:
    """The marks that a chat template puts around turns, each a fixed text.

    Attributes:
        begin: before everything.
        default: after it where no system prompt is given: the template's own.
        around: role -> before and after a turn of it. Without ``system`` the template has no such turns.
        answer: where the next answer begins.
    """

    begin: str
    default: str
    around: dict[Role, tuple[str, str]]
    answer: str

    def texts(self) -> list[str]:
        """Return all the fixed texts."""
        return [self.begin, self.default, self.answer, *(text for pair in self.around.values() for text in pair)]

    def render(self, turns: Sequence[Turn]) -> str:
        """Return what the template makes of these turns, up to where the next answer begins."""
        default = "" if turns[0].role == "system" else self.default
        marked = (self.around[turn.role][0] + turn.content + self.around[turn.role][1] for turn in turns)
        return f"{self.begin}{default}{''.join(marked)}{self.answer}"

    def go(self) -> str:
        """Return the template in Ollama's language.

        White space counts: every line break is one of the text, and no action removes any.
        """
        default = f"{{{{ if not .System }}}}{self.default}{{{{ end }}}}" if self.default else ""
        turns = [f'if eq .Role "{role}" }}}}{a}{{{{ .Content }}}}{b}' for role, (a, b) in self.around.items()]
        cases = "{{ else ".join(turns)
        return f"{self.begin}{default}{{{{ range .Messages }}}}{{{{ {cases}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def marks_of(template: ChatTemplate, tokenizer: Any) -> Marks | None:
    """Return the marks of a chat template; ``None`` if it does more than to put fixed texts around the turns.

    They are read off a few conversations and tried on others: what they make of each must be what the template does,
    without the token of the beginning if the tokenizer, and so Ollama, adds it by itself.

    Raises:
        InputError: the template does not end in time.
    """
    asked, said = Turn("user", _ASKED), Turn("assistant", _SAID)
    system, again = Turn("system", _SYSTEM), Turn("user", _AGAIN)
    tried = [(asked, said, again), (system, asked, said, again), (asked,), (system, asked)]
    tried += [(asked, said, again, Turn("assistant", "No"), Turn("user", "Last"))]
    bos = _added_beginning(tokenizer)
    prompts = [
        answer["text"].removeprefix(bos) if "text" in answer else None
        for answer in template.prompts([Conversation(turns) for turns in tried])
    ]
    (whole,) = template.wholes([Conversation((asked, said))])
    if prompts[0] is None or "text" not in whole:
        return None
    ended = whole["text"].rpartition(_SAID)[2]
    if not prompts[0].partition(_SAID)[2].startswith(ended):  # some templates end every conversation with a token
        ended = ended.removesuffix(str(tokenizer.eos_token))
    marks = _read_off(prompts[0], prompts[1], ended)
    if marks is None or any("{{" in part for part in marks.texts()):
        return None
    for turns, text in zip(tried, prompts, strict=True):
        if text is not None and marks.render(turns) != text:
            return None
    return marks


def _added_beginning(tokenizer: Any) -> str:
    """Return the token that the tokenizer puts before every text; empty: none."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _read_off(text: str, with_system: str | None, ended: str) -> Marks | None:
    """Return the marks in two rendered conversations of three turns, the second one with a system prompt before them.

    Args:
        ended: what follows the last answer of a whole conversation.
    """
    first, found_1, rest = text.partition(_ASKED)
    middle, found_2, rest = rest.partition(_SAID)
    between, found_3, last = rest.partition(_AGAIN)
    if not (found_1 and found_2 and found_3 and between.startswith(ended)):
        return None
    before_user = between.removeprefix(ended)
    if not first.endswith(before_user):
        return None
    # Nearly all templates end the turns of all roles alike; else what both texts after a question have in common.
    after_user = ended if middle.startswith(ended) and last.startswith(ended) else _common(middle, last)
    around: dict[Role, tuple[str, str]] = {
        "user": (before_user, after_user),
        "assistant": (middle.removeprefix(after_user), ended),
    }
    begin, default = first.removesuffix(before_user), ""
    if with_system is not None:
        start, marker, rest = with_system.partition(_SYSTEM)
        after, _, _ = rest.partition(_ASKED)
        if not marker or not after.endswith(before_user):
            return None
        if not start.startswith(begin):  # the template has a system prompt of its own
            begin, default = "", begin
        around = {"system": (start.removeprefix(begin), after.removesuffix(before_user)), **around}
    return Marks(begin, default, around, last.removeprefix(after_user))


def _common(first: str, second: str) -> str:
    """Return the longest common beginning."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]
