"""Check conversations against a run's model before any work, and say what its chat template adds to them."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.learner.session import Session
from merganser.streams.bad_rows import BadRows, BadRowsError
from merganser.streams.task import Example, Task

SHOWN = 200
"""Characters of a template's own system prompt that a remark shows."""


def check_conversations(session: Session, task: Task) -> None:
    """Refuse conversations that the model's chat template cannot render, or in which it changes earlier turns.

    Raises:
        BadRowsError: naming the kinds, with counts and first rows, of all splits at once.
    """
    sources = []
    mixed = () if task.mix is None else task.mix.examples
    for split, examples in (("train", task.train), ("dev", task.dev), ("test", task.test), ("mix", mixed)):
        if not any(example.conversation is not None for example in examples):
            continue
        bad = BadRows(f"Task '{task.name}', {split}", "row", good=len(examples))
        problems = session.backbone.conversation_problems(examples)
        for number, (example, problem) in enumerate(zip(examples, problems, strict=True), 1):
            if problem is not None:
                bad.add(example.row or number, problem)
                bad.good -= 1
        if len(bad):
            sources.append(bad)
    if sources:
        raise BadRowsError(sources, can_skip=False)


def conversation_remarks(session: Session, task: Task) -> list[str]:
    """Return what to know about how the model reads a task's conversations, and what its template adds."""
    backbone = session.backbone
    chats = any(example.conversation is not None for example in task.train)
    remarks = []
    if chats and not backbone.has_chat_template:
        remarks.append(
            "the model has no chat template: conversations are read as text, role by role, and the last turn is learned"
        )
    if backbone.options.system is None and any(map(_without_system, task.train)) and backbone.default_system:
        shown = backbone.default_system[:SHOWN] + ("..." if len(backbone.default_system) > SHOWN else "")
        remarks.append(
            f"where there is no system prompt, the model's chat template puts in its own, '{shown}'; model.system sets "
            "another"
        )
    return remarks


def _without_system(example: Example) -> bool:
    return example.conversation is None or not example.conversation.has_system


def new_remarks(session: Session, remarks: Sequence[str]) -> list[str]:
    """Return the remarks that the user has not received yet of any task."""
    new = [remark for remark in remarks if ("remark", remark) not in session.noted]
    session.noted.update(("remark", remark) for remark in new)
    return new
