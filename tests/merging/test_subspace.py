"""The subspace of a trajectory, in double precision against plain formulas and autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from merganser.merging.subspace import Subspace, group_parameters, orthogonal_rows, parameter_group
from merganser.weights import Weights

NAMES = {"encoder.layer.0.weight": (4, 3), "encoder.layer.0.bias": (4,), "encoder.layer.1.weight": (2, 4), "head": (5,)}


def weights(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return Weights({n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in NAMES.items()})


@pytest.fixture
def subspace() -> Subspace:
    return Subspace.span(weights(0), [weights(1), weights(2), weights(3)], group_parameters(list(NAMES), "block"))


def put(subspace: Subspace, alpha: Tensor) -> Weights:
    target = subspace.origin.snapshot()
    subspace.materialize_(alpha, target)
    return target


def rows(subspace: Subspace, group: str) -> Tensor:
    """The rows b of a group (rows x entries), written out."""
    names = subspace.groups[group]
    flat = torch.stack([torch.cat([each[n].flatten() for n in names]) for each in subspace.directions])
    return subspace.mixing[group] @ flat


def test_names_fall_into_blocks_embeddings_and_the_rest() -> None:
    found = {
        "encoder.base_model.model.encoder.layer.11.attention.self.query.lora_A.default.weight": "11",
        "shared.weight": "embeddings",
        "model.embed_tokens.weight": "embeddings",
        "vit.embeddings.patch_embeddings.projection.weight": "embeddings",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "decoder.block.0",
        "lm_head.weight": "rest",
    }
    for name, end in found.items():
        assert parameter_group(name, "block").endswith(end)
        assert parameter_group(name, "all") == "all"
    assert parameter_group("a.0.query.lora_B.default.weight", "layer") == parameter_group(
        "a.0.query.lora_A.default.weight", "layer"
    )
    assert parameter_group("a.0.dense.bias", "layer") == "a.0.dense"


def test_rows_are_orthogonal_and_as_long_as_the_displacement(subspace: Subspace) -> None:
    for group, names in subspace.groups.items():
        found = rows(subspace, group)
        size = sum(float(subspace.directions[0][n].square().sum()) for n in names)
        assert torch.allclose(found @ found.T, size * torch.eye(3, dtype=torch.float64), atol=1e-10)
        assert torch.equal(subspace.mixing[group][0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def test_what_earlier_rows_explain_is_dropped() -> None:
    origin, first, second = weights(0), weights(1), weights(2)
    nearly = Weights({name: 3 * first[name] + 1e-4 * second[name] for name in first})
    clearly = Weights({name: 3 * first[name] + 1e-1 * second[name] for name in first})
    groups = group_parameters(list(NAMES), "all")
    assert Subspace.span(origin, [first, nearly], groups).size == 1
    assert Subspace.span(origin, [first, clearly], groups).size == 2


def test_a_group_that_did_not_move_stays() -> None:
    first = weights(1)
    first["head"].zero_()
    subspace = Subspace.span(weights(0), [first, weights(2)], group_parameters(list(NAMES), "block"))
    assert len(subspace.mixing["rest"]) == 0
    moved = put(subspace, subspace.start(0.7) + 0.1)
    assert torch.equal(moved["head"], subspace.origin["head"])
    gradient = subspace.project_gradient(weights(5))
    assert len(gradient) == subspace.size == 4


def test_the_start_is_exactly_the_interpolation(subspace: Subspace) -> None:
    expected = subspace.origin.snapshot().combine_(1.0, [(0.3, subspace.directions[0])])
    found = put(subspace, subspace.start(0.3))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_put_is_the_formula(subspace: Subspace) -> None:
    alpha = torch.linspace(-0.4, 1.2, subspace.size, dtype=torch.float64)
    found = put(subspace, alpha)
    for group, part in subspace.split(alpha).items():
        names = subspace.groups[group]
        flat = torch.cat([(found[n] - subspace.origin[n]).flatten() for n in names])
        assert torch.allclose(flat, part @ rows(subspace, group), atol=1e-12)


def test_the_gradient_of_the_coefficients_equals_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(8, 3).double(), torch.randint(2, (8,))
    origin = Weights.of(model).snapshot()
    directions = [Weights({n: torch.randn_like(t) for n, t in origin.items()}) for _ in range(4)]
    subspace = Subspace.span(origin, directions, group_parameters(list(origin), "block"))
    alpha = (subspace.start(0.3) + 0.2 * torch.randn(subspace.size).double()).requires_grad_()

    def merged() -> dict[str, Tensor]:
        parts = subspace.split(alpha)
        return {
            name: origin[name]
            + sum((parts[g] @ subspace.mixing[g])[i] * d[name] for i, d in enumerate(subspace.directions))
            for g, names in subspace.groups.items()
            for name in names
        }

    loss = nn.functional.cross_entropy(functional_call(model, merged(), (x,)), y)
    (expected,) = torch.autograd.grad(loss, alpha)
    subspace.materialize_(alpha.detach(), Weights.of(model))
    nn.functional.cross_entropy(model(x), y).backward()
    found = subspace.project_gradient(Weights({n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def descend(subspace: Subspace) -> Weights:
    """Thirty steps of Adam on the coefficients towards a fixed point, with a ridge."""
    aim, start = weights(9), subspace.start(0.3)
    alpha = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=0.03)
    for _ in range(30):
        here = put(subspace, alpha.detach())
        alpha.grad = subspace.project_gradient(here.minus(aim)) + (alpha.detach() - start)
        optimizer.step()
    return put(subspace, alpha.detach())


def test_scaling_or_permuting_rows_leaves_the_merged_model_as_it_is(subspace: Subspace) -> None:
    expected = descend(subspace)
    factors = (1.0, 1e-3, 40.0)
    scaled = [Weights({n: f * t for n, t in d.items()}) for f, d in zip(factors, subspace.directions, strict=True)]
    order = [2, 0, 1]
    permuted = replace(
        subspace,
        mixing={group: mixing[order] for group, mixing in subspace.mixing.items()},
        displacement=dict.fromkeys(subspace.groups, 1),
    )
    for other in (Subspace.span(subspace.origin, scaled, subspace.groups), permuted):
        found = descend(other)
        assert all(torch.allclose(found[name], expected[name], atol=1e-9) for name in expected)


def test_a_subspace_needs_directions_that_fit() -> None:
    groups = group_parameters(list(NAMES), "all")
    with pytest.raises(ValueError, match="at least one direction"):
        Subspace.span(weights(0), [], groups)
    with pytest.raises(ValueError, match="do not match"):
        Subspace.span(weights(0), [Weights({"head": torch.zeros(5)})], groups)


def test_a_displacement_of_zero_spans_nothing() -> None:
    assert orthogonal_rows(torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64), 1e-3).shape == (0, 2)
