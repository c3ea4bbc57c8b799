"""Conversations: turns of a system, a user, an assistant and tools, as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn.

    Attributes:
        role: who speaks.
        content: the text; empty only in an assistant's turn that calls tools.
        extra: a JSON object of what templates read besides: ``tool_calls``, ``name``, ``reasoning_content`` ...; empty
            where there is nothing.
        trained: whether the loss is on this turn; of assistant turns alone.
    """

    role: Role
    content: str
    extra: str = ""
    trained: bool = True

    def message(self) -> dict[str, Any]:
        """Return the turn as a template reads it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.extra) if self.extra else {})}

    @property
    def text(self) -> str:
        """Return the content, or the calls of tools as JSON where there is none."""
        calls = self.message().get("tool_calls")
        return self.content if self.content or not calls else compact_json(calls)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in their order, as checked by :func:`merganser.streams.turns.read_turns`.

    As the content of an example its last turn is the assistant's answer. As a model's input (:attr:`context`) it ends
    before an answer.

    Attributes:
        turns: a system's first, if there is one; then users, assistants and tools.
        tools: a JSON list of the tools that the template describes to the model; empty where there are none.
    """

    turns: tuple[Turn, ...]
    tools: str = ""

    @property
    def answer(self) -> Turn:
        """Return the last turn."""
        return self.turns[-1]

    @property
    def context(self) -> Conversation:
        """Return everything before the last turn."""
        return replace(self, turns=self.turns[:-1])

    def messages(self) -> list[dict[str, Any]]:
        """Return the turns as a template reads them."""
        return [turn.message() for turn in self.turns]

    def tool_list(self) -> list[dict[str, Any]] | None:
        """Return the tools as a template reads them; ``None``: there are none."""
        return json.loads(self.tools) if self.tools else None

    def with_system(self, text: str) -> Conversation:
        """Return the conversation with a system prompt, unless it has one."""
        if self.turns and self.turns[0].role == "system":
            return self
        return replace(self, turns=(Turn("system", text), *self.turns))

    @property
    def has_system(self) -> bool:
        """Whether the first turn is a system prompt."""
        return bool(self.turns) and self.turns[0].role == "system"

    def __str__(self) -> str:
        """Return what a model without a chat template reads: the content of a single turn, else role by role."""
        if len(self.turns) == 1 and not self.tools:
            return self.turns[0].text
        tools = [f"tools: {self.tools}"] if self.tools else []
        return "\n\n".join([*tools, *(f"{turn.role}: {turn.text}" for turn in self.turns)])

    def texts(self) -> Iterator[str]:
        """Yield every text that may reach a model."""
        yield from (turn.content for turn in self.turns)
        yield from (turn.extra for turn in self.turns if turn.extra)
        if self.tools:
            yield self.tools

    def stored(self) -> dict[str, Any]:
        """Return the conversation as JSON values; :func:`restored` reads them back."""
        messages = [
            turn.message() | ({} if turn.trained or turn.role != "assistant" else {"train": False})
            for turn in self.turns
        ]
        return {"messages": messages} | ({"tools": json.loads(self.tools)} if self.tools else {})

    @property
    def identity(self) -> str:
        """Return a text that differs between conversations that a model reads or learns differently."""
        return compact_json(self.stored())


def restored(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> Conversation:
    """Return the conversation that :meth:`Conversation.stored` returned."""
    return Conversation(tuple(map(_restored_turn, messages)), compact_json(list(tools)) if tools else "")


def _restored_turn(message: Mapping[str, Any]) -> Turn:
    extra = {key: value for key, value in message.items() if key not in ("role", "content", "train")}
    trained = bool(message.get("train", True))
    return Turn(message["role"], message["content"], compact_json(extra) if extra else "", trained)


def compact_json(value: Any) -> str:
    """Return one form of equal values: keys in their order, no white space, no escapes of letters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
