"""Push a run to the hub: one revision per task, each an export of the model as it was after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from merganser.errors import InputError, MerganserError, first_repeated, nearest
from merganser.files.hub import is_offline
from merganser.files.temporary_folder import temporary_folder
from merganser.learner.hub_repository import MAIN, OF_THE_HUB, HubRepository, RemoteState
from merganser.learner.learner import Learner
from merganser.learner.lineage import base_of, lineage_after
from merganser.lineage import DIGITS, Lineage
from merganser.runs.directory import RunDirectory
from merganser.runs.rows import Row

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Key = tuple[str, ...]
"""What makes two revisions the same: base, trained weights, last task, and whether all weights are there."""


@dataclass(frozen=True)
class PushOptions:
    """What to push, and how.

    Attributes:
        revision: only the model after this task, or that of this tag; ``None``: after each task.
        private: create a private repository; a public one is refused.
        merged: whole models, not adapters.
        replace: set ``main`` and revisions that the run has otherwise, or no more, to what it has.
        base_model: ``ID`` or ``ID@REVISION`` of the pretrained model, if the run read it from elsewhere.
        message: of the commits; ``None``: with the task's name.
        model_path: where the run's pretrained model is, if it has moved.
        dry_run: only say what would be pushed.
    """

    revision: str | None = None
    private: bool = False
    merged: bool = False
    replace: bool = False
    base_model: str | None = None
    message: str | None = None
    model_path: str | None = None
    dry_run: bool = False


@dataclass
class Step:
    """The revisions of one row.

    Attributes:
        row: number of the row.
        task: the last task that was learned in it.
        revisions: names of the revisions, one per task of the row and one per tag.
        missing: those that the hub has not.
        taken: those that it has for another model, and that are to be replaced.
        commit: the commit with the row's model; ``None``: it must be pushed.
        branch: where to push it; ``None``: nothing to push.
    """

    row: int
    task: str
    revisions: list[str]
    missing: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    commit: str | None = None
    branch: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the hub has it."""
        return self.branch is None and not self.missing and not self.taken


@dataclass
class PushResult:
    """What a push did, or of a dry run would do.

    Attributes:
        repository, url: where.
        created: whether the repository was created.
        pushed: task -> commit of what was pushed or named; of a dry run empty texts.
        already: tasks that the hub had.
        notes: sentences on what to know.
    """

    repository: str
    url: str
    created: bool = False
    pushed: dict[str, str] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def push(run: Path, repository: str, options: PushOptions, say: Callable[[str], None]) -> PushResult:
    """Push what the hub does not have yet; the run is only read.

    Rows are pushed in order, each as one commit of its export on ``main`` and a tag per task and per tag of the run.
    A row that comes before the one on ``main`` gets its tags on a commit beside it. Rows whose weights were removed
    are left out.

    Args:
        run: the run directory.
        repository: ``owner/name``.
        say: receives sentences on what happens.

    Raises:
        InputError: nothing was learned, an unknown task, no access, or a repository that holds what the run has not.
        RunError: the hub is busy, failed, or the connection was cut; what was pushed stays.
    """
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"'{repository}' names no repository of the hub.", "Give OWNER/NAME.")
    directory = RunDirectory.open(run)
    rows = _rows(directory, options.revision)
    if is_offline():
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed.", "Unset HF_HUB_OFFLINE.")
    hub = HubRepository(repository, say)
    state = hub.state()
    if options.private and state.exists and not state.private:
        raise InputError(
            f"'{repository}' exists and is public, and --private was asked for.",
            f"Make it private on {hub.url}/settings, or choose another name.",
        )
    planner = _Planner(directory, hub, state, options)
    steps = planner.plan(rows)
    result = PushResult(repository, hub.url, created=not state.exists)
    if Path(base_of(directory).name).expanduser().exists() and planner.holds == "adapter" and not options.base_model:
        result.notes.append(
            "The pretrained model is a folder of this machine: who loads the adapter needs it too. Name it on the hub "
            "(--base-model), or push whole models (--merged)."
        )
    result.notes += planner.notes
    result.already = [step.task for step in steps if step.is_done]
    waiting = [step for step in steps if not step.is_done]
    if options.dry_run:
        result.pushed = {step.task: "" for step in waiting}
        return result
    if waiting and not state.exists:
        hub.create(options.private)
        state = hub.state()
    _Pusher(directory, hub, state, options, say).push(waiting, result, planner.stale)
    return result


def revision_name(task: str) -> str:
    """Return the name of a task's tag: the task's, where git allows it."""
    name = re.sub(r"\.{2,}", ".", task).rstrip(".")
    if name.endswith(".lock") or name == MAIN or re.fullmatch(r"[0-9a-f]{7,40}", name):
        name = f"task-{name.removesuffix('.lock')}"
    return name


def _rows(directory: RunDirectory, task: str | None) -> list[Row]:
    """Return the rows to push."""
    rows = directory.rows[1:]
    names = [record.name for row in rows for record in row.file.tasks]
    if not rows:
        raise InputError(f"Nothing was learned yet in '{directory.path}'.", "Learn a task first.")
    tags = {name: row for name, row in directory.tags().items() if not row.is_start}
    if (twice := first_repeated(map(revision_name, [*names, *tags]))) is not None:
        raise InputError(f"Two names would be the revision '{twice}'.", "Push one of them to another repository.")
    if task is None:
        return rows
    chosen = [row for row in rows if task in [record.name for record in row.file.tasks]]
    chosen = chosen or [row for name, row in tags.items() if name == task]
    if not chosen:
        known = f"Learned tasks: {', '.join(names)}." + (f" Tags: {', '.join(tags)}." if tags else "")
        raise InputError(f"There is no task '{task}'.", nearest(task, [*names, *tags]) or known)
    return chosen


class _Planner:
    """Compares the run with the repository."""

    def __init__(self, directory: RunDirectory, hub: HubRepository, state: RemoteState, options: PushOptions) -> None:
        self.directory, self.hub, self.state, self.options = directory, hub, state, options
        self.holds = "model" if options.merged or directory.info.config["model"]["lora"] is None else "adapter"
        self.tags = directory.tags()
        self.notes: list[str] = []
        self.run_keys = {row.file.row: self._key_of(row) for row in directory.rows[1:]}
        self.main = hub.lineage(MAIN) if state.exists and state.files else None
        self.stale: tuple[str, ...] = tuple(self.main.files) if self.main is not None else ()

    def plan(self, rows: Sequence[Row]) -> list[Step]:
        """Return what is to be done for each row.

        Raises:
            InputError: the repository holds what the run has not, and ``replace`` is not set.
        """
        numbers = {key: number for number, key in self.run_keys.items()}
        at_main = numbers.get(_key(self.main)) if self.main is not None else 0
        foreign = self._foreign()
        commits = {} if self.main is None or self.state.head is None else {_key(self.main): self.state.head}
        steps = [self._step(row, commits) for row in rows]
        problems = [*foreign, *(self._taken_problem(name, step) for step in steps for name in step.taken)]
        if problems and not self.options.replace:
            raise InputError(
                f"'{self.hub.name}' holds what the run '{self.directory.path}' has not: {'; '.join(problems)}.",
                "Push to another repository, or start again with --replace: main and these revisions then become what "
                "the run has, and the commits that are there stay in its history.",
            )
        steps = [step for step in steps if self._can_push(step)]
        behind = -1 if foreign or at_main is None else at_main
        for step in steps:
            if step.commit is None and (step.missing or step.taken):
                step.branch = MAIN if step.row > behind else f"merganser-{revision_name(step.task)}"
        if foreign and self.options.revision is None and steps and steps[-1].branch is None:
            steps[-1].branch = MAIN  # its revision is there, and main is at another one
        return steps

    def _can_push(self, step: Step) -> bool:
        """Return whether what the hub has not can be pushed: the weights of the row are there.

        Raises:
            InputError: they were removed, and this row was asked for.
        """
        row = self.directory.rows[step.row]
        if step.commit is not None or not (step.missing or step.taken) or row.has_weights:
            return True
        if self.options.revision is not None:
            row.checked("adapter")
        self.notes.append(f"Not pushed: {_quoted(step.revisions)}, whose weights were removed to save space.")
        return False

    def _key_of(self, row: Row) -> Key:
        return _key(lineage_after(self.directory, row).model_copy(update={"holds": self.holds}))

    def _step(self, row: Row, commits: dict[Key, str]) -> Step:
        """Compare a row's revisions with the repository's.

        Args:
            commits: commit by what it holds, as far as it is known; those of the revisions are added.
        """
        names = [record.name for record in row.file.tasks]
        tags = [name for name, tagged in self.tags.items() if tagged.file.row == row.file.row]
        step = Step(row.file.row, names[-1], [revision_name(name) for name in [*names, *tags]])
        key = self.run_keys[row.file.row]
        for name in step.revisions:
            if name not in self.state.tags:
                step.missing.append(name)
                continue
            lineage = self.hub.lineage(name)
            if lineage is not None and _key(lineage) == key:
                commits.setdefault(key, self.state.tags[name])
            else:
                step.taken.append(name)
        step.commit = commits.get(key)
        return step

    def _foreign(self) -> list[str]:
        """Return what is on ``main`` that the run has not."""
        if self.main is None:
            others = [name for name in self.state.files if name not in OF_THE_HUB]
            return [f"files that Merganser has not pushed ({', '.join(others[:3])})"] if others else []
        if _key(self.main) in self.run_keys.values():
            return []
        base = base_of(self.directory)
        if self.main.base.sha256 != base.sha256:
            return [f"a model made from {self.main.base.described}, not from {base.described}"]
        if self.main.holds != self.holds:
            return [f"{_form(self.main.holds)}, not {_form(self.holds)}"]
        learned = {record.name for row in self.directory.rows for record in row.file.tasks}
        gone = [data.task for data in self.main.data if data.task not in learned]
        if gone:
            return [f"task {_quoted(gone)}, undone in the run since (or of another run)"]
        return [f"other weights after task '{self.main.data[-1].task}'"] if self.main.data else ["another model"]

    def _taken_problem(self, name: str, step: Step) -> str:
        weights = self.run_keys[step.row][1][:DIGITS]
        if name in map(revision_name, self.tags):
            return f"a revision '{name}' of another model than the run's tag ({weights})"
        return f"a revision '{name}' that is not the run's task ({weights}), undone and learned again since"


def _key(lineage: Lineage) -> Key:
    task = lineage.data[-1].task if lineage.data else ""
    return (lineage.base.sha256, lineage.weights, task, lineage.holds)


def _form(holds: str) -> str:
    return "whole models" if holds == "model" else "adapters"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class _Pusher:
    """Pushes the steps of a plan, in order."""

    def __init__(
        self,
        directory: RunDirectory,
        hub: HubRepository,
        state: RemoteState,
        options: PushOptions,
        say: Callable[[str], None],
    ) -> None:
        self.directory, self.hub, self.state, self.options, self.say = directory, hub, state, options, say

    def push(self, steps: Sequence[Step], result: PushResult, stale: Sequence[str]) -> None:
        """Push them.

        Args:
            result: extended after every step.
            stale: names of the files on ``main`` that an earlier push has written.

        Raises:
            InputError, RunError: with what was pushed before.
        """
        learner = None
        try:
            for step in steps:
                if step.branch is not None:
                    if learner is None:
                        learner = Learner.open(self.directory.path, read_only=True, model_path=self.options.model_path)
                    stale = self._commit(learner, step, stale)
                self._name(step)
                result.pushed[step.task] = step.commit or ""
                self.say(f"Pushed {_quoted(step.revisions)} to {self.hub.url}/tree/{step.revisions[-1]}")
        except MerganserError as error:
            done = f" Pushed before: {_quoted(list(result.pushed))}." if result.pushed else " Nothing was pushed."
            raise type(error)(
                f"{error.cause}{done}", f"{error.remedy} The same command continues with '{step.task}'."
            ) from error

    def _commit(self, learner: Learner, step: Step, stale: Sequence[str]) -> Sequence[str]:
        """Push the export of a row as one commit; return the names of its files."""
        branch = step.branch or MAIN
        parent = self.state.head
        if branch != MAIN:
            self.hub.start_branch(branch, self.state)
        with temporary_folder() as folder:
            lineage = learner.export(
                folder / "export", merged=self.options.merged, base_model=self.options.base_model, after=step.task
            )
            message = self.options.message or f"Learn {step.task}"
            step.commit = self.hub.commit(folder / "export", message, branch=branch, parent=parent, stale=stale)
        if branch == MAIN:
            self.state = replace(self.state, head=step.commit)
            return tuple(lineage.files)
        return stale

    def _name(self, step: Step) -> None:
        """Give a row's commit its names."""
        for name in step.taken:
            self.hub.delete_tag(name)
        for name in [*step.taken, *step.missing]:
            self.hub.tag(name, step.commit or "")
        if step.branch not in (None, MAIN):
            self.hub.delete_branch(str(step.branch))
