"""One lesson: a task (or several at once) is learned, scored and written down as one row of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merganser import processes
from merganser.errors import DiskFullError, InputError, RunError
from merganser.evaluation import KnownTask, with_candidates
from merganser.events import RowDone, TaskStarted
from merganser.files.atomic import full_disk_is_an_error, write_json, write_json_lines
from merganser.learner.best_weights import BestWeights
from merganser.learner.checks import check_processes, check_selection, memory_options, sample
from merganser.learner.example_store import as_line, kept_example, write_images, write_prototypes
from merganser.learner.resume import best_weights, checkpoints_of, resume
from merganser.learner.session import Session
from merganser.methods import TaskContext
from merganser.metrics.score import Score, ScoreRow
from merganser.models.base import AnswerSpec
from merganser.runs.record import (
    CostRecord,
    RowFile,
    TaskRecord,
)
from merganser.streams.checks import check_names, check_task
from merganser.streams.memory import MemorySummary, memory_bytes, summarise_memory
from merganser.streams.task import Example, Task
from merganser.training.determinism import derive_seed
from merganser.training.progress_callback import ProgressCallback
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome, TaskHooks, planned_steps, train_task


class TaskRun:
    """Learns ``tasks`` and appends one row to the run.

    The run changes only when everything is complete: an error or a crash leaves it as it was, but for the checkpoints
    of the training, from which the same lesson goes on.
    """

    def __init__(self, session: Session, tasks: Sequence[Task]) -> None:
        self.session = session
        self.tasks = tasks
        self.selector: BestWeights | None = None
        self.records = TaskRecords()
        self.began = time.perf_counter()

    def run(self) -> ScoreRow:
        """Check, train, score, write.

        Raises:
            InputError: a task that is malformed or learned already, or a memory batch larger than the memory.
            RunError: the loss became not finite, or the disk is full.
        """
        processes.run_collectively(self._check)
        session = self.session
        for task in [*self.tasks, *session.future_tasks]:
            session.backbone.prepare_labels(task.train, KnownTask.of_task(task).spec)
        if not session.directory.row_folders():
            self._measure_start()
        number = len(session.directory.row_folders())
        first = self.tasks[0].name
        name = first if len(self.tasks) == 1 else f"{first}+{len(self.tasks) - 1}"
        earlier = self._score_newcomers()
        folder = session.directory.begin_row(number, name)
        try:
            self._go_to_start()
            session.weights_changed()
            outcome, cost = self._train(number, folder)
            row = self._write_row(number, folder, outcome, cost, earlier)
            session.weights_are(session.directory.commit_row(folder))
        except BaseException as error:
            session.directory.abandon_row(folder)
            diverged = isinstance(error, RunError) and not isinstance(error, DiskFullError)
            if diverged and processes.is_main():
                # It would again from here: whoever tries something else begins at the beginning.
                checkpoints_of(session, self.tasks, number).clear()
            session.restore()
            raise
        session.listener(RowDone(tuple(row.learned), {task: score.value for task, score in row.scores.items()}))
        return row

    def _check(self) -> None:
        if self.session.directory.lock.held is False:
            raise InputError("This run was opened for reading only.", "Open it without read_only to learn.")
        check_processes(self.session)
        if not self.tasks:
            raise InputError("No task was given to learn.", "Give at least one.")
        if len(self.tasks) > 1 and not self.session.method.joint:
            raise InputError(
                f"{self.session.method.title} learns one task at a time, and {len(self.tasks)} were given.",
                "Call learn once per task.",
            )
        learned = self.session.learned
        self.session.method.check_tasks([*learned, *(task.name for task in self.tasks)])
        check_names([task.name for task in self.tasks])
        check_selection(self.session, self.tasks)
        for task in self.tasks:
            check_task(task)
            self.session.backbone.check_examples(task.train, KnownTask.of_task(task).spec)
            if task.name in learned:
                raise InputError(f"Task '{task.name}' was learned already.", "Choose another name, or another run.")
            sample(self.session, task)  # a budget that keeps nothing is found now, not after training
        self.session.method.rehearsal_batch(self.session.config.training, len(self.session.memory()))

    def _measure_start(self) -> None:
        """Row 0: the weights before any training, and their scores on every task known by now."""
        known = self._known()
        folder = self.session.directory.begin_row(0, "start")
        try:
            scores = self.session.score(known, {})
            row = RowFile(
                row=0, tasks=[], scores=ScoreRow(learned=[], scores=scores), metrics={t.name: t.metric for t in known}
            )
            processes.on_main(lambda: self._save_weights(folder / "adapter"))
            processes.on_main(lambda: write_json(folder / "row.json", row.model_dump()))
            self.session.weights_are(self.session.directory.commit_row(folder))
        except BaseException:
            self.session.directory.abandon_row(folder)
            raise
        self.session.listener(RowDone((), {task: score.value for task, score in scores.items()}))

    def _known(self) -> list[KnownTask]:
        """The learned tasks, these, and those foreseen."""
        known = self.session.known_tasks()
        for task in [*self.tasks, *self.session.future_tasks]:
            known.setdefault(task.name, KnownTask.of_task(task))
        return list(known.values())

    def _score_newcomers(self) -> dict[int, dict[str, Score]]:
        """Scores, at row 0 and at the last row, of tasks that those rows did not know of."""
        columns = set(self.session.directory.matrix().tasks)
        new = [KnownTask.of_task(task) for task in self.tasks if task.name not in columns and task.test]
        if not new:
            return {}
        folders = self.session.directory.row_folders()
        found = {}
        for number in sorted({0, len(folders) - 1}):
            # With several models, a task that is not learned is answered by the pretrained one.
            alone = self.session.method.per_task_models
            self.session.use(folders[0 if alone else number])
            found[number] = self.session.score(new, self.session.known_tasks() if number and not alone else {})
        return found

    def _go_to_start(self) -> None:
        """Put the weights that the next task starts from into the model."""
        folders = self.session.directory.row_folders()
        if self.session.method.start == "pretrained":
            self.session.use(folders[0])
        elif self.session.method.start == "trained" and (folders[-1] / "trained").is_dir():
            self.session.backbone.load_weights(folders[-1] / "trained")
        else:
            self.session.use(folders[-1])

    def _features(
        self, examples: Sequence[tuple[str, Example]], specs: Mapping[str, AnswerSpec]
    ) -> list[dict[str, Any]]:
        features: list[dict[str, Any]] = []
        for name in dict.fromkeys(task for task, _ in examples):
            own = [example for task, example in examples if task == name]
            features += self.session.backbone.features(own, specs[name])
        return features

    def _train(self, number: int, folder: Path) -> tuple[Outcome, CostRecord]:
        options = self.session.config.training
        kept = self.session.memory()
        known = self.session.known_tasks()
        earlier = {name: task.spec for name, task in known.items()}
        new = {task.name: KnownTask.of_task(task) for task in self.tasks}
        labels = {name: task.spec.labels for name, task in [*known.items(), *new.items()]}
        if self.session.config.model.candidates == "seen" and not self.session.method.per_task_models:
            everything = [*known.values(), *new.values()]
            new = {name: with_candidates(task, everything) for name, task in new.items()}
            known = {name: with_candidates(task, everything) for name, task in known.items()}
        specs = {name: task.spec for name, task in [*known.items(), *new.items()]}
        fresh = [(task.name, example) for task in self.tasks for example in task.train]
        features = self._features([*kept, *fresh] if self.session.method.joint else fresh, specs)
        kept = [] if self.session.method.joint else kept
        memory = self._features(kept, specs)
        seed = derive_seed(self.session.config.seed, "task", number)
        steps = planned_steps(len(features), options)
        context = TaskContext(
            task=self.tasks[0].name,
            index=number,
            backbone=self.session.backbone,
            memory=memory,
            memory_groups=[(task, example.output if specs[task].labels else "") for task, example in kept],
            training=options,
            seed=seed,
            features=features,
            steps=steps,
            specs=specs,
            earlier=earlier,
            labels=labels,
            deployed=self.session.deployed,
            trained=self.session.trained,
            listener=self.session.listener,
        )
        self.records = records = TaskRecords(context.task, number, self.session.listener)
        self.session.method.records = records
        self.session.method.begin_task()
        self.selector = selector = best_weights(self.session, self.tasks)
        checkpoints = resume(self.session, self.tasks, records, steps, selector)
        step = checkpoints.found.step if checkpoints is not None and checkpoints.found is not None else 0
        self.session.listener(TaskStarted(context.task, number, len(features), len(memory), steps, step))
        outcome = train_task(
            self.session.backbone,
            features,
            options,
            seed=seed,
            records=records,
            hooks=TaskHooks(
                [
                    *self.session.method.callbacks(context),
                    *([] if selector is None else [selector]),
                    ProgressCallback(records),
                ],
                self.session.method.penalty(context),
            ),
            checkpoints=checkpoints,
        )
        if checkpoints is not None and checkpoints.found is not None:
            self.began -= checkpoints.found.values["seconds"]
        if not all(bool(weight.isfinite().all()) for weight in self.session.backbone.trainable().values()):
            raise processes.mark_collective(
                RunError(
                    f"The weights are not finite after the last step of task '{context.task}'.",
                    "Nothing of this task was kept; the run is as it was. Try a lower training.learning_rate.",
                )
            )
        if selector is not None:
            selector.put_best()
        if self.session.method.start == "trained":
            processes.on_main(lambda: self._save_weights(folder / "trained"))
        started = time.perf_counter()
        self.session.method.after_task(context)
        ending = time.perf_counter() - started
        processes.on_main(lambda: self._save_weights(folder / "adapter"))
        processes.on_main(lambda: self._save_method(folder / "method"))
        cost = records.cost.model_copy()
        cost.steps, cost.examples_trained = outcome.steps, outcome.examples
        elsewhere = cost.probing_seconds + cost.rehearsal_seconds + cost.merging_seconds
        elsewhere += cost.merge_eval_seconds + cost.bookkeeping_seconds
        elsewhere += 0.0 if selector is None else selector.seconds
        cost.inner_seconds = max(0.0, outcome.seconds + ending - elsewhere)
        return outcome, cost

    def _save_weights(self, folder: Path) -> None:
        with full_disk_is_an_error(folder):
            self.session.backbone.save_weights(folder)

    def _save_method(self, folder: Path) -> None:
        with full_disk_is_an_error(folder):
            folder.mkdir()
            self.session.method.save(folder)

    def _write_row(
        self,
        number: int,
        folder: Path,
        outcome: Outcome,
        cost: CostRecord,
        earlier: dict[int, dict[str, Score]],
    ) -> ScoreRow:
        """Score every known task, keep the memory, and write all of the row's files."""
        evaluating = time.perf_counter()
        scores = self._row_scores(number)
        cost.evaluating_seconds = time.perf_counter() - evaluating
        cost.examples_evaluated = sum(score.n for score in scores.values())
        if self.selector is not None:
            cost.evaluating_seconds += self.selector.seconds
            cost.examples_evaluated += self.selector.examples
        row = ScoreRow(learned=[task.name for task in self.tasks], scores=scores)
        processes.on_main(lambda: self._write_files(number, folder, outcome, cost, earlier, row))
        return row

    def _write_files(
        self,
        number: int,
        folder: Path,
        outcome: Outcome,
        cost: CostRecord,
        earlier: dict[int, dict[str, Score]],
        row: ScoreRow,
    ) -> None:
        kept: list[tuple[str, Example]] = []
        memories: dict[str, MemorySummary] = {}
        for task in self.tasks:
            chosen = sample(self.session, task)
            kept += [(task.name, example) for example in chosen]
            memories[task.name] = (
                summarise_memory(chosen, task.train, task.labels, memory_options(self.session))
                if chosen
                else MemorySummary()
            )
        examples = {"memory": kept, "test": [(task.name, example) for task in self.tasks for example in task.test]}
        if self.selector is not None:
            examples["dev"] = [(task.name, example) for task in self.tasks for example in task.dev]
        lines = {name: [as_line(kept_example(*each)) for each in part] for name, part in examples.items()}
        lines["merges"] = [merge.model_dump() for merge in self.records.merges]
        lines["signals"] = [signal.model_dump() for signal in self.records.signals]
        for name, part in lines.items():
            write_json_lines(folder / f"{name}.jsonl", part)
        write_images(folder, [example for part in examples.values() for _, example in part])
        prototypes = self._write_prototypes(folder)
        cost.seconds = time.perf_counter() - self.began
        remembered = memory_bytes([example for _, example in [*self.session.memory(), *kept]])
        position = len(self.session.learned)
        records = [
            TaskRecord(
                name=task.name,
                index=position + offset + 1,
                row=number,
                seed=derive_seed(self.session.config.seed, "task", number),
                fingerprint=task.fingerprint(),
                train_examples=len(task.train),
                dev_examples=len(task.dev),
                test_examples=len(task.test),
                labels=None if task.labels is None else list(task.labels),
                label_texts=dict(task.label_texts),
                metric=task.metric,
                answer=task.answer,
                prompt=task.prompt,
                source=dict(task.source),
                memory=memories[task.name],
                # Tasks learned together share one training; its cost is written once, with the first.
                cost=cost if offset == 0 else CostRecord(),
                method_bytes={
                    "memory": remembered,
                    "weights": self._weight_bytes(number, folder),
                    **self._pretrained_bytes(),
                    **({"prototypes": prototypes} if prototypes else {}),
                    **self.session.method.bytes_kept(),
                },
                selected_step=self.selector.step if self.selector else None,
                dev_scores=self.selector.scores if self.selector else {},
                finished=_now(),
            )
            for offset, task in enumerate(self.tasks)
        ]
        metrics = {task.name: task.metric for task in self._known()}
        counts = {name: len(part) for name, part in lines.items()}
        file = RowFile(row=number, tasks=records, scores=row, earlier=earlier, metrics=metrics, lines=counts)
        write_json(folder / "row.json", file.model_dump())

    def _answered_by(self, number: int) -> dict[str, int]:
        """Task -> row whose weights answer it, once this row is learned."""
        rows = {task.name: row.row for row in self.session.directory.rows() for task in row.tasks}
        return self.session.method.answered_by({**rows, **{task.name: number for task in self.tasks}})

    def _write_prototypes(self, folder: Path) -> int:
        """Keep the label vectors that these tasks brought; the bytes of those of all tasks so far."""
        before = {label for task in self.session.known_tasks().values() for label in task.spec.labels or ()}
        new = [label for task in self.tasks for label in task.labels or () if label not in before]
        write_prototypes(folder, self.session.backbone.prototypes(list(dict.fromkeys(new))))
        everything = self.session.backbone.prototypes([*before, *new])
        return sum(vector.numel() * vector.element_size() for vector in everything.values())

    def _weight_bytes(self, number: int, folder: Path) -> int:
        """Bytes of the weights that must survive: those of every row that answers a task."""
        folders = [*self.session.directory.row_folders(), folder]
        kept = [folders[row] / "adapter" for row in set(self._answered_by(number).values())]
        return sum(file.stat().st_size for each in [*kept, folder / "trained"] for file in each.glob("*.safetensors"))

    def _pretrained_bytes(self) -> dict[str, int]:
        """Bytes of the weights before any task, where later tasks need them."""
        if not self.session.method.keeps_pretrained(self.session.backbone.options.lora is not None):
            return {}
        files = (self.session.directory.row_folders()[0] / "adapter").glob("*.safetensors")
        return {"pretrained weights": sum(file.stat().st_size for file in files)}

    def _row_scores(self, number: int) -> dict[str, Score]:
        known = self._known()
        if not self.session.method.per_task_models:
            names = {*self.session.learned, *(task.name for task in self.tasks)}
            return self.session.score(known, {task.name: task for task in known if task.name in names})
        # A task whose weights did not change keeps its score.
        scores = {name: score for row in self.session.directory.rows() for name, score in row.scores.scores.items()}
        changed = {name for name, row in self._answered_by(number).items() if row == number}
        return {**scores, **self.session.score([task for task in known if task.name in changed], {})}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
