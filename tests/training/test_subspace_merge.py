"""The merge by optimisation on tiny models: its gradient against autograd, its limits, its Hessian both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from merganser.merging.subspace import Subspace
from merganser.models import matcher
from merganser.models.base import Backbone, Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from merganser.training.determinism import derive_seed
from merganser.training.rehearsal import MemoryBatches
from merganser.training.trm import subspace_merge
from merganser.training.trm.options import SubspaceOptions
from merganser.training.trm.responsiveness import Responsiveness
from merganser.training.trm.subspace_merge import MergeReport, SubspaceMerge, Trajectory
from merganser.weights import Weights
from tests.learner import toys

SEED, EXAMPLES, PIECE = 3, 6, 4
EARLIER = {"mood": AnswerSpec(labels=("good", "bad"))}
OWN = AnswerSpec(labels=("sport", "business"))
A, B = ".lora_A.", ".lora_B."


def backbone_of(kind: Any = "matcher", lora: bool = False) -> Backbone:
    name = str(toys.model_folder(kind, layers=2))
    options = ModelOptions(name=name, kind=kind, precision="fp32", lora=LoraOptions(r=2) if lora else None)
    found = load_backbone(options, Lengths(32, 8), seed=1)
    found.module.eval()
    return found


def features_of(backbone: Backbone) -> list[dict[str, Any]]:
    for spec in (*EARLIER.values(), OWN):
        backbone.features([Example("x", spec.labels[0], "")], spec)  # type: ignore[index]
    return list(backbone.features([Example(r["input"], r["output"], "") for r in toys.rows("topic", EXAMPLES)], OWN))


def moved(point: Weights, seed: int, size: float) -> Weights:
    """The point after a step in a random direction; ``size`` is a share of each tensor's own spread."""
    generator = torch.Generator().manual_seed(seed)
    return Weights(
        {
            name: value
            + size * (value.std(correction=0) + 0.1) * torch.randn(value.shape, generator=generator).to(value)
            for name, value in point.items()
        }
    )


def trajectory_of(backbone: Backbone, size: float = 0.2) -> Trajectory:
    """Some start, a point and an end near each other, as training would leave them."""
    pretrained = Weights.of(backbone.module).snapshot()
    start = moved(pretrained, 1, size)
    return Trajectory(start, moved(start, 2, size), [moved(start, 3, size)], pretrained)


def merging_of(backbone: Backbone, features: Any = None, **options: Any) -> SubspaceMerge:
    asked = SubspaceOptions.model_validate({"batch": EXAMPLES, **options})
    return SubspaceMerge(backbone, features or features_of(backbone), EARLIER, asked, PIECE, SEED)


class Spy:
    """What the optimisation of one merge worked with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.spaces: list[Subspace] = []
        self.measures: list[Responsiveness] = []
        self.steps: list[tuple[Tensor, Tensor]] = []
        span, step, spy = Subspace.span, torch.optim.Adam.step, self

        def spanned(*arguments: Any, **named: Any) -> Subspace:
            spy.spaces.append(span(*arguments, **named))
            return spy.spaces[-1]

        class Measure(Responsiveness):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                spy.measures.append(self)

        def stepped(optimizer: Any, *arguments: Any, **named: Any) -> Any:
            (alpha,) = optimizer.param_groups[0]["params"]
            spy.steps.append((alpha.detach().clone(), alpha.grad.clone()))
            return step(optimizer, *arguments, **named)

        patch.setattr(Subspace, "span", spanned)
        patch.setattr(subspace_merge, "Responsiveness", Measure)
        patch.setattr(torch.optim.Adam, "step", stepped)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


class Whole(nn.Module):
    """Logits over some labels, and the vectors that the probe reads, in one call that ``functional_call`` can make."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: dict[str, Tensor], candidates: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.module(**inputs, candidates=candidates, labels=None)["logits"]
        return logits, self.module.embed(**inputs)  # type: ignore[operator]


class Objective:
    """J(alpha) as the specification writes it, over a merge that autograd sees through."""

    def __init__(self, backbone: Any, features: Any, subspace: Subspace, options: SubspaceOptions) -> None:
        self.backbone, self.subspace, self.options = backbone, subspace, options
        self.whole = Whole(backbone.module)
        self.batches = MemoryBatches(features, EXAMPLES, derive_seed(SEED, "batches"))
        rows = [row for spec in EARLIER.values() for row in backbone.label_rows(spec)]
        self.before = torch.tensor(rows)
        generator = torch.Generator().manual_seed(derive_seed(SEED, "probe"))
        self.probe = self.batches.probe(0)
        width = self.run(subspace.origin, self.probe)[1].shape[1]
        sizes = [PIECE, EXAMPLES - PIECE]
        self.vectors = torch.cat([torch.randn(size, width, generator=generator) for size in sizes]).double()

    def merged(self, alpha: Tensor) -> dict[str, Tensor]:
        space, parts = self.subspace, self.subspace.split(alpha)
        return {
            name: space.origin[name]
            + sum((parts[g] @ space.mixing[g])[i] * each[name] for i, each in enumerate(space.directions))
            for g, names in space.groups.items()
            for name in names
        }

    def run(self, weights: Any, examples: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits over the task's labels and then the earlier ones, vectors, right answers."""
        batch = dict(self.backbone.collate(examples))
        own, labels = batch.pop("candidates"), batch.pop("labels")
        both = torch.cat([own, self.before.expand(len(own), -1)], 1)
        named = {f"module.{name}": value for name, value in dict(weights).items()}
        logits, vectors = functional_call(self.whole, named, (batch, both))
        return logits, vectors, labels

    def energies(self, weights: dict[str, Tensor], create_graph: bool) -> dict[str, Tensor]:
        names = list(weights)
        value = (self.vectors * self.run(weights, self.probe)[1]).sum()
        slopes = torch.autograd.grad(
            value, [weights[n] for n in names], create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        found = dict(zip(names, slopes, strict=True))
        return {g: sum(found[n].square().sum() for n in ns) / EXAMPLES for g, ns in self.subspace.groups.items()}  # type: ignore[misc]

    def __call__(self, alpha: Tensor, step: int) -> Tensor:
        options, examples = self.options, self.batches.rehearsal(step)
        weights, own = self.merged(alpha), len(OWN.labels or ())
        logits, _, labels = self.run(weights, examples)
        teacher = self.run(self.subspace.origin, examples)[0].detach()
        align = functional.cross_entropy(logits[:, :own], labels)
        first = own if options.ablation.kept_labels == "earlier" else 0
        old, new = (each[:, first:].div(options.temperature).log_softmax(1) for each in (teacher, logits))
        consistency = options.temperature**2 * (old.exp() * (old - new)).sum(1).mean()
        found = {name: value.detach().clone().requires_grad_() for name, value in self.subspace.origin.items()}
        reference = {g: e.detach() for g, e in self.energies(found, False).items()}
        here = self.energies(weights, True)
        lacks = [(options.kappa * reference[g]).log() - here[g].log() for g in here if reference[g] > 0]
        responsiveness = torch.stack([lack.clamp(min=0) for lack in lacks]).mean()
        ridge = (alpha - self.subspace.start(options.weight)).square().sum()
        return (
            align + options.consistency * consistency + options.responsiveness * responsiveness + options.ridge * ridge
        )


@pytest.mark.parametrize("kept_labels", ["seen", "earlier"])
@pytest.mark.parametrize("responsiveness", [0.0, 0.7])
def test_the_gradient_of_the_whole_objective_equals_autograd(
    kept_labels: str, responsiveness: float, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pooled(hidden: Tensor, mask: Tensor, _: Any) -> Tensor:
        return functional.normalize((hidden * mask.unsqueeze(-1)).sum(1), dim=-1)

    monkeypatch.setattr(matcher, "pool", pooled)  # the matcher's own gives fp32, whatever the model's type
    backbone = backbone_of()
    backbone.module.double()
    features = features_of(backbone)
    merging = merging_of(
        backbone, features, steps=3, ablation={"kept_labels": kept_labels}, kappa=2.0, responsiveness=responsiveness,
        hvp="double_backward", consistency=0.8, ridge=0.3,
    )  # fmt: skip
    report = merging.merge(trajectory_of(backbone))
    (subspace,) = spy.spaces
    assert subspace.size > 10
    assert (report.objective[-1].get("responsiveness", 0.0) > 0) == (responsiveness > 0)
    objective = Objective(backbone, features, subspace, merging.options)
    assert len(spy.steps) == 3
    for step, (alpha, found) in enumerate(spy.steps):
        with sdpa_kernel(SDPBackend.MATH):
            here = alpha.clone().requires_grad_()
            (expected,) = torch.autograd.grad(objective(here, step), here)
        assert found.dtype == torch.float64
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


def merged(trajectory: Trajectory, backbone: Backbone, **options: Any) -> tuple[Weights, MergeReport]:
    report = merging_of(backbone, **options).merge(trajectory)
    return Weights.of(backbone.module).snapshot(), report


NO_TERM = {"steps": 8, "consistency": 0, "responsiveness": 0, "ablation": {"align": "none"}}


@pytest.mark.parametrize("change", [{"steps": 0}, {"steps": 8, "ridge": 1e8}, NO_TERM])
@pytest.mark.parametrize("lora", [False, True])
def test_no_steps_and_a_huge_ridge_are_the_interpolation(change: dict[str, Any], lora: bool) -> None:
    backbone = backbone_of(lora=lora)
    trajectory = trajectory_of(backbone)
    found, report = merged(trajectory, backbone, space="factors", weight=0.4, **change)
    expected = trajectory.start.snapshot().combine_(1.0, [(0.4, trajectory.end.minus(trajectory.start))])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    assert report.weight == pytest.approx(0.4, abs=1e-5)
    # Without the ridge the same steps lead elsewhere.
    elsewhere, _ = merged(trajectory, backbone, space="factors", weight=0.4, steps=8, ridge=0)
    assert elsewhere.minus(expected).l2() > 0.01 * trajectory.end.minus(trajectory.start).l2()


@pytest.mark.parametrize("change", [{"steps": 0}, {"steps": 8, "ridge": 1e8}])
def test_of_updates_it_is_their_interpolation_cut_to_the_rank(change: dict[str, Any]) -> None:
    backbone = backbone_of(lora=True)
    trajectory = trajectory_of(backbone)
    found, report = merged(trajectory, backbone, weight=0.4, **change)
    lost = whole = 0.0
    for a in (name for name in found if A in name):
        b = a.replace(A, B)
        start, end = (each[b].double() @ each[a].double() for each in (trajectory.start, trajectory.end))
        update = 0.6 * start + 0.4 * end
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        best = (left[:, :2] * values[:2]) @ right[:2]
        torch.testing.assert_close(found[b].double() @ found[a].double(), best, atol=1e-5, rtol=1e-3)
        lost, whole = lost + float(values[2:].square().sum()), whole + float(values.square().sum())
    assert report.truncation == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert report.truncation > 0.01


def test_updates_over_one_a_are_interpolated_without_loss() -> None:
    backbone = backbone_of(lora=True)
    trajectory = trajectory_of(backbone)
    start = trajectory.start
    end = Weights({n: start[n] if A in n else value for n, value in trajectory.end.items()})
    found, report = merged(Trajectory(start, end), backbone, weight=0.4, steps=0)
    for a in (name for name in found if A in name):
        b = a.replace(A, B)
        torch.testing.assert_close(
            found[b] @ found[a], (0.6 * start[b] + 0.4 * end[b]) @ start[a], atol=1e-5, rtol=1e-4
        )
    assert report.truncation < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_nothing_is_lacking_where_the_task_started(lora: bool, spy: Spy) -> None:
    backbone = backbone_of(lora=lora)
    _, report = merged(trajectory_of(backbone), backbone, weight=0.0, steps=1, kappa=1.0)
    assert report.objective[0]["responsiveness"] == 0.0
    assert spy.measures[0].reference
    _, report = merged(trajectory_of(backbone), backbone, weight=0.0, steps=1, kappa=2.0)
    assert report.objective[0]["responsiveness"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("kind", ["matcher", "causal"])  # T5's ReLU has no second derivative to agree on
@pytest.mark.parametrize("lora", [False, True])
def test_both_ways_to_the_hessian_agree(kind: str, lora: bool, spy: Spy) -> None:
    backbone = backbone_of(kind, lora)
    with torch.no_grad():  # the toys' matrices are drawn ten times as wide as is usual, and bend as much more
        for name, parameter in backbone.module.named_parameters():
            if parameter.dim() == 2 and ".lora_" not in name:
                parameter.mul_(0.3)
    trajectory = trajectory_of(backbone)
    merged(trajectory, backbone, steps=1, space="factors", kappa=2.0)
    (measure,) = spy.measures
    found = {}
    for way in ("double_backward", "finite_difference"):
        measure.way = way
        value, slope = measure.loss_and_gradient()
        assert value > 0
        assert slope is not None
        found[way] = slope
    exact, near = found["double_backward"], found["finite_difference"]
    assert near.minus(exact).l2() <= 1e-3 * exact.l2()


@pytest.mark.parametrize("space", ["factors", "updates"])
def test_a_fresh_adapter_is_not_measured_on_its_a(space: str, spy: Spy) -> None:
    backbone = backbone_of(lora=True)
    start = Weights.of(backbone.module).snapshot()
    assert all(not value.any() for name, value in start.items() if B in name)
    _, report = merged(
        Trajectory(start, moved(start, 2, 0.2)),
        backbone,
        space=space,
        groups="layer",
        steps=1,
        ablation={"augmentation": "none"},
    )
    (measure,) = spy.measures
    measured = {name for names in measure.groups.values() for name in names}
    assert measured == {name for name in start if B in name}
    assert set(measure.reference) == set(measure.groups)  # every layer has an energy, although B = 0
    assert all(energy > 0 for energy in measure.reference.values())
    assert report.objective[0]["responsiveness"] < 20  # and no logarithm of a vanished one
