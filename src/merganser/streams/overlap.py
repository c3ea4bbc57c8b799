"""Held-out examples that are also training examples: what a score on them means should be known before any work."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.streams.task import Example, Task


def overlap_remarks(task: Task) -> list[str]:
    """Describe how many texts of dev and test are also training texts of the same task, as the model reads them.

    One file that serves as two splits is called so, whatever was sampled from it.
    """
    seen: set[str] | None = None
    remarks = []
    for split, examples in (("dev", task.dev), ("test", task.test)):
        if not examples:
            continue
        if seen is None:
            seen = {example.identity for example in task.train}
        shared = sum(example.identity in seen for example in examples)
        if _content(task, "train") and _content(task, "train") == _content(task, split):
            remarks.append(f"train and {split} are the same file: {_MEANING[split]}")
        elif shared:
            how_many = "all" if shared == len(examples) else f"{shared:,} of"
            noun = _noun(examples)
            remarks.append(f"{how_many} {len(examples):,} {split} {noun} are also training {noun}: {_MEANING[split]}")
    return remarks


_MEANING = {
    "dev": "settings and weights selected by its development scores are selected by what it was trained on",
    "test": "its test score says how well it was memorised, not how it does on anything new",
}


def _noun(examples: Sequence[Example]) -> str:
    return "texts" if examples[0].image is None else "images"


def _content(task: Task, split: str) -> str:
    """Return the SHA-256 of the file that a split was read from; an empty string if there is none on record."""
    return task.source.get(split, "").partition("sha256:")[2]
