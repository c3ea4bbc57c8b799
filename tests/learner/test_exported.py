"""Exports carry their lineage, and answer as the run did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from merganser import AnswerSpec, Example, Learner, Task
from merganser.errors import InputError
from merganser.learner.exported import ExportedModel
from merganser.lineage import Lineage, read_lineage
from merganser.models.base import Answer
from tests import tiny
from tests.learner import toys

BASE = {"model_path": str(toys.model_folder())}
"""The pretrained model is a folder of this machine, whose path an export does not have."""

TEXTS = ["the team won the match", "great film with a strong story", "two and two is five"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with exports of it beside it: its adapter, the whole model, the adapter after the first task."""
    run = toys.copy_of_trained(tmp_path_factory.mktemp("exported"))
    with Learner.open(run, read_only=True) as learner:
        learner.export(run.parent / "adapter")
        learner.export(run.parent / "whole", merged=True)
        learner.export(run.parent / "earlier", after="mood")
    return run


def answers(answered: list[Answer]) -> list[tuple[str, float, str]]:
    return [(answer.text, round(answer.score, 5), answer.task) for answer in answered]


@pytest.mark.parametrize("name", ["adapter", "whole"])
def test_an_export_answers_as_the_run(name: str, trained: Path) -> None:
    model = ExportedModel.open(trained.parent / name, **(BASE if name == "adapter" else {}))
    assert model.learned == ["mood", "topic"]
    with Learner.open(trained, read_only=True) as learner:
        assert answers(model.predict(TEXTS)) == answers(learner.predict(TEXTS))
        assert answers(model.predict(TEXTS, "topic")) == answers(learner.predict(TEXTS, "topic"))
    with pytest.raises(InputError, match="no task 'truth'"):
        model.predict(TEXTS, "truth")


def test_what_was_learned_later_is_not_in_an_earlier_model(trained: Path) -> None:
    model = ExportedModel.open(trained.parent / "earlier", **BASE)
    assert model.learned == ["mood"]
    weights = "adapter/adapter_model.safetensors"
    exported = (trained.parent / "earlier" / Path(weights).name).read_bytes()
    assert exported == (trained / "tasks" / "01-mood" / weights).read_bytes()
    with Learner.open(trained, read_only=True) as learner:
        for options in ({"after": "truth"}, {"after": "mood", "task": "mood"}):
            with pytest.raises(InputError):
                learner.export(trained.parent / "none", **options)
    assert not (trained.parent / "none").exists()


def test_an_export_has_the_lineage_of_its_row(trained: Path) -> None:
    rows = [toys.read_json(trained / "tasks" / row / "row.json")["lineage"] for row in ("01-mood", "02-topic")]
    mood, topic = (Lineage.model_validate(row) for row in rows)
    adapter, whole, earlier = (read_lineage(trained.parent / name) for name in ("adapter", "whole", "earlier"))
    assert adapter is not None
    assert whole is not None
    assert earlier is not None
    assert adapter.base.name == Path(mood.base.name).name  # no path of this machine
    assert adapter.base.sha256 == topic.base.sha256
    assert adapter.data == [*mood.data, *topic.data] == whole.data
    assert (adapter.weights, whole.weights, earlier.weights) == (topic.weights, topic.weights, mood.weights)
    assert (adapter.holds, whole.holds) == ("adapter", "model")
    assert adapter.files["adapter_model.safetensors"] == topic.weights
    assert {"config.json", "model.safetensors", "labels.json", "merganser.json"} < set(whole.files)


def test_an_adapter_is_refused_on_another_base(trained: Path, tmp_path: Path) -> None:
    folder = trained.parent / "adapter"
    moved = shutil.copytree(toys.model_folder(), tmp_path / "moved")
    assert ExportedModel.open(folder, model_path=str(moved)).learned == ["mood", "topic"]
    other = tiny.tiny_bert(tmp_path / "other", seed=7, layers=1)
    with pytest.raises(InputError, match=r"trained on 'matcher' \(\w{12}\), and '.*other' \(\w{12}\) is another model"):
        ExportedModel.open(folder, model_path=str(other))
    for place in (str(tmp_path / "absent"), None):
        with pytest.raises(InputError, match=r"pretrained model of .* cannot be loaded.*--model"):
            ExportedModel.open(folder, model_path=place)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("merganser.json", None, "was not exported by Merganser"),
        ("merganser.json", "{", "is damaged"),
        ("merganser.json", '{"format": 2}', "newer version"),
        ("merganser.json", '{"format": 1}', "is damaged: model"),
        ("label_vectors.safetensors", "{", "is damaged"),
    ],
)
def test_a_damaged_export(file: str, content: str | None, why: str, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.parent / "adapter", tmp_path / "adapter")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=why):
        ExportedModel.open(folder, **BASE)


def test_free_text_and_a_model_per_task(tmp_path: Path) -> None:
    model = {"name": str(toys.model_folder("seq2seq")), "kind": "seq2seq"}
    values = toys.settings(model=model, method="single", training={"steps": 1})
    del values["stream"]
    specs = {"free": AnswerSpec(metric="rouge_l", prompt="Say: {input}"), "ranked": AnswerSpec(("a", "b"), mode="rank")}
    with Learner.open(tmp_path / "run", **values) as learner:
        for name, spec in specs.items():
            learner.learn(Task(name, [Example(f"{name} {i}", "ab"[i % 2]) for i in range(4)], spec=spec))
        learner.export(tmp_path / "first", after="free")
        learner.export(tmp_path / "last", after="ranked")
        base = model["name"]
        first, last = (ExportedModel.open(tmp_path / name, model_path=base) for name in ("first", "last"))
        assert (first.learned, last.learned) == (["free"], ["ranked"])
        assert answers(first.predict(TEXTS, "free")) == answers(learner.predict(TEXTS, "free"))
        assert answers(last.predict(TEXTS, "ranked")) == answers(learner.predict(TEXTS, "ranked"))
    assert last.lineage is not None
    assert [data.task for data in last.lineage.data] == ["ranked"]
