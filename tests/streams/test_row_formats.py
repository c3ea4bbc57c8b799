"""Chat and instruction files as people have them, and which form is found in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.streams.bad_rows import BadRowsError
from merganser.streams.loading import load_task
from merganser.streams.task import Task
from merganser.streams.task_options import TaskOptions

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}
CHAT = {"messages": [USER, ASSISTANT], "id": 7}
SHARE = {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}


def load(folder: Path, rows: Any, **more: Any) -> Task:
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return load_task(TaskOptions.model_validate({"name": "t", "train": "train.json", **more}), folder)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (CHAT, "messages"),
        ({"conversations": CHAT["messages"]}, "messages"),
        (SHARE, "sharegpt"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion"),
        ({**CHAT, "prompt": "hello", "source": "web"}, "messages"),  # a prompt without a completion
    ],
)
def test_conversations_are_found_by_looking(tmp_path: Path, row: Any, form: str) -> None:
    task = load(tmp_path, [row] * 3)
    assert [(e.input, e.output) for e in task.train] == [("hello", "hi")] * 3
    conversation = task.train[0].conversation
    assert conversation is not None
    assert conversation.messages() == [USER, ASSISTANT]
    assert task.remarks[0] == f"train.json: read as format: {form}"
    assert task.labels is None  # whatever repeats itself


def test_conversations_in_parquet_and_csv(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    rows = [CHAT, {"messages": [USER, call, {"role": "tool", "content": "1"}, ASSISTANT], "id": 8}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    task = load_task(TaskOptions(name="t", train="train.parquet"), tmp_path)
    conversations = [example.conversation for example in task.train]
    assert conversations[0] is not None
    assert conversations[1] is not None
    assert conversations[0].messages() == [USER, ASSISTANT]  # without the keys of the other row
    assert conversations[1].messages()[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]
    cell = json.dumps(CHAT["messages"]).replace('"', '""')
    (tmp_path / "train.csv").write_text(f'id,messages\n1,"{cell}"\n')
    assert load_task(TaskOptions(name="t", train="train.csv"), tmp_path).train[0].conversation == conversations[0]


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n1 2", "3"),
        ({"instruction": "Greet me", "input": "", "output": "hi"}, "Greet me", "hi"),
        ({"instruction": "Greet me", "input": None, "output": "hi"}, "Greet me", "hi"),
        ({"instruction": "Greet me", "context": "", "response": "hi", "category": "x"}, "Greet me", "hi"),
        ({"prompt": "Add 1 2", "completion": " 3"}, "Add 1 2", "3"),
        ({"question": "1 + 2?", "answer": "3"}, "1 + 2?", "3"),
        ({"context": "One is 1.", "question": "1 + 2?", "answer": 3}, "One is 1.\n1 + 2?", "3"),
        ({"definition": "Add", "inputs": "1 2", "targets": ["3"]}, "Add\n1 2", "3"),
        ({"input": "a", "output": ["b"]}, "a", "b"),
    ],
)
def test_instructions_are_found_by_looking(tmp_path: Path, row: Any, text: str, answer: str) -> None:
    (example, *_) = load(tmp_path, [row] * 2).train
    assert (example.input, example.output, example.conversation) == (text, answer, None)


def test_a_task_file_of_superni(tmp_path: Path) -> None:
    file = {
        "Definition": ["Say it."],
        "Positive Examples": [],
        "Instances": [{"id": "a-1", "input": "a", "output": ["b", "c"]}, {"input": "d", "output": "e"}],
    }
    task = load(tmp_path, file)
    assert [(e.input, e.output, e.id) for e in task.train] == [("Say it.\na", "b", "a-1"), ("Say it.\nd", "e", "")]
    assert "1 of 2 rows have several answers" in task.remarks[1]


def test_a_system_prompt_or_history_beside_an_instruction(tmp_path: Path) -> None:
    row = {"instruction": "And 2?", "output": "3", "system": "Add.", "history": [["1?", "1"]]}
    conversation = load(tmp_path, [row]).train[0].conversation
    assert conversation is not None
    assert [(turn.role, turn.content) for turn in conversation.turns] == [
        ("system", "Add."),
        ("user", "1?"),
        ("assistant", "1"),
        ("user", "And 2?"),
        ("assistant", "3"),
    ]


def test_the_loss_is_on_completions_and_on_the_last_turn_where_asked(tmp_path: Path) -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    conversation = load(tmp_path, [row]).train[0].conversation
    assert conversation is not None
    assert [turn.trained for turn in conversation.turns] == [True, False, True, True]
    again = load(tmp_path, [{"messages": [USER, ASSISTANT, USER, ASSISTANT]}], train_turns="last")
    assert again.train[0].conversation == conversation


def test_an_empty_field_beside_a_filled_one(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add", "input": "1 2", "output": "3"},
        {"instruction": "Greet me", "input": "", "output": "h"},
    ]
    for how in ({"input": ["instruction", "input"]}, {"prompt": "{instruction}\n{input}"}):
        task = load(tmp_path, rows, **how)
        assert [example.input for example in task.train] == ["Add\n1 2", "Greet me"]
        assert task.remarks == ("train.json: field 'input' is empty in 1 of 2 rows",)
    with pytest.raises(BadRowsError, match="row 2: the fields 'instruction' and 'input' are empty"):
        load(tmp_path, [rows[0], {"instruction": " ", "input": "", "output": "x"}], format="alpaca")


def test_the_form_is_named_where_it_is_not_clear(tmp_path: Path) -> None:
    both = {**CHAT, "prompt": "hello", "completion": "other"}
    with pytest.raises(
        InputError, match=r"fit several formats: messages \(messages\); prompt_completion \(prompt, comp"
    ):
        load(tmp_path, [both])
    assert load(tmp_path, [both], format="prompt_completion").train[0].output == "other"
    assert load(tmp_path, [both], input="prompt", output="completion").train[0].output == "other"
    assert load(tmp_path, [{"turns": CHAT["messages"]}], format="messages", input="turns").train[0].output == "hi"
    with pytest.raises(InputError, match="there is no field 'instruction'"):
        load(tmp_path, [CHAT], format="alpaca")
    with pytest.raises(InputError, match="field 'messages' is a list, not a text") as error:
        load(tmp_path, [CHAT | {"output": "x"}], input="messages")
    assert "format: messages" in error.value.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "mesages"}, "messages"),
        ({"format": "messages", "prompt": "Q: {input}"}, "'prompt' is given"),
        ({"format": "alpaca", "input": "instruction"}, "use format: fields"),
        ({"format": "sharegpt", "image": "picture"}, "gives an 'image'"),
        ({"input": "messages", "output": "messages"}, "for conversations leave 'input' and 'output' out"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskOptions.model_validate({"name": "t", "train": "train.json", **options})


def test_all_faults_of_conversations_are_named_at_once_or_skipped(tmp_path: Path) -> None:
    rows = [CHAT] * 3 + [
        {"messages": [ASSISTANT, USER]},
        {"messages": [USER, {**ASSISTANT, "content": ""}]},
        {"messages": [USER]},
        {"messages": [USER, ASSISTANT, USER]},
        {"other": 1},
    ]
    with pytest.raises(BadRowsError) as caught:
        load(tmp_path, rows)
    assert caught.value.cause == (
        "train.json: 5 of 8 rows cannot be used: 1 × the conversation begins with a turn of the role 'assistant' "
        "(first: row 4); 1 × an assistant turn is empty (first: row 5, turn 2); 2 × the conversation ends before its "
        "answer (first: row 6, its last turn is 'user'); 1 × there is no field 'messages' (first: row 8, the fields "
        "are 'other')."
    )
    task = load(tmp_path, rows, on_bad_rows="skip")
    assert [example.row for example in task.train] == [1, 2, 3]
    assert "5 of 8 rows skipped" in task.remarks[0]


def test_conversations_are_free_text_unless_labels_are_asked_for(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yn"[i % 2]}]}
        for i in range(8)
    ]
    task = load(tmp_path, rows)
    assert task.labels is None
    assert "2 answers of the training conversations look like labels" in task.remarks[-1]
    assert load(tmp_path, rows, labels="train").labels == ("n", "y")
    assert load(tmp_path, rows, answer="rank").labels == ("n", "y")
