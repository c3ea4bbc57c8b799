"""TRM as a method of a run: train from the merged model, then merge by optimisation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from merganser.files.atomic import write_json
from merganser.methods.base import Method, MethodOptions, TaskContext, TaskState
from merganser.runs.record import MergeRecord
from merganser.training.determinism import derive_seed
from merganser.training.trm.options import SubspaceOptions

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.trm.path import TrajectoryPoints
    from merganser.training.trm.subspace_merge import MergeReport
    from merganser.weights import Weights


class TrmOptions(SubspaceOptions, MethodOptions):
    """Trajectory Regularized Merging, from the paper's abstract."""

    name: Literal["trm"] = "trm"


class Trm(Method[TrmOptions]):
    """Train from the merged model, then merge by optimising in the subspace of the trajectory. No data are stored.

    Implements the paper's abstract; the formulas and numbers are Merganser's own.
    """

    Options = TrmOptions
    title = "Trajectory Regularized Merging"
    paper = "Wang 2026, arXiv 2605.08311 (abstract; formulas our own)"
    idea = "Merge by a short optimisation in the subspace of the trajectory: align, stay consistent, stay responsive."
    stores = "the weights and the pretrained weights (2 P)"

    selects_best = False
    no_preferences = "its merge distils predictions on correct answers, and pairs have none"

    _path: TrajectoryPoints | None = None
    _start: Weights | None = None
    _report: MergeReport | None = None

    def _merges(self, context: TaskContext) -> bool:
        return context.index > 1 or self.options.ablation.merge_first

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.training.trm.path import TrajectoryPoints
        from merganser.weights import Weights

        self._path, self._report = None, None
        if not self._merges(context):
            return []
        weights = Weights.of(context.backbone.module)
        self._start = weights.snapshot()
        self._path = TrajectoryPoints(weights, self.options.snapshots, self.options.ablation.augmentation == "adam")
        return [self._path]

    def task_state(self) -> TaskState:
        return TaskState(tensors={} if self._path is None else self._path.state_tensors())

    def load_task_state(self, state: TaskState) -> None:
        if self._path is not None:
            self._path.load_state_tensors(state.tensors)

    def after_task(self, context: TaskContext) -> None:
        from merganser.training.trm.subspace_merge import SubspaceMerge, Trajectory
        from merganser.weights import Weights

        weights = Weights.of(context.backbone.module)
        if self._path is None or self._start is None:
            return
        pretrained = context.pretrained() if self.options.ablation.pull_back else None
        points = list(self._path.points.values())
        trajectory = Trajectory(self._start, weights.snapshot(), points, pretrained, self._path.direction)
        merging = SubspaceMerge(
            context.backbone,
            context.features,
            context.earlier,
            self.options,
            context.training.batch,
            derive_seed(context.seed, "trm"),
        )
        with self.records.timed("merge_eval_seconds"):
            before = merging.task_loss()
        with self.records.timed("merging_seconds"):
            self._report = merging.merge(trajectory)
        with self.records.timed("merge_eval_seconds"):
            after = merging.task_loss()
        self._path = self._start = None
        self._record(context, self._report, before, after)

    def _record(self, context: TaskContext, report: MergeReport, before: float, after: float) -> None:
        """Record the merge in the ledger; there is no memory on which losses could be measured."""
        weight = report.weight
        self.records.add_merge(
            MergeRecord(
                task=context.task,
                task_index=context.index,
                merge=1,
                step=context.steps,
                cause="end",
                interval=context.steps,
                next_interval=context.steps,
                learning_signal=report.learning_signal / context.steps,
                rehearsal_steps=0,
                weight_new=weight,
                weight_old=1 - weight,
                norm_new=report.displacement,
                norm_old=report.correction,
                cosine=report.cosine,
                loss_new_before=before,
                loss_new_after=after,
            )
        )

    def reads_adam(self) -> bool:
        return self.options.ablation.augmentation == "adam"

    def uses_products(self) -> bool:
        return self.options.space == "updates"

    def save(self, folder: Path) -> None:
        """Write coefficients and objective of the task's merge for inspection; the program does not read them."""
        if self._report is not None:
            write_json(folder / "merge.json", vars(self._report))

    def keeps_pretrained(self, lora: bool) -> bool:
        # The update BA of an adapter is zero before any task.
        return self.options.ablation.pull_back and (not lora or self.options.space == "factors")
