"""Read conversations as data sets write them, and say what is wrong with one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merganser.errors import InputError, nearest
from merganser.files.documents import Malformed, parse_json
from merganser.streams.bad_rows import EMPTY, Problem
from merganser.streams.conversation import Conversation, Role, Turn, compact_json
from merganser.streams.decoding import UNICODE_REMEDY, unicode_problem

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Names of roles in OpenAI's, ShareGPT's and other files -> the role that chat templates know."""

READ_BY_TEMPLATES = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "reasoning")
"""Keys of a message that templates read besides role and content; other keys are dropped."""

_SHAPES = (("role", "content"), ("from", "value"))
_FOLLOWS: dict[Role, tuple[Role, ...]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> the roles that may come next."""

_SHAPE_REMEDY = 'Write a list of messages: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'


class BadTurns(Exception):
    """A conversation that cannot be learned.

    Args:
        problem: what is wrong with it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def conversation_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> Conversation:
    """Make a conversation of messages in Python: ``[{"role": "user", "content": ...}, ...]``.

    Args:
        messages: it may end before the answer.
        tools: JSON schemas of tools, as templates read them.

    Raises:
        InputError: see :func:`read_turns`.
    """
    try:
        return Conversation(read_turns(messages, answered=False), read_tools(tools))
    except BadTurns as error:
        raise InputError(f"The conversation is wrong: {error}.", error.problem.remedy_text()) from error


def read_turns(value: Any, system: str = "", *, answered: bool = True) -> tuple[Turn, ...]:
    """Read the messages of one conversation, and check their order.

    Args:
        value: a list of messages with ``role`` and ``content``, or ``from`` and ``value``; the same as JSON text, or as
            one list per key.
        system: the system prompt where the messages have none.
        answered: whether the last turn must be an assistant's answer.

    Raises:
        BadTurns: another form, an unknown role, a content that is no text, an empty turn, roles in an impossible order,
            no answer at the end.
    """
    turns = [
        turn for number, message in enumerate(read_messages(value), 1) if (turn := _turn(message, number)) is not None
    ]
    if system.strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", system))
    _check_order(turns)
    if answered and turns[-1].role != "assistant":
        remedy = "Add the assistant's turn, or remove the row."
        raise BadTurns(
            Problem("the conversation ends before its answer", remedy, f"its last turn is '{turns[-1].role}'")
        )
    if answered and not any(turn.trained for turn in turns if turn.role == "assistant"):
        raise BadTurns(Problem("no assistant turn is to be trained", "Give one of them weight 1, or remove the row."))
    return tuple(turns)


def only_last_trained(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns with the loss on the last one alone."""
    return (*(replace(turn, trained=turn.role != "assistant") for turn in turns[:-1]), turns[-1])


def read_tools(value: Any) -> str:
    """Read a list of tools, or the same as JSON text, into JSON; an empty string where there are none.

    Raises:
        BadTurns: another form.
    """
    if isinstance(value, str):
        value = _parsed(value, "tools") if value.strip() else []
    if value is None or value == [] or value == ():
        return ""
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadTurns(Problem("'tools' is not a list of objects", "Write each tool as a JSON schema."))
    return compact_json(_without_nulls(list(value)))


def is_conversation(value: Any) -> bool:
    """Return whether a cell looks like a list of messages, whatever is wrong with it."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return False
        try:
            value = parse_json(value)
        except Malformed:
            return False
    if isinstance(value, Mapping):
        return any(isinstance(value.get(role), list) and isinstance(value.get(text), list) for role, text in _SHAPES)
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and any(role in value[0] for role, _ in _SHAPES)
    )


def read_messages(value: Any) -> list[Mapping[str, Any]]:
    """Return the list of messages of a conversation or a part of one, whatever their roles.

    Raises:
        BadTurns: another form.
    """
    if isinstance(value, str):
        value = _parsed(value, "the conversation")
    if isinstance(value, Mapping):  # as some libraries return lists of objects: one list per key
        columns = {key: cells for key, cells in value.items() if isinstance(cells, list)}
        lengths = {len(cells) for cells in columns.values()}
        if len(lengths) == 1:
            value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(value, list | tuple):
        kind = "missing" if value is None else f"a {type(value).__name__}, not a list of messages"
        raise BadTurns(Problem(f"the conversation is {kind}", _SHAPE_REMEDY))
    if not value:
        raise BadTurns(Problem("the conversation is empty", "Give it turns, or remove the row.", code=EMPTY))
    if any(not isinstance(message, Mapping) for message in value):
        raise BadTurns(Problem("a message is not an object", _SHAPE_REMEDY))
    return list(value)


def _parsed(text: str, what: str) -> Any:
    try:
        return parse_json(text)
    except Malformed as error:
        raise BadTurns(Problem(f"{what} is text, and not valid JSON", _SHAPE_REMEDY, error.reason)) from error


def _turn(message: Mapping[str, Any], number: int) -> Turn | None:
    """Read one message; ``None`` for an empty system prompt, which many files have in every row."""
    shape = next((shape for shape in _SHAPES if shape[0] in message), None)
    if shape is None:
        raise BadTurns(
            Problem("a message has no role", _SHAPE_REMEDY, f"turn {number} has {', '.join(map(repr, message))}")
        )
    name = message[shape[0]]
    if not isinstance(name, str) or name.strip().lower() not in ROLES:
        remedy = nearest(str(name), ROLES) or f"Use one of {', '.join(ROLES)}."
        raise BadTurns(Problem("a role does not exist", remedy, f"'{name}' in turn {number}"))
    name = name.strip().lower()
    role = ROLES[name]
    content = _content(message.get(shape[1]), number)
    extra = {key: message[key] for key in READ_BY_TEMPLATES if message.get(key) not in (None, [], "")}
    if name == "function_call":
        extra["tool_calls"], content = _called(content, number), ""
    if "tool_calls" in extra:
        extra["tool_calls"] = _tool_calls(extra["tool_calls"], number)
    problem = unicode_problem(content) or unicode_problem(compact_json(extra))
    if problem:
        raise BadTurns(Problem("a turn is no valid Unicode", UNICODE_REMEDY, f"turn {number}: {problem}"))
    if not content.strip():
        if role == "system":
            return None
        if "tool_calls" not in extra and role != "tool":  # a tool may well return nothing
            what = "an assistant turn" if role == "assistant" else "a user turn"
            remedy = "Give the turn a text, or remove the row."
            raise BadTurns(Problem(f"{what} is empty", remedy, f"turn {number}", code=EMPTY))
    return Turn(
        role, content, compact_json(extra) if extra else "", role != "assistant" or _is_trained(message, number)
    )


def _content(value: Any, number: int) -> str:
    """Return the text of a message; parts of text are joined by line breaks."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        kind = type(value).__name__
        raise BadTurns(Problem("a content is not a text", "Write it as a text.", f"turn {number} has a {kind}"))
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "input_text", "output_text", "str") or not isinstance(text, str):
            remedy = "Only text is learned from conversations: remove the row, or describe the part in words."
            raise BadTurns(Problem("a content has a part that is not text", remedy, f"'{kind}' in turn {number}"))
        texts.append(text)
    return "\n".join(texts)


def _called(content: str, number: int) -> Any:
    """Return the call that ShareGPT's turn ``function_call`` holds as JSON."""
    try:
        called = parse_json(content)
    except Malformed as error:
        remedy = 'Write {"name": ..., "arguments": {...}}.'
        raise BadTurns(
            Problem("a function call is not valid JSON", remedy, f"turn {number}: {error.reason}")
        ) from error
    return called if isinstance(called, list) else [called]


def _tool_calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Return calls in the form that templates read: arguments as an object, not as JSON text."""
    calls = _parsed(value, "'tool_calls'") if isinstance(value, str) else value
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        remedy = 'Write [{"type": "function", "function": {"name": ..., "arguments": {...}}}].'
        raise BadTurns(Problem("'tool_calls' is not a list of objects", remedy, f"turn {number}"))
    read = []
    for call in calls:
        function = dict(call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call})
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                function["arguments"] = json.loads(arguments)
            except ValueError:
                function["arguments"] = arguments  # some templates write the text as it is
        rest = {key: call[key] for key in ("id",) if call.get(key) is not None}
        read.append(_without_nulls({"type": "function", **rest, "function": function}))
    return read


def _without_nulls(value: Any) -> Any:
    """Remove null values of objects: Parquet files give every object the keys of all."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_trained(message: Mapping[str, Any], number: int) -> bool:
    """Return whether the loss is on a turn: OpenAI's ``weight`` (0 or 1), or ``train`` (true or false)."""
    for key in ("weight", "train"):
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True and False among them
            raise BadTurns(
                Problem(f"'{key}' of a turn is neither 0 nor 1", "Use 0 or 1.", f"{value!r} in turn {number}")
            )
        return bool(value)
    return True


def _check_order(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    first = next((role for role in roles if role != "system"), None)
    if first is None:
        raise BadTurns(
            Problem("the conversation has no turns of a user and an assistant", "Remove the row.", code=EMPTY)
        )
    if first != "user":
        remedy = "Begin with the user's turn (a greeting of the assistant can be left out), or remove the row."
        raise BadTurns(Problem(f"the conversation begins with a turn of the role '{first}'", remedy))
    for number, (before, role) in enumerate(itertools.pairwise(roles), start=2):
        if role == before and role in ("user", "assistant", "system"):
            remedy = "Join the two turns, or remove the row."
            raise BadTurns(Problem(f"two turns of the role '{role}' follow each other", remedy, f"turn {number}"))
        if role not in _FOLLOWS[before]:
            remedy = "Correct the order (system, then user and assistant in turns), or remove the row."
            raise BadTurns(Problem(f"a turn of the role '{role}' comes after '{before}'", remedy, f"turn {number}"))
