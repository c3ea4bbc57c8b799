r"""Merge by optimisation in the subspace of a task's trajectory.

.. math:: J(\alpha) = L_{align} + \lambda_c L_{cons} + \lambda_g L_{resp} + \lambda_r |\alpha - \alpha_{start}|^2

over :math:`m(\alpha) = m_{t-1} + \sum_k \alpha_k b_k` (:mod:`merganser.merging.subspace`), on data of the new task
alone: its loss, the consistency of earlier predictions with those of :math:`m_{t-1}`
(:mod:`merganser.training.trm.predictions`), and gradient responsiveness
(:mod:`merganser.training.trm.responsiveness`). Source of the idea, merging by these three in an augmented trajectory
subspace: Wang and Deng 2026, "Revitalizing the Beginning" (arXiv 2605.08311, abstract); the
formulas are Merganser's own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from merganser.merging.subspace import Subspace, group_parameters
from merganser.models.base import eval_mode
from merganser.models.precision import autocast
from merganser.training.determinism import derive_seed
from merganser.training.distillation import distillation
from merganser.training.rehearsal import MemoryBatches, model_loss, to_device
from merganser.training.trm.merge_space import MergeSpace, PlainSpace, UpdateSpace
from merganser.training.trm.options import SubspaceOptions
from merganser.training.trm.predictions import Predictions, Predictor, predictor, split_batches
from merganser.training.trm.responsiveness import Responsiveness, Scalar
from merganser.weights import Weights

if TYPE_CHECKING:
    from merganser.models.base import Backbone
    from merganser.streams.answers import AnswerSpec


@dataclass(frozen=True)
class Trajectory:
    """The states of the trained weights that a merge combines.

    Attributes:
        start: before the task, m_{t-1}.
        end: after its last step, theta_t.
        points: in between.
        pretrained: before any task; ``None``: not a direction.
        direction: of the optimizer's last step; ``None``: not a direction.
    """

    start: Weights
    end: Weights
    points: Sequence[Weights] = ()
    pretrained: Weights | None = None
    direction: Weights | None = None


@dataclass(frozen=True)
class MergeReport:
    """Coefficients and measures of a merge.

    Attributes:
        alphas: group -> coefficients of its rows.
        objective: values of J's terms per step, on that step's examples, before the step.
        weight: of the displacement in the result, by projection: <m_t - m_{t-1}, b_1> / |b_1|^2.
        displacement: L2 norm of b_1, the change made by training.
        learning_signal: sum of its absolute values.
        correction: L2 norm of the difference between result and interpolation.
        cosine: between displacement and correction; ``None`` when one is zero.
        truncation: relative error of truncating the merged update to the adapter's rank; 0 elsewhere.
    """

    alphas: dict[str, list[float]]
    objective: list[dict[str, float]]
    weight: float
    displacement: float
    learning_signal: float
    correction: float
    cosine: float | None
    truncation: float


@dataclass
class SubspaceMerge:
    """Merges the weight changes of one task's training.

    Args:
        backbone: its weights are overwritten with the merged ones.
        features: tokenised examples of the task.
        earlier: how the tasks learned before are answered, each by its own labels.
        options: of the merge.
        batch: examples per forward pass, as in training.
        seed: decides which examples are drawn, the random vectors of the probe, and a random direction.
    """

    backbone: Backbone
    features: Sequence[dict[str, Any]]
    earlier: Mapping[str, AnswerSpec]
    options: SubspaceOptions
    batch: int
    seed: int
    _predictor: Predictor = field(init=False, repr=False)
    _batches: MemoryBatches = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._predictor = predictor(self.backbone, self.earlier, self.features)
        size = min(self.options.batch, len(self.features))
        self._batches = MemoryBatches(self.features, size, derive_seed(self.seed, "batches"))

    def merge(self, trajectory: Trajectory) -> MergeReport:
        """Write the merged weights into the backbone, with dropout off; the training mode is restored."""
        space = self._space(trajectory)
        with eval_mode(self.backbone.module), space.opened() as parameters:
            current = Weights(parameters)
            start, end = space.point(trajectory.start), space.point(trajectory.end)
            subspace = self._subspace(space, trajectory, start, end, parameters)
            alpha = subspace.start(self.options.weight)
            objective: list[dict[str, float]] = []
            if self.options.steps and subspace.size:
                alpha, objective = self._optimise(space, subspace, alpha, parameters, end)
            subspace.materialize_(alpha, current)
            report = _report(subspace, alpha, self.options.weight, current, objective)
        return MergeReport(**{**vars(report), "truncation": space.truncation})

    def task_loss(self) -> float:
        """Return the model's own loss (nats) on one batch of the task, always the same, dropout off."""
        examples = self._batches.probe(2)
        with eval_mode(self.backbone.module), torch.no_grad(), self._autocast():
            return sum(
                len(piece) / len(examples) * float(model_loss(self.backbone.module, self._collate(piece)))
                for piece in split_batches(examples, self.batch)
            )

    def _space(self, trajectory: Trajectory) -> MergeSpace:
        if self.backbone.options.lora is None or self.options.space == "factors":
            return PlainSpace(self.backbone.module)
        w = self.options.weight
        reference = trajectory.start.snapshot().combine_(1 - w, [(w, trajectory.end)])
        directions = [] if trajectory.direction is None else [trajectory.direction]
        points = [trajectory.start, trajectory.end, *trajectory.points]
        return UpdateSpace(self.backbone.module, points, reference, directions)

    def _subspace(
        self,
        space: MergeSpace,
        trajectory: Trajectory,
        start: Weights,
        end: Weights,
        parameters: Mapping[str, nn.Parameter],
    ) -> Subspace:
        """Span the subspace: displacement, path, pull back, augmentation, in this order."""
        directions = [end.minus(start), *(space.point(point).minus(start) for point in trajectory.points)]
        if trajectory.pretrained is not None:
            directions.append(space.point(trajectory.pretrained).minus(start))
        augmentation = self.options.ablation.augmentation
        if augmentation == "consistency":
            directions.append(self._consistency_direction(start, end, parameters))
        elif augmentation == "gaussian":
            directions.append(_gaussian(start, derive_seed(self.seed, "direction")))
        elif augmentation == "adam" and trajectory.direction is not None:
            directions.append(space.tangent(trajectory.end, trajectory.direction))
        return Subspace.span(start, directions, group_parameters(list(parameters), self.options.groups))

    def _consistency_direction(self, start: Weights, end: Weights, parameters: Mapping[str, nn.Parameter]) -> Weights:
        """Compute the negative gradient of the consistency loss half-way between the start and the end of the task."""
        middle = start.snapshot().combine_(0.5, [(0.5, end)])
        gradient, _ = self._gradient(self._batches.probe(1), parameters, middle, start, None, consistency_only=True)
        return gradient.combine_(-1.0, [])

    def _optimise(
        self,
        space: MergeSpace,
        subspace: Subspace,
        start: Tensor,
        parameters: Mapping[str, nn.Parameter],
        end: Weights,
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """Optimise the coefficients by Adam; return them and the terms of J at every step."""
        options = self.options
        current, point = Weights(parameters), subspace.origin.snapshot()
        responsiveness = self._responsiveness(space, subspace.origin, parameters)
        # The ridge alone has curvature 2 lambda_r in every coefficient. Adam's steps do not shrink with the gradient,
        # so with longer steps the coefficients would oscillate about its minimum.
        rate = min(options.learning_rate, 1 / (2 * options.ridge)) if options.ridge else options.learning_rate
        alpha = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([alpha], lr=rate)
        history = []
        for step in range(options.steps):
            subspace.materialize_(alpha.detach(), point)
            teacher = end if options.ablation.align == "kl" else None
            gradient, terms = self._gradient(self._batches.rehearsal(step), parameters, point, subspace.origin, teacher)
            alpha_gradient = subspace.project_gradient(gradient)
            if responsiveness is not None:
                current.copy_(point)
                loss = responsiveness.literal if options.ablation.measure == "literal" else responsiveness.hinge
                terms["responsiveness"], slope = responsiveness.loss_and_gradient(loss)
                if slope is not None:
                    alpha_gradient += options.responsiveness * subspace.project_gradient(slope)
            offset = alpha.detach() - start
            terms["ridge"] = float(offset @ offset)
            alpha.grad = alpha_gradient + 2 * options.ridge * offset
            optimizer.step()
            with torch.no_grad():
                alpha.clamp_(options.minimum, options.maximum)
            history.append(terms)
        return alpha.detach(), history

    def _gradient(
        self,
        examples: Sequence[Any],
        parameters: Mapping[str, nn.Parameter],
        point: Weights,
        origin: Weights,
        teacher: Weights | None,
        *,
        consistency_only: bool = False,
    ) -> tuple[Weights, dict[str, float]]:
        """Return the gradient of alignment and weighted consistency at a point, and their values.

        Args:
            origin: weights whose predictions for earlier tasks are the target of consistency.
            teacher: weights whose answers are the target of alignment; ``None``: the labels.
        """
        options, current = self.options, Weights(parameters)
        total = Weights({name: torch.zeros_like(parameter) for name, parameter in parameters.items()})
        terms = {"alignment": 0.0, "consistency": 0.0}
        uses_consistency = consistency_only or options.consistency > 0
        for piece in split_batches(examples, self.batch):
            batch, share = self._collate(piece), len(piece) / len(examples)
            target = self._consistency_logits(self._predict_at(origin, current, batch)) if uses_consistency else None
            answers = None if teacher is None else self._predict_at(teacher, current, batch).answers
            current.copy_(point)
            with self._autocast():
                predictions = self._predictor.predict(batch)
                loss = predictions.own_loss if options.ablation.align == "own" else predictions.loss
                align = loss if answers is None else distillation(predictions.answers, answers)
                align = align * 0 if options.ablation.align == "none" else align
            consistency = (
                align * 0
                if target is None
                else distillation(self._consistency_logits(predictions), target, options.temperature)
            )
            value = consistency if consistency_only else align + options.consistency * consistency
            slopes = torch.autograd.grad(
                value * share, list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            total.combine_(1.0, [(1.0, Weights(dict(zip(parameters, slopes, strict=True))))])
            terms["alignment"] += share * float(align.detach())
            terms["consistency"] += share * float(consistency.detach())
        return total, terms

    def _consistency_logits(self, predictions: Predictions) -> Tensor:
        """Return the logits that consistency compares."""
        return predictions.earlier if self.options.ablation.kept_labels == "earlier" else predictions.seen

    def _predict_at(self, point: Weights, current: Weights, batch: Mapping[str, Any]) -> Predictions:
        current.copy_(point)
        with torch.no_grad(), self._autocast():
            return self._predictor.predict(batch)

    def _responsiveness(
        self, space: MergeSpace, origin: Weights, parameters: Mapping[str, nn.Parameter]
    ) -> Responsiveness | None:
        """Return the measure, with m_{t-1} as its reference; ``None`` where it has no weight."""
        options = self.options
        if options.responsiveness == 0:
            return None
        examples = self._batches.probe(0)
        parts: list[Scalar] = []
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "probe"))
        for piece in split_batches(examples, self.batch):
            batch = self._collate(piece)
            if options.ablation.measure == "literal":
                share = len(piece) / len(examples)
                parts.append(functools.partial(self._weighted_loss, batch, share))
            else:
                with torch.no_grad(), autocast(self.backbone.device, "fp32"):
                    shape = self._predictor.represent(batch).shape
                vectors = torch.randn(shape, generator=generator).to(self.backbone.device)
                parts.append(functools.partial(self._projection, batch, vectors))
        measured = group_parameters(space.measured(list(parameters)), options.groups)
        measure = Responsiveness(parameters, measured, parts, len(examples), kappa=options.kappa, way=options.hvp)
        Weights(parameters).copy_(origin)
        measure.set_reference()
        return measure

    # Second derivatives are lost in bfloat16: these two are computed in fp32 at any precision of the model.

    def _weighted_loss(self, batch: Mapping[str, Any], share: float) -> Tensor:
        with autocast(self.backbone.device, "fp32"):
            return share * model_loss(self.backbone.module, batch)

    def _projection(self, batch: Mapping[str, Any], vectors: Tensor) -> Tensor:
        with autocast(self.backbone.device, "fp32"):
            return (vectors * self._predictor.represent(batch)).sum()

    def _collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        return to_device(self.backbone.collate(examples), self.backbone.device)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return autocast(self.backbone.device, self.backbone.precision)


def _gaussian(like: Weights, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return Weights({name: torch.randn(value.shape, generator=generator).to(value) for name, value in like.items()})


def _report(
    subspace: Subspace, alpha: Tensor, weight: float, merged: Weights, objective: list[dict[str, float]]
) -> MergeReport:
    displacement = subspace.directions[0]
    change = merged.minus(subspace.origin)
    size = displacement.l2()
    projected = change.dot(displacement) / size**2 if size > 0 else weight
    correction = change.combine_(1.0, [(-weight, displacement)])
    return MergeReport(
        alphas={group: part.tolist() for group, part in subspace.split(alpha).items()},
        objective=objective,
        weight=projected,
        displacement=size,
        learning_signal=displacement.l1(),
        correction=correction.l2(),
        cosine=displacement.cosine(correction),
        truncation=0.0,
    )
