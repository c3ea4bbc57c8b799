"""Metrics by name: of a module on Python's path or beside the run's file, and of an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.metrics import score_answers
from merganser.metrics.function import metric_name
from merganser.streams.answers import AnswerSpec
from merganser.streams.loading import load_task
from merganser.streams.metric_source import find_metric, metric_names
from merganser.streams.options import TaskOptions
from tests.learner import toys

SCORES = """
import beside_merganser_test

limit = 3

def half(answers, references):
    return [beside_merganser_test.VALUE] * len(answers)

class Longer:
    def __call__(self, answers, references, inputs, limit=limit):
        return [float(len(answer) > limit) for answer in answers]

longer = Longer()

def other(argv, master_read=None):
    raise AssertionError("called")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not on Python's path, with two modules; the path is as before after the test."""
    (tmp_path / "scores_merganser_test.py").write_text(SCORES)
    (tmp_path / "beside_merganser_test.py").write_text("VALUE = 0.5")
    (tmp_path / "broken_merganser_test.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def install(root: Path, package: str, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install`` leaves of a package that offers metrics."""
    info = root / f"{package}-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[merganser.metrics]\n{points}\n")
    (root / f"{package}_scores.py").write_text("def same(answers, references):\n    return [1.0] * len(answers)\n")
    monkeypatch.syspath_prepend(str(root))


def test_a_module_beside_the_file_and_its_neighbours_are_found(folder: Path) -> None:
    half = find_metric("scores_merganser_test:half", folder)
    assert score_answers(half, ["a"], ["b"], ["c"]).value == 0.5
    assert metric_name(half) == "scores_merganser_test:half"
    assert half.source.startswith("scores_merganser_test.py sha256:")
    longer = find_metric("scores_merganser_test:longer", folder)
    assert score_answers(longer, ["four", "six"], ["", ""], ["", ""]).value == 0.5
    assert metric_name(longer) == "scores_merganser_test:longer"


@pytest.mark.parametrize(
    ("name", "cause", "remedy"),
    [
        ("scores_merganser_test:haf", "has no 'haf'", "Did you mean 'half'"),
        ("scores_merganser_test:Longer", "cannot be used: it is not a function", "lists of answers, references"),
        ("scores_merganser_test:limit", "cannot be used: it is not a function", "lists of answers"),
        ("scores_merganser_test:other", "its parameters are (argv, master_read)", "lists of answers"),
        ("broken_merganser_test:f", "cannot be imported: ZeroDivisionError: division by zero", "python -c 'import"),
        ("nowhere_merganser_test:f", "is not on Python's search path and in", "PYTHONPATH=FOLDER"),
        ("os:system", "is in no module of yours", "file of its own"),
        ("__main__:f", "is in no module of yours", "file of its own"),
        ("merganser.metrics:bleu", "The metric 'bleu' comes from a package", "Install the package"),
    ],
)
def test_what_cannot_be_loaded_is_refused(folder: Path, name: str, cause: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        find_metric(name, folder)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_folder_is_sought_only_where_it_is_given_and_after_the_path(folder: Path) -> None:
    with pytest.raises(InputError, match="is not on Python's search path"):
        find_metric("scores_merganser_test:half")
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").write_text("")
    assert find_metric("tests.learner.test_metric_functions:length_share", folder).source.startswith("test_metric_")
    (folder / "other").mkdir()
    find_metric("scores_merganser_test:half", folder)
    sys.path.remove(str(folder.resolve()))
    (folder / "other" / "scores_merganser_test.py").write_text(SCORES)
    with pytest.raises(InputError, match="another one of that name is in use"):
        find_metric("scores_merganser_test:half", folder / "other")


def test_a_metric_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    install(tmp_path / "one", "polite", "polite = polite_scores:same\nf1 = polite_scores:same", monkeypatch)
    assert metric_names() == ["accuracy", "exact_match", "rouge_l", "f1", "polite"]
    toys.write_rows(tmp_path / "t.json", toys.rows("mood", 4))
    options = TaskOptions(name="mood", train="t.json", test="t.json", metric="polite")
    task = load_task(options, tmp_path)
    assert metric_name(task.spec.metric) == options.metric == "merganser.metrics:polite"
    assert AnswerSpec(metric="polite").metric == "merganser.metrics:polite"
    assert task.source["metric"] == "polite 0.3"
    assert score_answers(task.spec.metric, ["x"], ["y"]).value == 1.0
    assert AnswerSpec(metric="f1").metric == "f1"  # a package does not replace what Merganser has

    install(tmp_path / "two", "polite2", "polite = polite2_scores:same\nbad = polite2_scores:no", monkeypatch)
    with pytest.raises(InputError, match="claimed by the package 'polite2' and by the package 'polite'"):
        find_metric("polite")
    with pytest.raises(InputError, match="The metric 'bad' of the package 'polite2' cannot be loaded: AttributeError"):
        find_metric("bad")
