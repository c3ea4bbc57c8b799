"""Choose what a row keeps for rehearsal: training texts, or texts that the model has written itself."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace

from merganser.events import Notice
from merganser.learner.checks import memory_options, reads_surprise, sample
from merganser.learner.session import Session
from merganser.methods import TaskContext
from merganser.models.causal import Causal
from merganser.models.truncation import token_counts
from merganser.streams.sampling import generator, pick
from merganser.streams.task import Example, Task
from merganser.training.determinism import derive_seed, isolated_random
from merganser.training.surprise import example_losses

SHOTS = 3
"""Training texts that the model reads before it writes another one."""

ROUNDS = 4
"""How many times as many texts are written as are kept, at most: empty ones, copies and repetitions are left out."""

ROOM = 8
"""Tokens that a text may have more than the longest of those that were read: for what stands between two."""

BETWEEN = "\n\n###\n\n"
"""Stands between two texts that the model reads or writes."""


class MemoryChoice:
    """What a row keeps, chosen while it is learned.

    Args:
        session: of the run.
        tasks: of the row.
        context: of the training.

    Attributes:
        kept: task -> examples; known after :meth:`after_training`.
        seconds: spent on losses and on texts.
    """

    def __init__(self, session: Session, tasks: Sequence[Task], context: TaskContext) -> None:
        self.session = session
        self.tasks = tasks
        self.context = context
        self.kept: dict[str, list[Example]] = {}
        self.seconds = 0.0
        self._when = memory_options(session).surprise_when if reads_surprise(session) else None
        self._losses: list[float] | None = None

    def before_training(self) -> None:
        """Measure the losses of the training texts under the model before the task, if they are asked for."""
        self._measure("before")

    def after_training(self) -> None:
        """Choose, with the weights that are deployed in the model."""
        self._measure("after")
        began = time.perf_counter()
        for task in self.tasks:
            chosen = sample(self.session, task, self._losses)
            self.kept[task.name] = self._written(task, len(chosen)) if self._by_itself else chosen
        if self._by_itself:
            self.seconds += time.perf_counter() - began

    @property
    def _by_itself(self) -> bool:
        return self.session.method.uses_memory and memory_options(self.session).source == "self"

    def _measure(self, now: str) -> None:
        if now == self._when:
            began = time.perf_counter()
            self._losses = example_losses(self.session.backbone, self.context.features, self.context.training.batch)
            self.seconds += time.perf_counter() - began

    def _written(self, task: Task, number: int) -> list[Example]:
        """Let the model write a task's memory, and answer it."""
        session = self.session
        assert isinstance(session.backbone, Causal)
        texts = written_texts(session.backbone, task, number, session.config.seed, session.config.evaluation.batch)
        if len(texts) < number:
            text = f"the model wrote {len(texts)} of {number} texts to remember; the others were empty or copies"
            session.listener(Notice(f"Task '{task.name}': {text}."))
        spec = task.spec if task.labels is None else replace(task.spec, mode="rank", metric="accuracy")
        answers = session.backbone.answer(texts, spec, session.config.evaluation.batch)
        return [
            Example(text, answer.text, f"self-{i}")
            for i, (text, answer) in enumerate(zip(texts, answers, strict=True), 1)
        ]


def _first_message(example: Example) -> str:
    """Return the input of an example, of a conversation the first message of a user."""
    if example.conversation is None:
        return example.input
    return next((turn.content for turn in example.conversation.turns if turn.role == "user"), "")


def written_texts(backbone: Causal, task: Task, number: int, seed: int, batch: int) -> list[str]:
    """Let the model write texts like the training texts of a task, with its weights as they are.

    It reads a few of them, drawn anew for every text, and what all of them begin with, such as an instruction; it goes
    on by sampling. What all of them end with is put at its end. Copies of training texts are left out, whole ones only:
    parts of them may remain.

    Args:
        number: texts wanted; fewer are returned where most are empty, copies or repetitions.
        seed: of the draws.
        batch: texts per forward pass.
    """
    known = {_first_message(example).strip() for example in task.train} - {""}
    shown = sorted(known)
    before, after = frame(shown)
    texts: dict[str, None] = {}
    rng = generator(seed, "memory", "self", task.name)
    left = ROUNDS * number
    with isolated_random(derive_seed(seed, "memory", "self", task.name)):
        while shown and len(texts) < number and left > 0:
            wanted = min(batch, number - len(texts), left)
            left -= wanted
            shots = [[shown[i] for i in pick(range(len(shown)), min(SHOTS, len(shown)), rng)] for _ in range(wanted)]
            longest = max(token_counts(backbone.tokenizer, [text for few in shots for text in few]))
            # Spaces at the end are no tokens that texts go on from.
            read = [BETWEEN.join([*few, before]).rstrip(" ") for few in shots]
            for written in backbone.continue_texts(read, longest + ROOM):
                middle = _until(written, BETWEEN.strip(), after.strip())
                text = f"{before}{middle}{after}".strip()
                if middle and text not in known:
                    texts[text] = None
    return list(texts)


def frame(texts: Sequence[str]) -> tuple[str, str]:
    """Return what all texts begin and end with, in whole words; empty where that is nothing, or there is one text."""
    if len(texts) < 2:
        return "", ""
    before = re.sub(r"\S*\Z", "", _common_start(texts))
    rest = [text[len(before) :] for text in texts]
    after = re.sub(r"\A\S*", "", _common_start([text[::-1] for text in rest])[::-1])
    return before, after


def _common_start(texts: Sequence[str]) -> str:
    """Return the letters that all texts begin with: those of the first and the last of them in alphabetical order."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))]


def _until(text: str, *ends: str) -> str:
    """Return a text up to the first of its ends, without white space around it."""
    for end in ends:
        text = text.split(end)[0] if end else text
    return text.strip()
