"""Check a stream before any work, and sample the memory of a task."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence

from merganser import processes
from merganser.errors import InputError
from merganser.events import Notice
from merganser.learner.conversations import check_conversations, conversation_remarks, new_remarks
from merganser.learner.session import Session
from merganser.learner.truncation import truncated_examples, truncation_notices
from merganser.learner.watching import check_watch
from merganser.models.weight_format import QUANTISED
from merganser.runs.names import check_new_name
from merganser.streams.answers import AnswerSpec
from merganser.streams.checks import check_names, check_task
from merganser.streams.memory import allot, sample_memory
from merganser.streams.mixing import mixed_before
from merganser.streams.options import MemoryOptions
from merganser.streams.overlap import overlap_remarks
from merganser.streams.task import Example, Task
from merganser.training.determinism import derive_seed
from merganser.training.distributed import check_batch_for_processes, layers_to_wrap
from merganser.training.packing import check_packing
from merganser.training.trainer import planned_steps

EVERYTHING = MemoryOptions(share=1.0, sampler="uniform")
"""Memory of a method that keeps all training data."""


def check_stream(session: Session, tasks: Sequence[Task]) -> None:
    """Check before any work whether a run can learn a stream, from its first task to its last.

    Raises:
        InputError: a task that is malformed, that was learned from other data or in another order, of which nothing
            would be kept, or that leaves a memory smaller than a batch of it.
    """
    check_processes(session)
    check_packed(session)
    check_selection(session, tasks)
    check_names([task.name for task in tasks])
    check_metrics(session, tasks)
    check_watch(session, tasks)
    check_preferences(session, tasks)
    check_memory_total(session, tasks)
    check_source(session, tasks)
    records = [task for row in session.rows for task in row.file.tasks]
    kept = len(session.memory())
    if session.candidates.seen_without_effect:
        text = (
            f"{session.method.title} receives the task of each text: the candidates are the labels of that task alone."
        )
        session.listener(Notice(text))
    names = [task.name for task in tasks]
    remark = session.method.check_tasks([*names, *(record.name for record in records[len(names) :])], whole=True)
    if remark is not None:
        session.listener(Notice(remark))
    for position, task in enumerate(tasks):
        check_task(task)
        session.backbone.check_examples(task.train, task.spec)
        check_tokens(session, task)
        if position < len(records):
            record = records[position]
            if record.name != task.name:
                raise InputError(
                    f"Task {position + 1} of the stream is '{task.name}', but this run learned '{record.name}' there.",
                    "Use the same stream to continue it, or another folder for a new run.",
                )
            if record.fingerprint != task.fingerprint():
                raise InputError(
                    f"The data of task '{task.name}' are not those this run learned.",
                    "Restore the files, or use another folder for a new run.",
                )
            continue
        check_new_name(session.directory, task.name)
        check_conversations(session, task)
        check_labels(session, task, tasks[:position])
        check_mix(session, task)
        note_truncation(session, task)
        if not session.method.joint:
            session.method.rehearsal_batch(session.config.training, kept)
        kept = min(kept + len(sample(session, task)), session.memory_total or sys.maxsize)
    for task in tasks[len(records) :]:
        announce_remarks(session, task)


def check_source(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse a memory that the model writes itself, where it cannot.

    Raises:
        InputError: a model that is no decoder, a method that keeps all data, or a task of preferences.
    """
    if not session.method.uses_memory or memory_options(session).source != "self":
        return
    if session.backbone.kind != "causal":
        raise InputError(
            f"memory.source: self needs a model that writes texts of its own, and model.kind is "
            f"'{session.backbone.kind}'.",
            "Use kind 'causal', keep a few training texts (memory.source: data), or a method without a memory.",
        )
    if pairs := [task.name for task in tasks if task.spec.dpo is not None]:
        raise InputError(
            f"memory.source: self cannot write pairs of answers, and '{pairs[0]}' is a task of preferences.",
            "Use memory.source: data.",
        )


def check_memory_total(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse a memory in total with fewer slots than the stream has tasks.

    Raises:
        InputError: it has.
    """
    total = session.memory_total
    if session.method.uses_memory and total is not None and total < len(tasks):
        raise InputError(
            f"memory.total is {total}, and the stream has {len(tasks)} tasks: of some nothing could be kept.",
            f"Use a total of at least {len(tasks)}.",
        )


def check_tokens(session: Session, task: Task) -> None:
    """Refuse a task with texts that hold a token for which the model has no embedding.

    Raises:
        InputError: naming the token and the text.
    """
    for examples in (task.train, task.dev, task.test):
        session.backbone.check_tokens(text for example in examples or () for text in example.texts)


def check_labels(session: Session, task: Task, earlier: Sequence[Task] = ()) -> None:
    """Refuse a task with labels that the model cannot tell apart.

    Args:
        earlier: tasks that will be learned before it; their labels may be candidates too, as those of learned ones.

    Raises:
        InputError: naming the labels and why.
    """
    before = [*(known.spec for known in session.known_tasks().values()), *(other.spec for other in earlier)]
    spec = session.candidates.spec(task.spec, before)
    with_others = " (with the labels of the tasks before it)" if spec.labels != task.spec.labels else ""
    session.backbone.check_labels(spec, f"Task '{task.name}'{with_others}")


def check_preferences(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse tasks of preferences that the method cannot learn.

    Raises:
        InputError: naming the method and why; joint training, which mixes the examples of all tasks in a batch, learns
            tasks of preferences alone or other tasks alone.
    """
    preferences = [task.name for task in tasks if task.spec.dpo is not None]
    if preferences and session.method.no_preferences:
        raise InputError(
            f"{session.method.title} cannot learn '{preferences[0]}', a task of preferences: "
            f"{session.method.no_preferences}.",
            "Choose another method, such as aim or replay.",
        )
    if not session.method.joint:
        return
    known = {**session.known_tasks(), **{task.name: task for task in tasks}}
    kinds = {task.spec.dpo is not None: name for name, task in known.items()}
    if len(kinds) > 1:
        raise InputError(
            f"{session.method.title} mixes the examples of all tasks in its batches, and '{kinds[True]}', a task of "
            f"preferences, has another loss than '{kinds[False]}'.",
            "Choose another method, such as aim or replay, or make two runs.",
        )


def check_metrics(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse to learn tasks if a function that scores one of them, or a learned task, is not there.

    Raises:
        InputError: naming the task and the function.
    """
    session.add_metrics(tasks)
    session.require_metrics(tasks)
    if not session.method.per_task_models:  # else learned tasks keep their scores
        learned = session.known_tasks().values()
        session.require_metrics(task for task in learned if task.test or session.config.training.select_best)


def note_truncation(session: Session, task: Task) -> None:
    """Count the texts of a task that the model reads or writes in part, and report them once."""
    if task.name in session.truncated:
        return
    counts = truncated_examples(session.backbone, task)
    session.truncated[task.name] = counts
    for text in truncation_notices(session.backbone, task, counts):
        session.listener(Notice(text))


def remarks(session: Session, task: Task) -> list[str]:
    """Return what to know about the data of a task before it is learned."""
    return [*task.remarks, *overlap_remarks(task), *conversation_remarks(session, task)]


def announce_remarks(session: Session, task: Task) -> None:
    """Report the remarks on a task to the listener, once per session."""
    if task.name not in session.announced:
        session.announced.add(task.name)
        # What the template adds is the same for all tasks, and said once.
        of_task = [*task.remarks, *overlap_remarks(task), *new_remarks(session, conversation_remarks(session, task))]
        for remark in of_task:
            session.listener(Notice(f"Task '{task.name}': {remark}."))


def selects(session: Session, tasks: Sequence[Task]) -> bool:
    """Return whether the best weights of these tasks are selected by development texts, learned one row at a time."""
    return session.config.training.select_best and all(task.dev for task in tasks)


def check_selection(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse tasks whose best weights cannot be selected, where that is asked for.

    Raises:
        InputError: the method cannot select, or a task has no development texts; where only ``method.compat`` turns
            the selection on, it is left out with a notice.
    """
    if not session.config.training.select_best:
        return
    if not session.method.selects_best:
        raise InputError(
            f"training.select_best selects weights, and the merge of {session.method.title} uses the whole trajectory.",
            "Leave training.select_best out.",
        )
    without = [task.name for task in tasks if not task.dev and ("dev", task.name) not in session.noted]
    if not without:
        return
    if not session.config.method.training_defaults().get("select_best"):
        raise InputError(
            f"Task '{without[0]}' has no development texts, and training.select_best selects weights by them.",
            "Give the task a dev file (dev:), or leave training.select_best out.",
        )
    session.noted.update(("dev", name) for name in without)
    more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
    text = "its last weights are deployed, where the released program selects them by development loss"
    session.listener(Notice(f"Task '{without[0]}'{more} has no development texts: {text}."))


def check_mix(session: Session, task: Task) -> None:
    """Refuse data mixed into a task that the model or the method cannot learn, and report where they are repeated.

    Raises:
        InputError: a matcher, which learns labels; joint training; a text with a token that has no embedding.
    """
    if task.mix is None:
        return
    if session.backbone.kind == "matcher":
        raise InputError(
            f"Task '{task.name}' has a mix of texts, and a model of kind 'matcher' learns labels.", "Leave mix out."
        )
    if task.train[0].rejected is not None:
        raise InputError(
            f"Task '{task.name}' has preferences and a mix of other examples.", "Make a task of the mixed data."
        )
    if session.method.joint:
        raise InputError(
            f"Task '{task.name}' has a mix, and {session.method.title.lower()} reads all data of all tasks.",
            "Make a task of the mixed data.",
        )
    session.backbone.check_examples(task.mix.examples, AnswerSpec())
    session.backbone.check_tokens(text for example in task.mix.examples for text in example.texts)
    options, available = session.config.training, len(task.mix.examples)
    rows = planned_steps(task.rows_per_epoch, options) * options.batch * options.accumulation
    if options.steps is None:
        rows = min(rows, math.ceil(options.epochs * task.rows_per_epoch))
    needed = mixed_before(rows, task.mix.share)
    if needed > available and ("mix", task.name) not in session.noted:
        session.noted.add(("mix", task.name))
        text = f"about {needed:,} rows of training come from its mix, which has {available:,}"
        session.listener(Notice(f"Task '{task.name}': {text}: each is read {needed / available:.1f} times."))


def check_packed(session: Session) -> None:
    """Refuse packing where the model does not keep packed texts apart; tried once per session.

    Raises:
        InputError: it does not.
    """
    if session.config.training.packing != "none" and ("packing", "") not in session.noted:
        check_packing(session.backbone.module, session.config.model.name, session.backbone.precision)
        session.noted.add(("packing", ""))


def check_processes(session: Session) -> None:
    """Refuse more processes than the run's method and options support.

    Raises:
        InputError: they do not.
    """
    if processes.world_size() == 1:
        return
    if not session.method.supports_distributed:
        raise InputError(
            f"{session.method.title} learns in one process, and there are {processes.world_size()}.",
            "Start it without torchrun or accelerate launch.",
        )
    if session.config.evaluation.engine == "vllm":
        raise InputError(
            f"evaluation.engine: vllm answers in one process, and there are {processes.world_size()}.",
            "Start it without torchrun or accelerate launch, or use evaluation.engine: transformers.",
        )
    check_batch_for_processes(session.config.training.batch)
    if processes.uses_fsdp():
        if session.backbone.weights in QUANTISED:
            raise InputError(
                f"FSDP shards whole weights, and model.weights is {session.backbone.weights}.",
                "Use DDP (torchrun without FSDP), or model.weights: bf16.",
            )
        layers_to_wrap(session.backbone.module)


def memory_options(session: Session) -> MemoryOptions:
    """Return the options of the memory: those of the run, or those of a method that keeps everything."""
    return EVERYTHING if session.method.full_memory else session.config.memory


def memory_slots(session: Session, task: Task) -> int | None:
    """Return how many examples of a new task are kept, where the memory is bounded in total; ``None`` elsewhere.

    Raises:
        InputError: no slot is left for it.
    """
    total = session.memory_total
    if total is None:
        return None
    stored = Counter(name for name, _ in session.examples("memory"))
    slots = allot(total, [*stored.values(), len(task.train)])[-1]
    if slots == 0 and task.train:
        raise InputError(
            f"memory.total is {total}, and '{task.name}' is task {len(stored) + 1}: nothing of it could be kept.",
            "Start a run with a larger total.",
        )
    return slots


def reads_surprise(session: Session) -> bool:
    """Return whether the loss of every training example is needed to choose the memory."""
    return session.method.uses_memory and memory_options(session).reads_surprise


def sample(session: Session, task: Task, surprise: Sequence[float] | None = None) -> list[Example]:
    """Sample the examples of a task to keep for rehearsal; none for a method without a memory.

    Args:
        surprise: the loss of each training example, where the sampler needs it; ``None``: before training, when the
            number of examples matters and not which they are.
    """
    if not session.method.uses_memory:
        return []
    seed = derive_seed(session.config.seed, "memory", task.name)
    losses = [0.0] * len(task.train) if surprise is None else surprise
    slots = memory_slots(session, task)
    return sample_memory(task.train, task.spec.labels, memory_options(session), seed, losses, slots)
