"""The methods of the table: what each says about itself, and replay's formula."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merganser.control import MergeController
from merganser.errors import InputError
from merganser.methods import METHODS, TaskContext, make_method
from merganser.methods.aim import AimOptions
from merganser.methods.replay import Replay, ReplayOptions
from merganser.methods.shared.rehearsal import RehearsalOptions
from merganser.training.aim.callback import AimMerging
from merganser.training.aim.config import AimConfig
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions
from merganser.training.rehearsal import MemoryBatches
from tests.methods import plain


class Line(nn.Module):
    """Loss: mean of (w x)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.w * x).pow(2).mean()}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"x": torch.tensor([item["x"] for item in items])}


def context(memory: list[dict[str, Any]], batch: int = 4, model: nn.Module | None = None) -> TaskContext:
    backbone = SimpleNamespace(module=model or Line(), collate=collate)
    return plain.context(backbone.module, 2, backbone=backbone, memory=memory, training=TrainingOptions(batch=batch))


MEMORY = [{"x": float(i)} for i in range(1, 7)]


def test_every_method_is_made_from_its_options() -> None:
    for name, method in METHODS.items():
        assert type(make_method(method.Options(name=name))) is method
        with pytest.raises(ValueError, match="no_such_option"):
            method.Options(name=name, no_such_option=1)


def test_replay_adds_the_weighted_loss_on_fresh_memory_batches() -> None:
    method = Replay(ReplayOptions(weight=0.5, batch=2))
    given = context(MEMORY)
    penalty = method.penalty(given)
    assert penalty is not None
    batches = MemoryBatches(MEMORY, 2, derive_seed(3, "replay"))
    for draw in range(4):
        x = collate(batches.rehearsal(draw))["x"]
        assert penalty(given.backbone.module, 0, {}, {}).item() == pytest.approx(0.5 * float((2 * x).pow(2).mean()))
    assert method.records.cost.examples_rehearsed == 8


def test_replay_without_a_memory_is_plain_training() -> None:
    assert Replay(ReplayOptions()).penalty(context([])) is None


@pytest.mark.parametrize("name", ["replay", "aim"])
def test_a_batch_that_was_asked_for_must_fit_the_memory(name: str) -> None:
    method = make_method(METHODS[name].Options(name=name, batch=7))  # type: ignore[call-arg]
    training = TrainingOptions(batch=4)
    assert method.rehearsal_batch(training, 0) is None
    assert method.rehearsal_batch(training, 7) == 7
    with pytest.raises(InputError, match=r"The option method.batch is 7, but the memory holds 6"):
        method.rehearsal_batch(training, 6)
    relaxed = make_method(METHODS[name].Options(name=name))
    assert relaxed.rehearsal_batch(training, 3) == 3
    assert relaxed.rehearsal_batch(training, 9) == 4


def test_the_options_of_aim_are_the_settings_of_its_configuration() -> None:
    """Every setting can be given in a file, at the top or under ``ablation``, and has the same default there."""
    assert AimOptions(replay_share=None).config() == AimConfig()
    given = {"rehearsal_steps": 0, "weight_old": None, "probe_batch": "quarter", "probe_set": "replayed"}
    assert AimOptions().config() == AimConfig(**given, moments="empty")
    top = {"interval": 5, "growth_short": 0.7, "weight_moving_calm": 0.2, "rehearsal_steps": 10, "probe_set": "fresh"}
    ablation = {"adapt_interval": False, "weight_new": 0.3}
    config = AimOptions(**top, ablation=ablation).config()
    assert config == AimConfig(**top, **ablation, probe_batch="quarter", moments="empty")
    not_of_the_callback = {
        "name",
        "compat",
        "ablation",
        "finish_weight",
        "replay_share",
        "replay_passes",
        "replay_steps",
        "replay_tokens",
        "replay_batches_per_pass",
        "consistency",
    }
    given = {*AimOptions.model_fields, *AimOptions().ablation.model_fields} - not_of_the_callback
    assert given == {field.name for field in fields(AimConfig)} - {"seed", "checkpoints"}
    assert AimOptions(probe_every=4).config().probes_per_interval is None
    with pytest.raises(ValueError, match="keep one"):
        AimOptions(probe_every=2, probes_per_interval=4)


@pytest.mark.parametrize(
    ("given", "beside", "rehearsed"),
    [
        ({}, 0.5, 0),
        ({"replay_share": None}, None, 4),
        ({"rehearsal_steps": "quarter"}, 0.5, 2),
        ({"fusion": "importance_masks"}, None, 4),
        ({"ablation": {"merge": False}}, None, 4),
        ({"compat": "paper"}, None, 8),
        ({"compat": "paper", "rehearsal_steps": 0}, None, 0),
        ({"compat": "reference"}, None, 8),
        ({"compat": "reference", "rehearsal_steps": 3}, None, 3),
    ],
)
def test_old_texts_are_rehearsed_beside_the_batches_or_before_merges_alone(
    given: dict[str, Any], beside: float | None, rehearsed: int
) -> None:
    options = AimOptions(**given)
    assert options.replay_share == beside
    assert MergeController(options.config()).rehearsal_steps == rehearsed
    assert (options.config().weight_old is None) == ("compat" in given or rehearsed == 0)
    assert AimOptions.model_validate(options.model_dump()) == options


def task(
    memory: int, steps: int = 100, *, old: int = 9, new: int = 9, batch: int = 10, kind: str = "seq2seq"
) -> TaskContext:
    """A task whose texts have ``new`` tokens, with a memory of texts of ``old`` tokens."""
    context: TaskContext = SimpleNamespace(  # type: ignore[assignment]
        memory=[{"length": old}] * memory,
        features=[{"length": new}] * 100,
        backbone=SimpleNamespace(kind=kind),
        steps=steps,
        training=TrainingOptions(batch=batch),
    )
    return context


def test_no_stored_text_is_read_more_often_than_its_passes() -> None:
    def share(memory: int, **given: Any) -> float | None:
        return AimOptions(replay_steps=None, **given).beside(task(memory))

    shares = [share(memory, replay_share=0.25, replay_passes=4) for memory in (10, 50, 500)]
    assert shares == [0.04, 0.2, 0.25]
    assert share(1, replay_passes=None) == 0.5
    assert share(0) is None
    assert AimOptions(replay_share=None).beside(task(10)) is None
    seldom = AimOptions(replay_passes=0.001).beside(task(1, steps=10**8))
    assert RehearsalOptions(name="replay", share=seldom).rows_before(8, 10**9 // 8) == 1


@pytest.mark.parametrize(
    ("old", "new", "memory", "steps", "share"),
    [
        (10, 10, 100, 100, 0.2),  # 20 of 100 steps
        (10, 10, 20, 20, 0.5),  # replay_share
        (40, 10, 40, 100, 0.05),  # an old text costs as much as four new ones
        (10, 40, 100, 100, 0.5),
        (10, 10, 100, 200, 0.1),  # a long task
        (10, 10, 1_000, 10_000, 0.05),  # at least a twentieth
        (40, 10, 400, 100, 0.25),  # one pass over the memory
        (10, 10, 1, 100, 0.005),  # replay_passes
    ],
)
def test_old_texts_beside_the_batches_cost_no_more_than_some_steps(
    old: int, new: int, memory: int, steps: int, share: float
) -> None:
    assert AimOptions(replay_steps=20).beside(task(memory, steps, old=old, new=new, batch=16)) == share


@pytest.mark.parametrize(
    ("new", "share", "length"),
    [
        (64, 0.5, 32),
        (64, 0.125, 128),
        (60, 0.5, 24),  # 30, less what padding adds
        (24, 0.5, 16),  # at least
    ],
)
def test_old_texts_that_an_encoder_reads_are_cut_to_a_share_of_the_tokens(new: int, share: float, length: int) -> None:
    options = AimOptions(replay_share=share, replay_tokens=0.25, replay_passes=None, replay_steps=None)
    encoder = task(1_000, new=new, kind="matcher")
    assert options.longest_beside(encoder) == length
    assert options.longest_beside(task(1_000, new=new)) is None
    assert AimOptions(replay_tokens=None).longest_beside(encoder) is None
    assert AimOptions(replay_share=None).longest_beside(encoder) is None


@pytest.mark.parametrize(
    ("steps", "old", "share", "length", "batches"),
    [
        (50, 64, 0.5, 24, 1),  # a short task: replay_tokens alone
        (100, 64, 0.5, 24, 1),  # 22 steps have as many tokens
        (200, 64, 0.293333, 24, 1),  # half of them: fewer texts, as long as before
        (200, 16, 0.44, 24, 1),  # short texts, which are not cut
        (400, 64, 0.146667, 24, 4),  # few stand beside a batch
        (4_000, 64, 0.133333, 24, 4),  # a twentieth of the tokens in any case
    ],
)
def test_a_long_task_reads_fewer_old_texts_and_cuts_them_no_shorter(
    steps: int, old: int, share: float, length: int, batches: int
) -> None:
    options = AimOptions(replay_steps=22, replay_tokens=0.22, replay_passes=None)
    encoder = task(100, steps, old=old, new=64, kind="matcher")
    assert options.beside(encoder) == share
    assert options.longest_beside(encoder) == length
    assert options.batches_per_pass(encoder) == batches
    assert AimOptions(replay_batches_per_pass=None).batches_per_pass(encoder) == 1
    assert AimOptions(replay_share=None).batches_per_pass(encoder) == 1


def test_a_model_that_compares_texts_with_labels_is_not_held_to_its_answers() -> None:
    kinds = ("matcher", "seq2seq", "causal")
    assert [AimOptions().consistency_of(kind) for kind in kinds] == [0.0, 1.0, 1.0]
    assert [AimOptions(consistency=0.5).consistency_of(kind) for kind in kinds] == [0.5, 0.5, 0.5]
    assert AimOptions(compat="paper").consistency_of("causal") == 0.0
    assert AimOptions(replay_share=None).consistency_of("causal") == 0.0


@pytest.mark.parametrize("memory", [19_000, 20_000])
def test_texts_are_cut_no_shorter_where_one_pass_over_a_large_memory_is_allowed(memory: int) -> None:
    encoder = task(memory, 4_000, old=900, new=640, batch=10, kind="matcher")
    assert AimOptions().longest_beside(encoder) == 280


def test_few_passes_are_made_of_one_batch_each() -> None:
    """What fills no pass at the end of a task is not read; and models that write learn less from fewer passes."""
    options = AimOptions(replay_steps=1)
    tasks = [task(10, steps, old=60, new=9, kind="matcher") for steps in (39, 40)]
    assert all(0 < (options.beside(encoder) or 0) < 0.2 for encoder in tasks)
    assert [options.batches_per_pass(encoder) for encoder in tasks] == [1, 4]
    assert options.batches_per_pass(task(10, 40, old=60, new=9)) == 1


@pytest.mark.parametrize("rehearsal_steps", [0, 2])
def test_losses_at_merges_are_measured_on_texts_as_long_as_those_beside_the_batches(rehearsal_steps: int) -> None:
    texts = [{"length": 40}] * 64
    backbone = SimpleNamespace(
        kind="matcher",
        shortened=lambda features, length: [{"length": min(length, feature["length"])} for feature in features],
        collate=lambda features: {"lengths": [feature["length"] for feature in features]},
    )
    asked = plain.context(nn.Linear(1, 1), 2, memory=texts, features=texts, backbone=backbone)
    method = make_method(AimOptions(rehearsal_steps=rehearsal_steps))
    method.begin_task()
    (callback,) = method.callbacks(asked)
    assert isinstance(callback, AimMerging)
    assert callback.collator is not None
    assert callback.collator([{"length": 40}, {"length": 5}]) == {"lengths": [40 if rehearsal_steps else 16, 5]}


@pytest.mark.parametrize(
    "given",
    [
        {"compat": "paper", "replay_share": 0.5},
        {"compat": "paper", "consistency": 0.5},
        {"ablation": {"merge": False}, "replay_share": 0.5},
        {"replay_share": None, "consistency": 0.5},
        {"replay_share": None, "replay_passes": 3},
        {"replay_share": None, "replay_steps": 0.1},
        {"compat": "paper", "replay_steps": 0.1},
        {"replay_share": None, "replay_tokens": 0.1},
        {"compat": "reference", "replay_tokens": 0.1},
        {"replay_share": None, "probe_set": "replayed"},
    ],
)
def test_what_never_rehearses_beside_the_batches_says_so(given: dict[str, Any]) -> None:
    refusal = r"needs (replay_\w+: null|consistency: 0|replay_share)|merge: false never rehearses|of replay_share"
    with pytest.raises(ValueError, match=refusal):
        AimOptions(**given)


def test_a_rehearsal_batch_is_as_large_as_the_batch_of_an_optimizer_step() -> None:
    training = TrainingOptions(batch=8, accumulation=4)
    sizes = [make_method(AimOptions(batch=size)).rehearsal_batch(training, 100) for size in (None, 8)]
    assert sizes == [32, 8]
    assert make_method(AimOptions()).rehearsal_batch(training, 20) == 20


def test_aim_without_a_memory_is_plain_training() -> None:
    method = make_method(AimOptions())
    method.begin_task()
    assert method.callbacks(context([])) == []
    method.after_task(context([]))
    assert method.records.merges == []
    assert method.records.signals == []


def test_aim_refuses_bounds_that_cross() -> None:
    with pytest.raises(ValueError, match="larger than max_interval"):
        AimOptions(min_interval=9, max_interval=3)
