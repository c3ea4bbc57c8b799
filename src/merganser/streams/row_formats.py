"""The forms in which data sets write their rows: a field of texts and one of answers, instructions, conversations.

Which form a file has is found by looking at its first rows. Every row is then read in that form, and what does not fit
is a bad row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from merganser.errors import InputError
from merganser.streams.bad_rows import EMPTY, BadCell, Problem
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.decoding import UNICODE_REMEDY, unicode_problem
from merganser.streams.formats import Table
from merganser.streams.prompts import fill_prompt, prompt_fields
from merganser.streams.task import Example
from merganser.streams.task_options import RowFormat, TaskSettings
from merganser.streams.turns import BadTurns, is_conversation, only_last_trained, read_tools, read_turns

LOOKED_AT = 100
"""Rows of a file that are looked at to find its form."""

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
"""Fields in which data sets have conversations."""

INPUTS: dict[RowFormat, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction",),),
    "prompt_completion": (("prompt",),),
    "question_answer": (("question",),),
    "superni": (("Definition", "input"), ("definition", "inputs")),
}
"""Form -> fields of the text of which a file has all; one of several choices."""

BESIDE = {"alpaca": ("input", "context"), "question_answer": ("context",)}
"""Form -> fields that are part of the text where a file has them: after an instruction, before a question."""

OUTPUTS: dict[RowFormat, tuple[str, ...]] = {
    "alpaca": ("output", "response"),
    "prompt_completion": ("completion", "response"),
    "question_answer": ("answer", "response"),
    "superni": ("output", "targets"),
}
"""Form -> fields of the answer, of which the first that a file has is read."""


class RowReader(ABC):
    """Makes examples of the rows of one table.

    Attributes:
        required: fields that at least one row must have.
    """

    required: Sequence[str]

    def __init__(self, table: Table, options: TaskSettings) -> None:
        self.table = table
        self.options = options

    @abstractmethod
    def read(self, index: int) -> Example:
        """Make an example of row ``index`` (0-based).

        Raises:
            BadCell: the row cannot be one.
        """

    def remarks(self) -> list[str]:
        """Return what to know about the rows that were read."""
        return []

    def identity(self, index: int) -> str:
        """Return the field ``id`` of a row as text; empty where there is none."""
        value = self.table.rows[index].get("id")
        identity = "" if value is None else str(value)
        if problem := unicode_problem(identity):
            raise BadCell(self.table.where(index), Problem("field 'id' is no valid Unicode", UNICODE_REMEDY, problem))
        return identity


class FieldsReader(RowReader):
    """The fields that the options ``input``, ``output`` and ``prompt`` name."""

    def __init__(self, table: Table, options: TaskSettings) -> None:
        super().__init__(table, options)
        self.inputs = [options.input] if isinstance(options.input, str) else options.input
        fields = prompt_fields(options.prompt)
        # A column called "input" needs no special case: unless 'input' names another, {input} is that column.
        self.plain = [name for name in fields if name != "input"]
        self.joined = self.inputs if "input" in fields else []
        self.required = [*self.plain, *self.joined, options.output]
        self.blank: Counter[str] = Counter()

    def read(self, index: int) -> Example:
        names = list(dict.fromkeys([*self.plain, *self.joined]))
        if len(names) == 1:
            texts = {names[0]: self.table.text(index, names[0])}
        else:  # an empty field beside a filled one, as the input of many instructions
            texts = {name: self.table.text(index, name, optional=True) for name in names}
            _refuse_blank(self.table, index, texts)
        values = {name: texts[name] for name in self.plain}
        if self.joined:
            values["input"] = "\n".join(texts[name] for name in self.joined if texts[name])
        text = fill_prompt(self.options.prompt, values)
        blank = [name for name in names if not texts[name]]
        self.blank.update(blank)
        answer = _one_answer(self.table, index, self.options.output)
        return Example(text.strip() if blank else text, answer, self.identity(index))

    def remarks(self) -> list[str]:
        rows = len(self.table.rows)
        return [f"field '{name}' is empty in {number:,} of {rows:,} rows" for name, number in self.blank.items()]


class InstructionReader(RowReader):
    """Instructions: a text of one to three fields, and an answer. Empty parts of the text are dropped.

    A system prompt or earlier turns beside them (``system``, ``history``), and a prompt and completion that are
    lists of messages, make a conversation.
    """

    def __init__(self, table: Table, options: TaskSettings, form: RowFormat) -> None:
        super().__init__(table, options)
        self.form = form
        columns = _columns(table)
        choices = INPUTS[form]
        chosen = next((names for names in choices if set(names) <= columns.keys()), choices[0])
        beside = tuple(name for name in BESIDE.get(form, ()) if name in columns)
        self.names = (*beside, *chosen) if form == "question_answer" else (*chosen, *beside)
        self.output = next((name for name in OUTPUTS[form] if name in columns), OUTPUTS[form][0])
        self.required = [*chosen, self.output]
        self.several = 0

    def read(self, index: int) -> Example:
        row = self.table.rows[index]
        if is_conversation(row.get(self.names[0])) or is_conversation(row.get(self.output)):
            return self._messages(index)
        texts = {name: self._text(index, name) for name in self.names if name in row}
        _refuse_blank(self.table, index, texts or dict.fromkeys(self.names, ""))
        text = "\n".join(part for part in texts.values() if part)
        answer = self._answer(index)
        system, history = row.get("system"), row.get("history")
        if not system and not history:
            return Example(text, answer, self.identity(index))
        earlier = _history(self.table, index, history)
        last = [Turn("user", text), Turn("assistant", answer)]
        messages = [turn.message() for turn in [*earlier, *last]]
        return _conversation(self, index, messages, system if isinstance(system, str) else "")

    def _text(self, index: int, name: str) -> str:
        """Return a part of the text; SuperNI has its definition in a list."""
        value = self.table.rows[index][name]
        if self.form == "superni" and isinstance(value, list) and all(isinstance(part, str) for part in value):
            return "\n".join(value)
        return self.table.text(index, name, optional=True)

    def _answer(self, index: int) -> str:
        value = self.table.value(index, self.output)
        if self.form == "superni" and isinstance(value, list) and len(value) > 1:
            self.several += 1
            return self.table.text_of(index, self.output, value[0])
        return _one_answer(self.table, index, self.output)

    def _messages(self, index: int) -> Example:
        """Read a prompt and a completion that are lists of messages; the loss is on the completion."""
        parts = []
        for name in (self.names[0], self.output):
            value = self.table.value(index, name)
            if isinstance(value, str):
                value = [{"role": "assistant" if name == self.output else "user", "content": value}]
            parts.append(value)
        prompt, completion = parts
        if not isinstance(prompt, list) or not isinstance(completion, list):
            remedy = "Write both as lists of messages, or both as texts."
            raise BadCell(self.table.where(index), Problem("a prompt or completion is no list of messages", remedy))
        untrained = [{**message, "train": False} if isinstance(message, dict) else message for message in prompt]
        return _conversation(self, index, [*untrained, *completion], "")

    def remarks(self) -> list[str]:
        if not self.several:
            return []
        rows = len(self.table.rows)
        return [f"{self.several:,} of {rows:,} rows have several answers, of which the first is learned and scored"]


class ConversationReader(RowReader):
    """Conversations: a list of messages, and perhaps a system prompt and tools beside it."""

    def __init__(self, table: Table, options: TaskSettings, form: RowFormat) -> None:
        super().__init__(table, options)
        named = options.input if isinstance(options.input, str) and options.input != "input" else None
        columns = _columns(table)
        usual = CONVERSATIONS if form == "messages" else (CONVERSATIONS[1], *CONVERSATIONS)
        self.field = named or next((name for name in usual if name in columns), usual[0])
        self.required = [self.field]

    def read(self, index: int) -> Example:
        system = self.table.rows[index].get("system")
        return _conversation(
            self, index, self.table.value(index, self.field), system if isinstance(system, str) else ""
        )


def _conversation(reader: RowReader, index: int, messages: Any, system: str) -> Example:
    """Make an example of messages."""
    table = reader.table
    try:
        turns = read_turns(messages, system)
        tools = read_tools(table.rows[index].get("tools"))
    except BadTurns as error:
        raise BadCell(table.where(index), error.problem) from error
    if reader.options.train_turns == "last":
        turns = only_last_trained(turns)
    return Example.of_conversation(Conversation(turns, tools), reader.identity(index), table.places[index])


def _history(table: Table, index: int, history: Any) -> list[Turn]:
    """Read earlier questions and answers: a list of pairs of texts."""
    if not history:
        return []
    pairs = history if isinstance(history, list) else []
    texts = [text for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 for text in pair]
    if len(texts) != 2 * len(pairs) or not texts or any(not isinstance(text, str) for text in texts):
        remedy = 'Write [["question", "answer"], ...], or remove it.'
        raise BadCell(table.where(index), Problem("field 'history' is no list of pairs of texts", remedy))
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def _refuse_blank(table: Table, index: int, texts: dict[str, str]) -> None:
    """Refuse a row in which every part of the text is empty."""
    if not any(texts.values()):
        names = " and ".join(f"'{name}'" for name in texts)
        kind = f"field {names} is empty" if len(texts) == 1 else f"the fields {names} are empty"
        raise BadCell(table.where(index), Problem(kind, "Give the row a text, or remove it.", code=EMPTY))


def _one_answer(table: Table, index: int, name: str) -> str:
    """Return an answer, which may be a list of one text."""
    value = table.value(index, name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return table.text_of(index, name, value[0])
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        remedy = "Give the row one answer; with 'format: superni' the first is taken."
        raise BadCell(table.where(index), Problem(f"field '{name}' has several answers", remedy, f"{len(value)}"))
    return table.text(index, name)


def _columns(table: Table) -> dict[str, Any]:
    """Return the fields of the first rows, with the first value of each that is not missing."""
    columns: dict[str, Any] = {}
    for row in table.rows[:LOOKED_AT]:
        for name, value in row.items():
            if columns.get(str(name)) in (None, "", []):
                columns[str(name)] = value
    return columns


def _forms(columns: dict[str, Any]) -> dict[RowFormat, str]:
    """Return the forms that rows with these fields may have -> the fields by which each is recognised."""
    forms: dict[RowFormat, str] = {}
    for name in CONVERSATIONS:
        if is_conversation(columns.get(name)):
            shape: RowFormat = (
                "sharegpt" if '"from"' in str(columns[name]) or "'from'" in str(columns[name]) else "messages"
            )
            forms.setdefault(shape, name)
    for form, choices in INPUTS.items():
        names = next((names for names in choices if set(names) <= columns.keys()), None)
        output = next((name for name in OUTPUTS[form] if name in columns), None)
        if names is not None and output is not None:
            forms[form] = ", ".join((*names, output))
    if {"input", "output"} <= columns.keys() and not {"alpaca", "superni"} & forms.keys():
        forms["fields"] = "input, output"
    return forms


def choose_format(table: Table, options: TaskSettings) -> RowFormat:
    """Return the form of a table's rows.

    With ``format: auto``, ``fields`` where the options name any field; else what the first rows look like.

    Raises:
        InputError: they look like several forms.
    """
    if options.format != "auto":
        return options.format
    if options.names_fields:
        return "fields"
    forms = _forms(_columns(table))
    if len(forms) > 1:
        listed = "; ".join(f"{form} ({fields})" for form, fields in forms.items())
        raise InputError(
            f"{table.shown}: its fields fit several formats: {listed}.",
            f"Name one, such as format: {next(iter(forms))}; or name the fields with 'input' and 'output'.",
        )
    return next(iter(forms), "fields")


def row_reader(table: Table, options: TaskSettings) -> tuple[RowReader, str]:
    """Return what makes examples of a table's rows, and a remark where the form was found by looking.

    Raises:
        InputError: see :func:`choose_format`.
    """
    form = choose_format(table, options)
    remark = "" if form == "fields" or options.format != "auto" else f"read as format: {form}"
    if form in INPUTS:
        return InstructionReader(table, options, form), remark
    if form in ("messages", "sharegpt"):
        return ConversationReader(table, options, form), remark
    return FieldsReader(table, options), remark
