"""Orders of the published continual-learning benchmarks, and how their tasks are scored.

Orders and scores as in AimMerging (Feng et al., EMNLP 2025, arXiv 2509.17348) and its released data. The texts are not
part of this package: a built-in stream reads a folder in AimMerging's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merganser.streams.bad_rows import EMPTY, UNLABELLED

Kind = Literal["classification", "generation"]
DEMO = "demo"
"""Name of the stream that :mod:`merganser.streams.demo` makes from an installed package."""

LABELLED_SUPERNI = frozenset({"task363", "task875", "task1687"})
"""The SuperNI tasks whose outputs are labels: scored by exact match, the other twelve by ROUGE-L."""


KNOWN_IRREGULARITIES = frozenset({EMPTY, UNLABELLED})
"""Kinds of bad rows in the published files: task511 has empty answers; of ``NO_LABEL`` below."""

NO_LABEL = {"mnli": "-"}
"""Task -> the answer that marks a text on which the annotators did not agree."""

SYNONYMS = {"task363": {"POS": "P", "NEG": "N"}}
"""Task -> other ways to write an answer that AimMerging's scoring accepts."""


@dataclass(frozen=True)
class BuiltinStream:
    """A named order.

    Attributes:
        name: as in ``stream: {name: ...}``.
        description: one line for people.
        tasks: names in order of learning; also the beginnings of the file names.
        generation: those of them whose answers are free text.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    generation: frozenset[str] = frozenset()

    def kind(self, task: str) -> Kind:
        """Return ``generation`` (free text, ROUGE-L) or ``classification`` (label set, exact match)."""
        return "generation" if task in self.generation else "classification"

    @property
    def metric(self) -> str:
        """Return the text scores of the stream, for tables."""
        if not self.generation:
            return "exact_match"
        labelled = sorted(set(self.tasks) - self.generation, key=self.tasks.index)
        return "rouge_l" + (f"; exact_match on {', '.join(labelled)}" if labelled else "")


_STANDARD = (
    "dbpedia amazon yahoo agnews",
    "dbpedia amazon agnews yahoo",
    "yahoo amazon agnews dbpedia",
)
_LONG = (
    "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia agnews multirc yahoo",
    "multirc boolqa wic mnli cb copa qqp rte imdb sst-2 dbpedia agnews yelp amazon yahoo",
    "yelp amazon mnli cb copa qqp rte imdb sst-2 dbpedia agnews yahoo multirc boolqa wic",
)
_SUPERNI = (
    "task1572 task363 task1290 task181 task002 task1510 task639 task1729 task073 task1590 task748 task511 task591 "
    "task1687 task875",
    "task748 task073 task1590 task639 task1572 task1687 task591 task363 task1510 task1729 task181 task511 task002 "
    "task1290 task875",
)


def _streams() -> dict[str, BuiltinStream]:
    table: dict[str, BuiltinStream] = {}
    families = (
        ("standard-cl", "Standard CL benchmark: topics and sentiment, 4 tasks", _STANDARD),
        ("long-sequence", "Long Sequence benchmark: GLUE, SuperGLUE, topics and sentiment, 15 tasks", _LONG),
        ("superni", "SuperNI: dialogue, extraction, question answering, summaries, sentiment, 15 tasks", _SUPERNI),
    )
    for family, description, orders in families:
        for number, order in enumerate(orders, start=1):
            tasks = tuple(order.split())
            free = frozenset(tasks) - LABELLED_SUPERNI if family == "superni" else frozenset()
            name = f"{family}-{number}"
            table[name] = BuiltinStream(name, f"{description}, order {number}", tasks, free)
    return table


BUILTIN: dict[str, BuiltinStream] = _streams()
"""Name -> stream, in the order in which they are listed to people."""


def task_kind(task: str) -> Kind | None:
    """Return the kind of a benchmark's task by its name; ``None`` for a task that no built-in stream has."""
    return next((stream.kind(task) for stream in BUILTIN.values() if task in stream.tasks), None)
