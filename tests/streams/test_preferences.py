"""Pairs of a chosen and a rejected answer: found by looking at the file, and every mistake named with its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merganser import AnswerSpec, Example, Task
from merganser.errors import InputError
from merganser.streams.checks import check_task
from merganser.streams.dpo import METRIC, DpoOptions
from merganser.streams.loading import load_stream, load_task
from merganser.streams.options import StreamOptions
from merganser.streams.preferences import shared_prefix
from merganser.streams.task_options import TaskOptions

ROWS = [
    {"prompt": "Is water wet?", "chosen": " It is. ", "rejected": "No.", "id": 7},
    {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."},
]


def write(folder: Path, rows: Sequence[Any], name: str = "pairs.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return name


def load(folder: Path, rows: Sequence[Any], **options: Any) -> Task:
    return load_task(TaskOptions(name="pairs", train=write(folder, rows), **options), folder)


def test_found_by_looking_at_the_file(tmp_path: Path) -> None:
    task = load(tmp_path, ROWS, dpo={"beta": 0.3})
    assert task.train == [
        Example("Is water wet?", "It is.", "7", rejected="No."),
        Example("Two and two?", "Four.", rejected="Five."),
    ]
    assert task.spec == AnswerSpec(metric=METRIC, dpo=DpoOptions(beta=0.3))
    assert task.spec.labels is None
    plain = load(tmp_path, [{**row, "output": "yes"} for row in ROWS], input="prompt")
    assert plain.spec.dpo is None
    assert [example.output for example in plain.train] == ["yes", "yes"]
    asked = load(tmp_path, [{**row, "output": "yes"} for row in ROWS], kind="preference")
    assert asked.train == task.train
    assert asked.fingerprint() != task.fingerprint()  # another beta
    other = load(tmp_path, [{**row, "rejected": "Never."} for row in ROWS])
    assert other.fingerprint() != asked.fingerprint()


def test_fields_and_prompts(tmp_path: Path) -> None:
    rows = [{"q": "Who?", "context": "A cat.", "good": "The cat.", "bad": "A dog."}]
    prompt = "{context}\n{input}"
    task = load(tmp_path, rows, kind="preference", input="q", chosen="good", rejected="bad", prompt=prompt)
    assert task.train == [Example("A cat.\nWho?", "The cat.", rejected="A dog.")]


def test_the_prompt_is_the_beginning_that_both_answers_share(tmp_path: Path) -> None:
    talk = "\n\nHuman: Hi\n\nAssistant: "
    rows = [{"chosen": f"{talk}Good day.", "rejected": f"{talk}Go away."}]
    assert load(tmp_path, rows).train == [Example(talk, "Good day.", rejected="Go away.")]
    assert shared_prefix("a bc", "a bd") == "a "
    assert shared_prefix("ab", "ac") == ""


def turns(*texts: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


ANSWERS = [[{"role": "assistant", "content": text}] for text in ("Good day.", "Go away.")]
SHAREGPT = [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(("Hi", "Good day."))]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": turns("Hi"), "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
        {"prompt": turns("Hi"), "chosen": "Good day.", "rejected": "Go away."},
        {"prompt": "Hi", "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
        {"prompt": "Hi", "chosen": turns("Hi", "Good day."), "rejected": turns("Hi", "Go away."), "score": 1},
        {"chosen": turns("Hi", "Good day."), "rejected": turns("Hi", "Go away.")},
        {"chosen": json.dumps(turns("Hi", "Good day.")), "rejected": json.dumps(turns("Hi", "Go away."))},
        {"chosen": SHAREGPT, "rejected": turns("Hi", "Go away.")},
    ],
    ids=["lists", "prompt", "answers", "answers with the prompt", "no prompt", "JSON text", "sharegpt"],
)
def test_lists_of_messages(row: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = load(tmp_path, [row]).train
    assert (pair.input, pair.output, pair.rejected) == ("Hi", "Good day.", "Go away.")
    assert pair.conversation is not None
    assert pair.conversation.messages() == turns("Hi", "Good day.")
    other = pair.with_rejected()
    assert (other.output, other.rejected) == ("Go away.", None)
    assert other.conversation is not None
    assert other.conversation.messages() == turns("Hi", "Go away.")


def test_a_pair_after_several_turns(tmp_path: Path) -> None:
    row = {
        "chosen": turns("Hi", "Yes?", "Help", "Sure."),
        "rejected": turns("Hi", "Yes?", "Help", "No."),
        "system": "Be kind.",
    }
    (pair,) = load(tmp_path, [row]).train
    assert pair.conversation is not None
    assert [turn.role for turn in pair.conversation.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.trained for turn in pair.conversation.turns if turn.role == "assistant"] == [False, True]
    stored = Task("t", [pair], spec=AnswerSpec(dpo=DpoOptions()))
    assert stored.fingerprint() != Task("t", [replace(pair, rejected="x")], spec=stored.spec).fingerprint()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": turns("Hi", "a"), "rejected": turns("Ho", "b")}, "differ before their last turn"),
        ({"chosen": turns("Hi", "a"), "rejected": turns("Hi", "a ")}, "the chosen and the rejected answer are equal"),
        ({"chosen": turns("Hi", "a"), "rejected": turns("Hi")}, "the conversation ends before its answer"),
        ({"chosen": turns("Hi", "a"), "rejected": None}, "the conversation is missing"),
        (
            {
                "chosen": turns("Hi", "a"),
                "rejected": [*turns("Hi"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
            },
            "more than a text",
        ),
    ],
)
def test_bad_conversations_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        load(tmp_path, [{"chosen": turns("Hi", "yes"), "rejected": turns("Hi", "no")}, row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": " x"}, "line 3: the chosen and the rejected answer are equal"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, "line 3: field 'rejected' is empty"),
        ({"prompt": "a", "chosen": "x"}, "line 3: there is no field 'rejected'"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "line 3: field 'prompt' is empty"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, [*ROWS, row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "yes", "rejected": "no"}, "there is no prompt, and the answers do not begin alike"),
        ({"chosen": "Well yes", "rejected": "Well "}, "one answer is the beginning of the other"),
    ],
)
def test_answers_without_a_prompt(row: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, [row])
    task = load(tmp_path, [row, {"chosen": "Well yes", "rejected": "Well no"}], on_bad_rows="skip")
    assert task.train == [Example("Well ", "yes", rejected="no")]
    assert len(task.remarks) == 1


def test_settings_that_preferences_have_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind 'preference' has no 'metric'"):
        TaskOptions(name="a", train="a.jsonl", kind="preference", metric="f1")
    with pytest.raises(InputError, match="rows are preferences, which have no 'labels'"):
        load(tmp_path, ROWS, labels=["a", "b"])
    write(tmp_path, [{"input": "a", "output": "b"}], "plain.jsonl")
    with pytest.raises(InputError, match="there is no field 'chosen'"):
        load(tmp_path, ROWS, kind="preference", dev="plain.jsonl")
    with pytest.raises(InputError, match="some examples have no rejected answer"):
        load(tmp_path, ROWS, dev="plain.jsonl")
    split = StreamOptions.model_validate({"split": {"train": write(tmp_path, ROWS), "tasks": 2}})
    with pytest.raises(InputError, match="a split needs classes, and these rows are preferences"):
        load_stream(split, tmp_path)


def test_tasks_made_in_python() -> None:
    pair = Example("a", "b", rejected="c")
    with pytest.raises(InputError, match="is no task of preferences"):
        check_task(Task("t", [pair]))
    check_task(Task("t", [pair], spec=AnswerSpec(dpo=DpoOptions())))
    with pytest.raises(InputError, match="are equal"):
        check_task(Task("t", [Example("a", "b", rejected="b ")], spec=AnswerSpec(dpo=DpoOptions())))
    with pytest.raises(InputError, match="A task of preferences has no labels"):
        AnswerSpec(("a", "b"), dpo=DpoOptions())
    with pytest.raises(InputError, match="scored by preference_accuracy, not by 'f1'"):
        AnswerSpec(metric="f1", dpo=DpoOptions())
