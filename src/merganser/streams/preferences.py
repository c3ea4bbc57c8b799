"""Rows of preferences to pairs: a prompt, a chosen answer and a rejected one, as texts or as lists of messages.

Without a field for the prompt, ``chosen`` and ``rejected`` are whole texts or conversations, which share the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merganser.streams.bad_rows import BadCell, Problem
from merganser.streams.checks import pair_problem
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.formats import Table
from merganser.streams.prompts import fill_prompt, prompt_fields
from merganser.streams.row_formats import RowReader
from merganser.streams.task import Example
from merganser.streams.task_options import TaskSettings
from merganser.streams.turns import (
    BadTurns,
    is_conversation,
    only_last_trained,
    read_messages,
    read_tools,
    read_turns,
)

PROMPT = "prompt"
"""Usual name of the field with the prompt."""


def has_preferences(table: Table, options: TaskSettings) -> bool:
    """Return whether a table's rows are preferences: as its options say, or by the names of its fields."""
    if options.kind is not None or options.format != "auto":
        return options.kind == "preference"
    fields = _fields(table)
    return {options.chosen, options.rejected} <= fields and options.output not in fields


class PreferenceReader(RowReader):
    """Pairs; the prompt is in the field that ``input`` names, or in ``prompt`` if there is no field ``input``."""

    def __init__(self, table: Table, options: TaskSettings) -> None:
        super().__init__(table, options)
        names = prompt_fields(options.prompt)
        self.plain = [name for name in names if name != "input"]
        self.inputs = _inputs(table, options) if "input" in names else []
        self.prompt_apart = bool(self.inputs) or "input" not in names
        self.required = [*self.plain, *self.inputs, options.chosen, options.rejected]

    def read(self, index: int) -> Example:
        row = self.table.rows[index]
        answers = [row.get(name) for name in (self.options.chosen, self.options.rejected)]
        if any(map(is_conversation, [*answers, *(row.get(name) for name in self.inputs)])):
            return self._conversations(index)
        chosen, rejected = (self.table.text(index, name) for name in (self.options.chosen, self.options.rejected))
        if problem := pair_problem(chosen, rejected):
            raise BadCell(self.table.where(index), problem)
        values = {name: self.table.text(index, name) for name in self.plain}
        if self.inputs:
            values["input"] = "\n".join(self.table.text(index, name) for name in self.inputs)
        elif not self.prompt_apart:
            values["input"], chosen, rejected = _split(self.table.where(index), chosen, rejected)
        prompt = fill_prompt(self.options.prompt, values)
        return Example(prompt, chosen.strip(), self.identity(index), rejected=rejected.strip())

    def _conversations(self, index: int) -> Example:
        """Read a row of which a field is a list of messages."""
        row, where = self.table.rows[index], self.table.where(index)
        if self.options.prompt != "{input}" or len(self.inputs) > 1:
            remedy = "Leave 'prompt' out, and name one field with 'input'."
            raise BadCell(where, Problem("a prompt template does not apply to a conversation", remedy))
        prompt = self.table.value(index, self.inputs[0]) if self.inputs else None
        system = row.get("system")
        try:
            chosen, rejected = (
                read_turns(_whole(prompt, self.table.value(index, name)), system if isinstance(system, str) else "")
                for name in (self.options.chosen, self.options.rejected)
            )
            tools = read_tools(row.get("tools"))
        except BadTurns as error:
            raise BadCell(where, error.problem) from error
        if problem := _turns_problem(chosen, rejected):
            raise BadCell(where, problem)
        example = Example.of_conversation(
            Conversation(only_last_trained(chosen), tools), self.identity(index), self.table.places[index]
        )
        return replace(example, rejected=rejected[-1].content.strip())


def _fields(table: Table) -> set[str]:
    return {str(name) for row in table.rows for name in row}


def _inputs(table: Table, options: TaskSettings) -> list[str]:
    """Return the fields that the prompt is joined of; none where it is a part of the answers."""
    if not isinstance(options.input, str):
        return list(options.input)
    if options.input != "input":
        return [options.input]
    fields = _fields(table)
    return [name for name in ("input", PROMPT) if name in fields][:1]


def shared_prefix(chosen: str, rejected: str) -> str:
    """Return the beginning that two texts share, up to the last white space in it: words are not cut."""
    length = 0
    for first, second in zip(chosen, rejected, strict=False):
        if first != second:
            break
        length += 1
    while length and not chosen[length - 1].isspace():
        length -= 1
    return chosen[:length]


def _split(where: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts with the same beginning into the prompt and the two answers."""
    prompt = shared_prefix(chosen, rejected)
    answers = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt.strip():
        problem = Problem("there is no prompt, and the answers do not begin alike", "Give the row a field 'prompt'.")
        raise BadCell(where, problem)
    if not all(answer.strip() for answer in answers):
        problem = Problem("one answer is the beginning of the other", "Give the row a field 'prompt', or remove it.")
        raise BadCell(where, problem)
    return prompt, *answers


def _whole(prompt: Any, answer: Any) -> list[Mapping[str, Any]]:
    """Return the messages of a prompt and an answer; an answer that is a whole conversation has the prompt in it.

    Raises:
        BadTurns: one of them is neither a text nor a list of messages.
    """
    text = isinstance(answer, str) and not is_conversation(answer)
    turns: list[Mapping[str, Any]] = [{"role": "assistant", "content": answer}] if text else read_messages(answer)
    first = turns[0].get("role", turns[0].get("from"))
    if prompt is None or (isinstance(first, str) and first.strip().lower() in ("system", "user", "human")):
        return turns
    if isinstance(prompt, str) and not is_conversation(prompt):
        return [{"role": "user", "content": prompt}, *turns]
    return [*read_messages(prompt), *turns]


def _turns_problem(chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]) -> Problem | None:
    """Return what is wrong with two conversations that end in the two answers of a pair."""
    if [turn.message() for turn in chosen[:-1]] != [turn.message() for turn in rejected[:-1]]:
        remedy = "Give both the same turns before the answer, or remove the row."
        return Problem("the chosen and the rejected conversation differ before their last turn", remedy)
    if rejected[-1].extra:
        return Problem("the rejected answer is more than a text, such as the call of a tool", "Remove the row.")
    return pair_problem(chosen[-1].text, rejected[-1].content)
