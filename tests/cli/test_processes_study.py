"""Cells of a study that two processes train together, and the parts that they share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.spawner import Spawner
from tests.cli.test_processes import SHARDED, succeed, together
from tests.learner.toys import read_json, results, settings
from tests.study.conftest import write_study

CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "ddp": ({}, {"lora": {"r": 4, "dropout": 0.2}}),
    "fsdp": (SHARDED, {"lora": {"r": 4, "dropout": 0.0}}),
}


def one_task_alone(*arguments: str) -> None:
    """``merganser`` that fails where it trains more than one task, or answers with the pretrained model."""
    from merganser.cli import main
    from merganser.learner import session, train_row

    train, score, tasks = train_row.train_task, session.score_tasks, []

    def train_one(*given: Any, **options: Any) -> Any:
        tasks.append(options["records"].task)
        assert tasks == ["topic"], f"trained {tasks}"
        return train(*given, **options)

    def score_others(backbone: Any, asked: Any, *given: Any) -> Any:
        assert tasks or not asked, f"answered {[task.name for task in asked]}"
        return score(backbone, asked, *given)

    train_row.train_task, session.score_tasks = train_one, score_others
    main()


@pytest.mark.parametrize("kind", CASES)
def test_cells_of_two_processes_share_the_first_task_and_row_0(kind: str, spawner: Spawner, tmp_path: Path) -> None:
    environment, changed = CASES[kind]
    file = write_study(tmp_path, processes=2, model={**settings()["model"], **changed})
    out, alone, single = (tmp_path / name for name in ("out", "alone", "single"))

    def run(folder: Path, cell: str, **options: Any) -> None:
        given = ("study", file, "--out", folder, "--cell", cell)
        succeed(together(spawner, *given, environment=environment, **options))

    run(out, "sequential,s0")
    run(out, "replay,s0", call=f"{__name__}:one_task_alone")
    run(alone, "replay,s0")
    assert results(out / "cells" / "replay,s0") == results(alone / "cells" / "replay,s0")
    assert len(list((out / "shared" / "training").iterdir())) == 1
    spent = [read_json(folder / "records" / "replay,s0.json")["cost"] for folder in (out, alone)]
    assert spent[0]["examples_trained"] == spent[1]["examples_trained"]
    assert spent[0]["processor_seconds"] > spent[1]["processor_seconds"] / 2
    if kind == "ddp":  # sums of another number of parts are rounded otherwise
        shutil.copytree(out / "shared", single / "shared")
        file.write_text(file.read_text().replace("processes: 2", "processes: 1"))
        succeed([spawner.wait(spawner.start("study", file, "--out", single, "--cell", "sequential,s0"))])
        assert len(list((single / "shared" / "training").iterdir())) == 2
