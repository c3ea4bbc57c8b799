"""In a notebook: bars, tables, frames and figures, and the notebook of the examples."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merganser.events import Evaluating, Merged, Notice, RowDone, StepDone, TaskStarted, silent
from merganser.learner.notebook import NotebookProgress, default_listener
from tests.learner import toys

ROOT = Path(__file__).parent.parent.parent


def test_a_bar_per_task() -> None:
    shown: list[tuple[str, bool]] = []
    progress = NotebookProgress(lambda html, update: shown.append((html, update)), clock=lambda: 0.0)
    merged = Merged("a", 2, "due", 0.6, 0.4, 2, 2, 3)
    for event in (Notice("A <note>."), TaskStarted("a", 1, 12, 0, 4), StepDone("a", 1, 4, 0.5), merged):
        progress(event)
    progress(Evaluating("a", 3, 9))
    assert 'max="4"' in progress.html()
    assert "answering a: 3/9" in progress.html()
    progress(RowDone(("a",), {"a": 0.915}))
    progress(TaskStarted("b<", 2, 12, 4, 4))
    html, updated = shown[-1]
    assert html.count("<progress") == 2
    assert "91.5 %, 1 merge<" in html
    assert "b&lt;" in html
    assert "A &lt;note&gt;." in html
    assert [update for _, update in shown] == [False, True, True, True]  # steps within the pause are not drawn
    assert updated


def test_bars_only_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_listener() is silent
    shells: list[Any] = [None, SimpleNamespace(), SimpleNamespace(kernel=object())]
    found = []
    for shell in shells:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        found.append(default_listener())
    assert found[:2] == [silent, silent]
    assert isinstance(found[2], NotebookProgress)


def test_the_notebook_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order, with a tiny model; a cell's last expression must show itself."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="example")["main"](["--out", "examples/data"])
    content = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    shown = []
    for cell in content["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"]
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        source = source.replace("sentence-transformers/all-MiniLM-L6-v2", str(toys.model_folder()))
        tree = ast.parse(source.replace('"steps": 24', '"steps": 3'))
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.Assign([ast.Name("_", ast.Store())], last.value)
        exec(compile(ast.fix_missing_locations(tree), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(names["_"])
    learner, scores, frame, figure, answers = shown
    assert "reviews" in learner._repr_html_()
    assert "after reviews" in scores._repr_html_()
    assert frame.index.tolist() == ["tickets", "reviews"]
    assert frame.loc["tickets", "low"] <= frame.loc["tickets", "change"] <= frame.loc["tickets", "high"]
    assert names["signals"].shape[0] == 6
    assert names["matrix"].shape == (3, 2)
    assert type(figure).__name__ == "Figure"
    assert answers[0].text
