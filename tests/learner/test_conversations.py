"""A chat model learns conversations: the whole way from files to answers, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merganser import Learner
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.learner.example_store import stored_examples
from merganser.streams.loading import load_task
from merganser.streams.options import StreamOptions
from merganser.streams.task import Task
from merganser.streams.task_options import TaskOptions
from merganser.streams.watch import load_watched
from tests import tiny
from tests.learner import toys
from tests.learner.toys import Command, contents, read_json, results

DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|user|>system Be brief.<|end|>{% endif %}" + tiny.CHAT_TEMPLATE


def said(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


CHATS = {
    "films": [said(f"film {i}?", "good", "and the end?", f"a poor end {i}") for i in range(8)],
    "banks": [said(f"bank {i}?", "the market rose") for i in range(8)],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.tiny_llama(tmp_path_factory.mktemp("chat"), chat=True, pad=True)
    (folder / "chat_template.jinja").write_text(DEFAULT_SYSTEM)
    return folder


def load(folder: Path, name: str, chats: list[dict[str, Any]], **more: Any) -> Task:
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, chats)))
    given = {"name": name, "train": f"{name}.jsonl", "test": f"{name}.jsonl", "limit_test": 2, **more}
    return load_task(TaskOptions.model_validate(given), folder)


def sections(model: Path, kind: str = "causal", **training: Any) -> dict[str, Any]:
    values = toys.settings(
        model={"name": str(model), "kind": kind}, training={"steps": 2, "max_input": 64, **training}, method="replay"
    )
    del values["stream"]
    return values


class Notices(list[str]):
    """A listener that keeps what is said."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.append(event.text)


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notices]:
    """A run that has learned films and banks by replay."""
    folder, notices = tmp_path_factory.mktemp("run"), Notices()
    with Learner.open(folder / "run", listener=notices, **sections(model)) as learner:
        learner.learn_stream([load(folder, name, chats) for name, chats in CHATS.items()])
    return folder / "run", notices


def test_the_memory_keeps_conversations_and_rehearses_them(
    run: tuple[Path, Notices], model: Path, tmp_path: Path
) -> None:
    folder, _ = run
    (line, *_) = map(json.loads, (folder / "tasks" / "01-films" / "memory.jsonl").read_text().splitlines())
    assert line["messages"] in [chat["messages"] for chat in CHATS["films"]]
    assert "input" not in line
    with Learner.open(folder, read_only=True) as learner:
        kept = [example for _, example in stored_examples(learner.session.rows[1], "memory")]
        assert [e.learned for e in kept] == [
            e.learned for e in load(tmp_path, "films", CHATS["films"]).train if e in kept
        ]
        assert learner.learned == ["films", "banks"]
    # What was interrupted after the first task gives the same bytes.
    with Learner.open(tmp_path / "again", **sections(model)) as learner:
        learner.learn(load(tmp_path, "films", CHATS["films"]))
    with Learner.open(tmp_path / "again") as learner:
        learner.learn(load(tmp_path, "banks", CHATS["banks"]))
    again, before = results(tmp_path / "again"), results(folder)
    same = [name for name in before if name.endswith(("memory.jsonl", "signals.jsonl", ".safetensors"))]
    assert {name: again[name] for name in same} == {name: before[name] for name in same}


def test_conversations_can_be_watched(run: tuple[Path, Notices], tmp_path: Path) -> None:
    folder = shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "manners.jsonl").write_text("\n".join(map(json.dumps, CHATS["films"][:3])))
    watched = {"name": "manners", "test": "manners.jsonl", "group": "instruction"}
    stream = StreamOptions.model_validate({"watch": [watched]})
    with Learner.open(folder) as learner:
        learner.watch(*load_watched(stream, tmp_path))
        learner.learn(load(tmp_path, "shares", CHATS["banks"]))
    start = read_json(folder / "tasks" / "03-shares" / "row.json")
    assert [(each["name"], each["test_examples"]) for each in start["watched"]] == [("manners", 3)]
    assert set(start["earlier"]["0"]) == {"shares", "manners"}
    lines = (folder / "tasks" / "03-shares" / "watch.jsonl").read_text().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [chat["messages"] for chat in CHATS["films"][:3]]
    with Learner.open(folder, read_only=True) as learner:
        assert learner.evaluate()["manners"].value == learner.scores.score(-1, "manners").value  # type: ignore[union-attr]


def test_the_templates_own_system_prompt_is_said_once_and_recorded(run: tuple[Path, Notices]) -> None:
    folder, notices = run
    remark = "the model's chat template puts in its own, 'Be brief.'; model.system sets another"
    assert len([text for text in notices if remark in text]) == 1
    for row in ("01-films", "02-banks"):
        assert any(remark in text for text in read_json(folder / "tasks" / row / "row.json")["tasks"][0]["remarks"])


def test_answers(
    run: tuple[Path, Notices], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    merganser = Command(monkeypatch, capsys)
    asked = merganser("ask", folder, "film 3?")
    with Learner.open(folder, read_only=True) as learner:
        messages = [{"role": "user", "content": "film 3?"}]
        (text,), (chat,) = learner.predict(["film 3?"]), learner.predict([messages])
        assert text == chat
        assert asked.out.strip() == text.text
        longer = [*messages, {"role": "assistant", "content": "good"}]
        assert learner.predict([[*longer, *messages]])[0] != chat
        with pytest.raises(InputError, match="Conversation 1 ends with an answer"):
            learner.predict([longer])
        with pytest.raises(InputError, match="begins with a turn of the role 'assistant'"):
            learner.predict([longer[1:]])


def test_conversations_that_the_template_fails_on_are_named_with_their_rows(model: Path, tmp_path: Path) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + tiny.CHAT_TEMPLATE
    other = tiny.tiny_llama(tmp_path / "other", chat=True, pad=True)
    (other / "chat_template.jinja").write_text(template)
    mixed = [*CHATS["banks"][:3], {}, *CHATS["films"][:2]]
    task = load(tmp_path, "mixed", mixed, on_bad_rows="skip", limit_test=None)
    with Learner.open(tmp_path / "run", **sections(other)) as learner:
        with pytest.raises(InputError, match=r"train: 2 of 5 rows cannot be used: 2 × the chat template") as error:
            learner.learn(task)
        assert "TemplateError: one turn only (first: row 5)" in error.value.cause
        assert "Task 'mixed', test" in error.value.cause
        load(tmp_path, "general", CHATS["films"])
        task = load(tmp_path, "banks", CHATS["banks"], mix={"file": "general.jsonl", "share": 0.3})
        with pytest.raises(InputError, match="mix: 8 of 8 rows cannot be used"):
            learner.learn(task)
    assert not (tmp_path / "run" / "tasks").exists() or not any((tmp_path / "run" / "tasks").glob("0*"))


def test_shortened_conversations_are_counted(model: Path, tmp_path: Path) -> None:
    notices = Notices()
    options = sections(model, max_input=24, max_target=4)
    with Learner.open(tmp_path / "run", listener=notices, **options) as learner:
        learner.learn(load(tmp_path, "films", CHATS["films"]))
        truncated = learner.session.rows[-1].file.tasks[0].truncated
    assert truncated == {"train_inputs": 8, "train_answers": 8, "test_inputs": 2, "test_answers": 2}
    (said,) = (text for text in notices if "max_input" in text)
    assert "8 of 8 training inputs, 2 of 2 test inputs are shortened by their earliest turns to 24 tokens" in said


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("matcher", "A matcher chooses a label for one text, and the task has conversations"),
        ("causal", "has no chat template"),
    ],
)
def test_models_without_a_chat_template(tmp_path: Path, kind: str, message: str) -> None:
    with Learner.open(tmp_path / "run", **sections(toys.model_folder(kind), kind)) as learner:
        before = contents(tmp_path / "run")
        with pytest.raises(InputError, match=message) as error:
            learner.learn(load(tmp_path, "films", CHATS["films"]))
        assert error.value.remedy
        assert contents(tmp_path / "run") == before


def test_an_encoder_decoder_reads_conversations_role_by_role(tmp_path: Path) -> None:
    notices = Notices()
    with Learner.open(
        tmp_path / "run", listener=notices, **sections(toys.model_folder("seq2seq"), "seq2seq")
    ) as learner:
        task = load(tmp_path, "films", CHATS["films"])
        learner.learn(task)
        (features,) = learner.session.backbone.features(task.train[:1], task.spec)
        read = learner.session.backbone.tokenizer.decode(features["input_ids"], skip_special_tokens=True)
        assert read == "user: film 0?\n\nassistant: good\n\nuser: and the end?"
    assert any("conversations are read as text, role by role" in text for text in notices)
