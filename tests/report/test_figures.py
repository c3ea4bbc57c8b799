"""Figures for papers: which are drawn, what they say, and that they come out the same each time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from merganser.errors import InputError
from merganser.report.comparison import fitted_line, run_labels
from merganser.report.figures import write_figures
from merganser.runs.record import RunRecord
from tests.report.conftest import make_run

SVG_TEXT = "{http://www.w3.org/2000/svg}text"


def words(path: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(path).iter(SVG_TEXT)]


def test_every_figure_as_svg_and_png(run: RunRecord, tmp_path: Path) -> None:
    paths = write_figures(run, tmp_path / "figures")
    names = ["matrix", "signals", "interval", "curves"]
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n")
    matrix = words(paths[0])
    shown = [word for word in matrix if re.fullmatch(r"\d+\.\d", word)]
    assert len(shown) == 6 * 5
    assert shown.count("90.0") == 2  # two peaks: the first task's own row and the last one's
    assert "before training  0" in matrix
    signals = words(paths[2])
    for cause in ("D  due", "E  early", "F  forced", "T  end", "D  due (refused)", "alarm threshold"):
        assert cause in signals
    assert signals.count("E") == sum(merge.cause == "early" for merge in run.merges)
    assert "planned interval (steps)" in words(paths[4])
    assert "newsgroups" in words(paths[6])


def test_the_same_run_gives_the_same_svg_and_names_stay_literal(tmp_path: Path) -> None:
    run = make_run(["$x_1$ <&>", "b"], merging=False, method="sequential", steps=500)
    first = write_figures(run, tmp_path / "one")
    again = write_figures(run, tmp_path / "two")
    assert [path.stem for path in first] == ["matrix", "matrix", "signals", "signals", "curves", "curves"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert "$x_1$ <&>" in words(first[4])


def test_a_run_without_steps_has_no_signals_figure(run: RunRecord, tmp_path: Path) -> None:
    run.signals, run.merges = {}, []
    assert {path.stem for path in write_figures(run, tmp_path)} == {"matrix", "curves"}


def test_several_runs_in_one_figure(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    run = make_run(names, steps=30)
    watched = make_run(names, steps=30, path="runs/watched")
    watched.info.config["method"] = {"name": "aim", "ablation": {"merge": False}}
    watched.merges = []
    for signals in watched.signals.values():
        for signal in signals[7::8]:
            signal.change = 1.0 / signal.step
    plain = make_run(names, steps=30, merging=False, method="sequential", forgetting=0.2)
    joint = make_run(names, steps=30, merging=False, method="joint", together=True)
    paths = write_figures(run, tmp_path, [plain, watched, joint])
    added = [path.stem for path in paths if path.suffix == ".svg"][4:]
    assert added == ["memory_loss", "parameter_change", "first_task"]
    found = {path.stem: words(path) for path in paths if path.suffix == ".svg"}
    assert {"aim", "aim without merging", "b", "c"} <= set(found["memory_loss"])
    assert "a" not in found["memory_loss"]  # the first task has no memory to measure
    assert "sequential" not in found["memory_loss"]
    assert found["parameter_change"].count("aim without merging") == 1
    assert {"aim", "sequential", "aim without merging", "joint (bound)"} <= set(found["first_task"])


def test_lines_are_least_squares_and_labels_differ() -> None:
    assert fitted_line([1, 2, 3, 4], [3, 5, 7, 9]) == pytest.approx((2.0, 1.0))
    assert fitted_line([0, 1, 2], [0, 0, 3]) == pytest.approx((1.5, -0.5))  # normal equations by hand
    assert fitted_line([2, 2], [1, 3]) is None
    twice = [make_run(["a"], path="runs/one"), make_run(["a"], path="runs/two"), make_run(["a"], method="ewc")]
    assert run_labels(twice) == ["aim (one)", "aim (two)", "ewc"]


def test_runs_over_other_tasks_are_refused(tmp_path: Path) -> None:
    other = make_run(["a", "c"], path="runs/other")
    with pytest.raises(InputError, match="The baseline 'runs/other' learned other tasks"):
        write_figures(make_run(["a", "b"]), tmp_path / "out", [other])
    assert not (tmp_path / "out").exists()


def test_matplotlib_is_loaded_only_when_drawing_and_pyplot_never() -> None:
    code = (
        "import sys, merganser.report, merganser.cli.report; assert 'matplotlib' not in sys.modules;"
        "import tempfile, pathlib; from tests.report.conftest import make_run;"
        "merganser.report.write_figures(make_run(['a'], steps=5), pathlib.Path(tempfile.mkdtemp()));"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'torch' not in sys.modules; print('fine')"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.strip() == "fine", done.stderr
