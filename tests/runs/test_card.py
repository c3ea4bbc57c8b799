"""The model card of a run: a header that the hub reads, scores, what was forgotten, and nothing of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser.metrics.score import Score, ScoreRow
from merganser.runs.card import History, hub_data, record_sections
from merganser.runs.card_head import Subject, card_head, licence_section
from merganser.runs.record import RowFile, RunInfo, TaskRecord
from merganser.runs.undo import undo_rows
from merganser.streams.answers import AnswerSpec

SUBJECT = Subject("support", "peft", "text-generation", "org/base", adapter=True)
SHA = "0" * 64


def task(name: str, row: int, source: str = "", test: int = 10) -> TaskRecord:
    return TaskRecord(
        name=name, index=row, row=row, seed=1, fingerprint=SHA, train_examples=1234, test_examples=test,
        spec=AnswerSpec(), source={"train": source} if source else {}, finished="",
    )  # fmt: skip


def row(number: int, tasks: list[TaskRecord], **scores: float) -> RowFile:
    measured = {name: Score(value=value, n=10, stderr=0.1) for name, value in scores.items()}
    return RowFile(
        row=number,
        tasks=tasks,
        scores=ScoreRow(learned=[task.name for task in tasks], scores=measured),
        metrics={name: {"news": "rouge_l", "own": "judge:score"}.get(name, "accuracy") for name in scores},
    )


def history(*rows: RowFile, **resolved: Any) -> History:
    config = {
        "model": {"name": "/home/me/base", "kind": "causal", "adapter": "/home/me/adapter", "system": "/no_think"},
        "method": {"name": "aim"},
        "resolved": resolved,
    }
    return History(RunInfo(created="2026", command="", seed=7, config=config, versions={"merganser": "1"}), rows)


@pytest.fixture
def forgetful() -> History:
    return history(
        row(0, [], orders=0.2, news=0.1, own=0.0),
        row(1, [task("orders", 1, f"/home/me/orders.csv sha256:{SHA}")], orders=0.9, news=0.1, own=0.0),
        row(2, [task("news", 2, f"hub:owner/news:plain:train sha256:{SHA}")], orders=0.75, news=0.6, own=0.0),
        row(3, [task("own", 3)], orders=0.5, news=0.6, own=0.3),
        base_card={"license": "apache-2.0", "language": ["en", "de"]},
    )


def test_the_hub_reads_the_header(forgetful: History) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card_head(SUBJECT, forgetful) + "text").data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base", "adapter", "peft")
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en", "de"], ["owner/news"])
    assert data.metrics == ["accuracy", "rouge", "judge-score"]
    results = {result.dataset_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"orders": 0.5, "news": 0.6, "own": 0.3}
    assert [result.dataset_type for result in results.values()] == ["orders", "owner/news", "own"]
    assert (results["news"].metric_type, results["news"].metric_config) == ("rouge", "rougeL")
    assert {(result.task_type, result.dataset_split) for result in results.values()} == {("text-generation", "test")}
    assert data.model_name == "support"


def test_without_records_and_licence() -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card_head(Subject("m", "transformers", "text-generation", None, False), None) + "text").data
    assert (data.license, data.base_model, data.get("model-index")) == ("unknown", None, None)
    assert "no licence" in licence_section(None)
    assert "`mit`" in licence_section(history(base_card={"license": "mit"}))


def test_what_the_records_tell(forgetful: History) -> None:
    text = record_sections(forgetful, "RUN")
    lines = text.splitlines()
    assert f"| orders | 1,234 | 0 | 10 | `{SHA}` |" in lines
    assert f"* orders, train: `orders.csv sha256:{SHA}`" in lines
    assert "/home/me" not in text  # the places of a machine, also in the configuration
    assert "  adapter: adapter\n  system: /no_think\n" in text
    assert "| no training | 20.0 | 10.0 | 0.0 |" in lines
    assert "| orders | 90.0 ± 10.0 | 50.0 ± 10.0 | −40.0 |" in lines
    assert "| own | 30.0 ± 10.0 | 30.0 ± 10.0 | the last task |" in lines
    assert "Lower than right after learning: orders (−40.0 points)." in lines
    assert any(line.startswith("* Backward transfer (BWT): −20.0 %") for line in lines)
    assert any(line.startswith("merganser undo RUN --to 01-orders ") for line in lines)
    together = record_sections(history(row(0, []), row(1, [task("a", 1), task("b", 1)]), row(2, [task("c", 2)])), "RUN")
    assert "merganser undo RUN --to 01-a+1 " in together


def test_a_change_that_rounds_to_zero_is_none() -> None:
    text = record_sections(
        history(row(0, [], a=0.1), row(1, [task("a", 1)], a=0.5), row(2, [task("b", 2)], a=0.4999, b=0.5)), "RUN"
    )
    assert "No task scores lower than when it was learned." in text
    assert "| 0.0 |" in text
    assert "-0.0" not in text
    assert "−0.0" not in text


def test_nothing_forgotten_and_nothing_measured() -> None:
    kept = history(row(0, [], a=0.1), row(1, [task("a", 1)], a=0.5), row(2, [task("b", 2)], a=0.6, b=0.5))
    assert "No task scores lower than when it was learned." in record_sections(kept, "RUN")
    untested = record_sections(history(row(0, []), row(1, [task("a", 1, test=0)])), "RUN")
    assert "Nothing was measured" in untested
    assert "| a | not measured | not measured | not measured |" in untested


def test_names_are_text(forgetful: History) -> None:
    from huggingface_hub import ModelCard

    evil = "t\n---\nlicense: mit | <b>`"
    one = history(row(0, []), row(1, [task(evil, 1, "a`b\nsha256:x")], **{evil: 0.5}))
    data = ModelCard(card_head(SUBJECT, one) + "text").data
    assert data.license == "unknown"
    assert data.eval_results[0].dataset_name == "t --- license: mit | <b>`"
    assert "| t --- license: mit \\| &lt;b&gt;\\` |" in record_sections(one, "RUN")


def test_tasks_of_one_data_set_are_told_apart() -> None:
    from huggingface_hub import ModelCard

    source = f"hub:owner/data sha256:{SHA}"
    assert hub_data(task("a", 1, source)) == "owner/data"
    assert hub_data(task("a", 1, f"file.csv sha256:{SHA}")) is None
    one = history(row(0, []), row(1, [task("a", 1, source)], a=0.5), row(2, [task("b", 2, source)], a=0.4, b=0.6))
    data = ModelCard(card_head(SUBJECT, one) + "text").data
    assert [(r.dataset_type, r.metric_value) for r in data.eval_results] == [("a", 0.4), ("b", 0.6)]
    assert data.datasets == ["owner/data"]


def test_model_has_a_card_that_is_checked(tmp_path: Path) -> None:
    from merganser.runs.directory import RunDirectory
    from tests.learner import toys

    run = toys.copy_of_trained(tmp_path)
    card = run / "model" / "README.md"
    text = card.read_text()
    assert "## What was forgotten" in text
    assert str(toys.model_folder()) not in text
    directory = RunDirectory.open(run)
    assert directory.repair() == []
    card.write_text(text.replace("mood", "moon"))
    assert "model/README.md" in directory.repair()[0]
    assert card.read_text() == text
    card.unlink()
    assert "model/README.md" in directory.repair()[0]
    with directory.lock:
        undo_rows(directory)
    assert "topic" not in card.read_text().split("## Scores")[1].split("## How")[0]
