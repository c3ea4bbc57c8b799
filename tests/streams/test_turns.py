from __future__ import annotations

import json
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.streams.conversation import Conversation, Turn, restored
from merganser.streams.task import Example, Task
from merganser.streams.turns import (
    BadTurns,
    conversation_of,
    is_conversation,
    only_last_trained,
    read_tools,
    read_turns,
)

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = (Turn("system", "Be kind."), Turn("user", "hello"), Turn("assistant", "hi"))


@pytest.mark.parametrize(
    "value",
    [
        [SYSTEM, USER, ASSISTANT],
        [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "hello"},
            {"from": "gpt", "value": "hi"},
        ],
        json.dumps([SYSTEM, USER, ASSISTANT]),
        {"role": ["developer", "user", "assistant"], "content": ["Be kind.", "hello", "hi"]},
        [SYSTEM, {**USER, "content": [{"type": "text", "text": "hello"}]}, {**ASSISTANT, "tool_calls": None}],
    ],
    ids=["messages", "sharegpt", "json text", "one list per key", "parts, nulls"],
)
def test_every_form_gives_the_same_turns(value: Any) -> None:
    assert is_conversation(value)
    assert read_turns(value) == TURNS


def test_a_system_prompt_beside_the_messages_and_an_empty_one() -> None:
    assert read_turns([USER, ASSISTANT], system="Be kind.") == TURNS
    assert read_turns([SYSTEM, USER, ASSISTANT], system="Other.") == TURNS
    assert read_turns([{**SYSTEM, "content": ""}, USER, ASSISTANT]) == TURNS[1:]


def test_calls_of_tools() -> None:
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    openai = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
            ],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
        ASSISTANT,
    ]
    sharegpt = [
        {"from": "human", "value": "hello"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "hi"},
    ]
    turns = read_turns(openai)
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1].message()["tool_calls"] == [{"type": "function", "id": "c1", "function": call}]
    assert turns[2].message() == {"role": "tool", "content": "12:00", "tool_call_id": "c1"}
    assert read_turns(sharegpt)[1].message()["tool_calls"] == [{"type": "function", "function": call}]
    assert read_turns(openai[:2])[-1].text == json.dumps(
        turns[1].message()["tool_calls"], separators=(",", ":")
    )  # an answer may be a call
    tools = read_tools([{"type": "function", "function": {"name": "clock", "strict": None}}])
    assert Conversation(turns, tools).tool_list() == [{"type": "function", "function": {"name": "clock"}}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([USER], "ends before its answer: its last turn is 'user'"),
        ([ASSISTANT, USER, ASSISTANT], "begins with a turn of the role 'assistant'"),
        ([USER, USER, ASSISTANT], "two turns of the role 'user' follow each other: turn 2"),
        ([USER, ASSISTANT, SYSTEM, USER, ASSISTANT], "a turn of the role 'system' comes after 'assistant': turn 3"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "a turn of the role 'tool' comes after 'user': turn 2"),
        ([USER, {**ASSISTANT, "content": " \n"}], "an assistant turn is empty: turn 2"),
        ([{**USER, "content": ""}, ASSISTANT], "a user turn is empty: turn 1"),
        ([USER, {**ASSISTANT, "role": "asistant"}], "a role does not exist: 'asistant' in turn 2"),
        ([USER, {"content": "hi"}], "a message has no role: turn 2 has 'content'"),
        ([{**USER, "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT], "'image_url' in turn 1"),
        ([USER, {**ASSISTANT, "content": {"a": 1}}], "a content is not a text: turn 2 has a dict"),
        ([USER, {**ASSISTANT, "content": "\ud800"}], "no valid Unicode"),
        ([USER, {**ASSISTANT, "weight": 0}], "no assistant turn is to be trained"),
        ([USER, {**ASSISTANT, "weight": 0.5}], "'weight' of a turn is neither 0 nor 1"),
        ([], "the conversation is empty"),
        ([SYSTEM], "no turns of a user"),
        (None, "the conversation is missing"),
        ("hello", "not valid JSON"),
        (["hello"], "a message is not an object"),
        ([{"from": "human", "value": "x"}, {"from": "function_call", "value": "{"}], "a function call is not valid"),
    ],
)
def test_what_cannot_be_learned(value: Any, message: str) -> None:
    with pytest.raises(BadTurns, match=message) as error:
        read_turns(value)
    assert error.value.problem.remedy_text()


def test_which_turns_are_trained() -> None:
    turns = read_turns([USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT])
    assert [turn.trained for turn in turns] == [True, False, True, True]
    turns = only_last_trained(read_turns([USER, ASSISTANT, USER, ASSISTANT]))
    assert [turn.trained for turn in turns if turn.role == "assistant"] == [False, True]


def test_an_example_of_a_conversation() -> None:
    conversation = Conversation(TURNS, read_tools([{"name": "clock"}]))
    example = Example.of_conversation(conversation, "7", row=3)
    assert (example.output, example.read) == ("hi", conversation.context)
    assert example.input == 'tools: [{"name":"clock"}]\n\nsystem: Be kind.\n\nuser: hello'
    assert str(Conversation(TURNS[1:2])) == "hello"  # a single question is read as it is
    stored = json.loads(json.dumps(conversation.stored()))
    assert restored(stored["messages"], stored["tools"]) == conversation
    untrained = Conversation(only_last_trained(read_turns([USER, ASSISTANT, USER, ASSISTANT])))
    assert restored(**untrained.stored()) == untrained
    trained = Conversation(read_turns([USER, ASSISTANT, USER, ASSISTANT]))
    tasks = [Task("t", [Example.of_conversation(c)]) for c in (untrained, trained)]
    assert tasks[0].fingerprint() != tasks[1].fingerprint()  # with the loss on other turns it is another task


def test_messages_in_python() -> None:
    assert conversation_of([USER]) == Conversation((Turn("user", "hello"),))
    with pytest.raises(InputError, match="begins with a turn of the role 'assistant'"):
        conversation_of([ASSISTANT])
