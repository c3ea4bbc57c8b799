"""AimMerging in a stock Trainer against a straight-line transcription of the algorithm in plain torch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from merganser import AimConfig, AimMerging
from merganser.errors import InputError, RunError
from merganser.events import Event, Merged
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import MemoryBatches

STEPS, BATCH, CLIP, RATE = 60, 4, 1.0, 0.05


class Regression(nn.Module):
    """Two-layer regression, small enough to check every weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 5)
        self.outer = nn.Linear(5, 1)
        self.frozen = nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.outer(torch.tanh(self.inner(x))).squeeze(-1) - y).pow(2).mean()}


def examples(number: int, seed: int, slope: float) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 3, generator=generator)
    return [{"x": row, "y": slope * row.sum() + 1} for row in x]


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in ("x", "y")}


NEW, OLD = examples(40, 1, 2.0), examples(12, 2, -1.0)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=more.pop("max_steps", STEPS),
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type=more.pop("lr_scheduler_type", "linear"),
        max_grad_norm=CLIP,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        seed=5,
        **more,
    )


def train(folder: Path, callback: AimMerging, **more: Any) -> Regression:
    model = Regression()
    trainer = Trainer(model, arguments(folder, **more), train_dataset=NEW, data_collator=collate, callbacks=[callback])
    trainer.train()
    return model


PAPER: dict[str, Any] = {
    "rehearsal_steps": "interval",
    "probes_per_interval": None,
    "weight_old": None,
    "probe_batch": None,
}


def paper(**more: Any) -> AimConfig:
    """The paper's numbers, but for those given."""
    return AimConfig(**{**PAPER, **more})


def eager(**more: Any) -> AimConfig:
    """The paper's numbers, with merges early enough for the toy task."""
    return paper(**{"interval": 4, "cold_start": 1, "threshold_factor": 1.02, "max_interval": 16, **more})


def every_step(**more: Any) -> AimMerging:
    """As in the paper: a fresh batch of the memory after every step, and no merge at the end."""
    return AimMerging(OLD, eager(probe_set="fresh", merge_at_end=False), **more)


def adapted(interval: int, learning: float, before: float) -> int:
    """The next interval: shorter where more was learned than before the merge before, longer otherwise."""
    if learning >= before:
        interval = max(2, int(interval / (learning / before)))
        return int(interval / 2) if interval >= 64 else interval
    return min(16, int(interval * (before / learning + (1 if interval < 64 else 0.5))))


def transcription() -> tuple[list[dict[str, Any]], Regression]:
    """The algorithm, line by line: inner step, probe, decide, rehearse, merge, adapt."""
    model = Regression()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)
    memory = MemoryBatches(OLD, BATCH, 5)

    def step_on(batch: list[dict[str, Any]]) -> None:
        optimizer.zero_grad()
        model(**collate(batch))["loss"].backward()
        nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()

    interval, due, tau, p, history, alarms, signals, draws = 4, 4, 0.0, 0, [], 0, [], 0
    theta0 = [q.detach().clone() for q in params]
    merges = []
    for s in range(1, STEPS + 1):
        first = (s - 1) * BATCH % len(NEW)
        step_on(NEW[first : first + BATCH])
        schedule.step()
        with torch.no_grad():
            loss = float(model(**collate(memory.probe(s)))["loss"])
        forced = False
        if p < int(interval * 2 / 3):
            history.append(loss)
            p += 1
        elif p == int(interval * 2 / 3):
            history.append(loss)
            tau = sum(history) / len(history) * 1.02
            p += 1
        elif loss >= tau:
            alarms += 1
        elif s >= due + interval:
            alarms += 1
            forced = True
        if not ((s >= due and alarms >= 1) or alarms >= 3):
            continue
        cause = "early" if s < due else "forced" if forced and alarms == 1 else "due"
        w_new = 0.5 if alarms > 1 else 0.6  # the interval stays below 70 here
        theta_k = [q.detach().clone() for q in params]
        learning = sum(float((a - b).abs().sum()) for a, b in zip(theta_k, theta0, strict=True)) / interval
        outer = interval
        for _ in range(outer):
            step_on(memory.rehearsal(draws))
            draws += 1
        with torch.no_grad():
            for q, k, o in zip(params, theta_k, theta0, strict=True):
                q.copy_(o + w_new * (k - o) + (1 - w_new) * (q - k))
        theta0 = [q.detach().clone() for q in params]
        planned = interval
        if len(signals) > 1:
            interval = adapted(interval, learning, signals[-1])
        signals.append(learning)
        due, tau, p, history, alarms = s + interval, 0.0, 0, [], 0
        merges.append(
            {"step": s, "cause": cause, "interval": planned, "next": interval, "signal": learning, "theta": theta0}
        )
    return merges, model


def test_every_weight_after_every_merge_is_that_of_the_transcription(tmp_path: Path) -> None:
    seen: list[list[torch.Tensor]] = []
    model: list[Regression] = []

    def listener(event: Event) -> None:
        assert isinstance(event, Merged)
        seen.append([p.detach().clone() for p in model[0].parameters() if p.requires_grad])

    callback = every_step(records=TaskRecords(listener=listener))
    model.append(Regression())
    trainer = Trainer(model[0], arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[callback])
    trainer.train()
    expected, final = transcription()
    assert len(expected) >= 4
    assert {merge["cause"] for merge in expected} >= {"due"}
    assert [m.step for m in callback.merges] == [m["step"] for m in expected]
    for merge, want, weights in zip(callback.merges, expected, seen, strict=True):
        assert (merge.cause, merge.interval, merge.next_interval) == (want["cause"], want["interval"], want["next"])
        assert merge.learning_signal == pytest.approx(want["signal"], rel=1e-5)
        for ours, theirs in zip(weights, want["theta"], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    for ours, theirs in zip(model[0].parameters(), final.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


def test_frozen_weights_stay_and_the_ledger_is_complete(tmp_path: Path) -> None:
    callback = every_step(records=TaskRecords("second", 2))
    model = train(tmp_path, callback)
    assert torch.equal(model.frozen.weight, Regression().frozen.weight)
    assert callback.merges
    for number, merge in enumerate(callback.merges, 1):
        assert (merge.task, merge.task_index, merge.merge) == ("second", 2, number)
        assert merge.norm_new > 0
        assert merge.norm_old > 0
        assert merge.cosine is not None
        assert -1 <= merge.cosine <= 1
        losses = (merge.loss_new_before, merge.loss_new_after, merge.loss_old_before, merge.loss_old_after)
        assert all(loss is not None and math.isfinite(loss) for loss in losses)
        assert merge.forgetting_signal == pytest.approx(merge.loss_old_before)  # one batch, dropout off in both
    cost = callback.cost
    assert cost.examples_probed == STEPS * BATCH
    assert cost.examples_rehearsed == BATCH * sum(merge.rehearsal_steps for merge in callback.merges)
    assert [signal.step for signal in callback.signals] == list(range(1, STEPS + 1))
    assert min(cost.probing_seconds, cost.rehearsal_seconds, cost.merging_seconds, cost.bookkeeping_seconds) > 0


def test_measuring_merges_changes_nothing(tmp_path: Path) -> None:
    told, silent = AimMerging(OLD, eager()), AimMerging(OLD, eager(), measure_merges=False)
    a, b = train(tmp_path, told), train(tmp_path, silent)
    for left, right in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(left, right)
    assert silent.merges[0].loss_new_before is None
    assert silent.merges[0].step == told.merges[0].step


def test_fewer_probes_cost_fewer_examples(tmp_path: Path) -> None:
    callback = AimMerging(OLD, paper(interval=10, probe_every=5))
    train(tmp_path, callback)
    probed = [signal.step for signal in callback.signals if signal.probe is not None]
    assert probed[:4] == [5, 10, 15, 20]
    assert callback.cost.examples_probed == len(probed) * BATCH
    assert [signal.step for signal in callback.signals] == list(range(1, STEPS + 1))
    assert callback.merges


@pytest.mark.parametrize(("dropout", "passes"), [(False, 3), (True, 4)])
def test_the_probe_at_a_merge_is_not_measured_twice(tmp_path: Path, dropout: bool, passes: int) -> None:
    calls: list[bool] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        found: torch.Tensor = model(**batch)["loss"]
        return found

    callback = every_step(loss=loss, probe_dropout=dropout)
    train(tmp_path, callback)
    assert calls.count(False) == STEPS + passes * len(callback.merges)
    assert all(merge.loss_old_before is not None for merge in callback.merges)


def test_merging_keeps_more_of_the_old_task_than_plain_training(tmp_path: Path) -> None:
    merged = train(tmp_path, AimMerging(OLD, eager()))
    plain = Regression()
    Trainer(plain, arguments(tmp_path), train_dataset=NEW, data_collator=collate).train()
    with torch.no_grad():
        assert merged(**collate(OLD))["loss"] < plain(**collate(OLD))["loss"]


def test_merge_at_end_leaves_no_update_unmerged(tmp_path: Path) -> None:
    callback = AimMerging(OLD, paper(interval=50, threshold_factor=100))
    train(tmp_path, callback, lr_scheduler_type="constant")
    assert [merge.cause for merge in callback.merges] == ["end"]
    assert callback.merges[0].step == STEPS
    assert callback.merges[0].rehearsal_steps == 50


def test_nothing_is_rehearsed_at_a_learning_rate_of_0(tmp_path: Path) -> None:
    callback = AimMerging(OLD, paper(interval=50, threshold_factor=100))
    merged = train(tmp_path, callback)
    (merge,) = callback.merges
    assert (merge.cause, merge.rehearsal_steps, merge.norm_old) == ("end", 0, 0.0)
    assert callback.cost.examples_rehearsed == 0
    plain = Regression()
    Trainer(plain, arguments(tmp_path), train_dataset=NEW, data_collator=collate).train()
    for ours, start, end in zip(merged.parameters(), Regression().parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, start + merge.weight_new * (end - start), atol=1e-6)


def test_by_default_two_probes_per_interval_and_half_of_its_steps_in_rehearsal(tmp_path: Path) -> None:
    callback = AimMerging(OLD)
    train(tmp_path, callback)
    assert [signal.step for signal in callback.signals if signal.probe is not None][:4] == [4, 8, 12, 16]
    assert callback.merges[0].rehearsal_steps == 4
    assert {(merge.weight_new, merge.weight_old) for merge in callback.merges} <= {(0.6, 1.0), (0.5, 1.0)}


def test_no_rehearsal_is_pure_interpolation(tmp_path: Path) -> None:
    callback = AimMerging(OLD, paper(interval=STEPS, watch_forgetting=False, rehearsal_steps=0))
    merged = train(tmp_path, callback)
    plain = Regression()
    Trainer(plain, arguments(tmp_path), train_dataset=NEW, data_collator=collate).train()
    assert [merge.rehearsal_steps for merge in callback.merges] == [0]
    assert callback.merges[0].cosine is None
    for ours, start, end in zip(merged.parameters(), Regression().parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, start + 0.6 * (end - start), atol=1e-6)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = AimMerging(OLD, eager())
    train(tmp_path, callback, gradient_accumulation_steps=2, max_steps=20)
    assert [signal.step for signal in callback.signals] == list(range(1, 21))
    assert callback.merges


@pytest.mark.parametrize(
    ("settings", "passes", "rehearsed"),
    [
        ({}, {2}, 4),  # the whole batch of an optimizer step, in parts as large as a training batch
        ({"batch": 2, "probe_batch": 3}, {1, 2}, 2),
        ({"rehearsal_gradient": "divided"}, {4}, 4),
    ],
)
def test_batches_of_the_memory_under_accumulation(
    tmp_path: Path, settings: dict[str, Any], passes: set[int], rehearsed: int
) -> None:
    sizes: set[int] = set()

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        sizes.add(len(batch["x"]))
        found: torch.Tensor = model(**batch)["loss"]
        return found

    callback = AimMerging(OLD, paper(interval=2, rehearsal_steps=1, **settings), loss=loss)
    given = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=4)
    given.per_device_train_batch_size = 2
    trainer = Trainer(Regression(), given, train_dataset=NEW, data_collator=collate, callbacks=[callback])
    trainer.train()
    assert sizes == passes
    assert callback.cost.examples_rehearsed == rehearsed * sum(merge.rehearsal_steps for merge in callback.merges) > 0
    assert callback.cost.examples_probed == settings.get("probe_batch", rehearsed) * 4


def test_memory_of_other_columns_goes_through_the_trainers_collator(tmp_path: Path) -> None:
    memory = [{**copy.copy(item), "source": "an old task"} for item in OLD]
    callback = AimMerging(memory, eager())
    train(tmp_path, callback)
    assert callback.merges


def test_bad_memories_and_diverged_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory is empty"):
        AimMerging([])
    with pytest.raises(InputError, match="batch is 13, but the memory holds 12"):
        train(tmp_path, AimMerging(OLD, batch=13))
    with pytest.raises(InputError, match="probe_batch is 99"):
        train(tmp_path, AimMerging(OLD, probe_batch=99))
    with pytest.raises(InputError, match="probe_set is 'frozen'; give 'fresh' or 'fixed'"):
        AimMerging(OLD, probe_set="frozen")
    with pytest.raises(InputError, match="1 groups for 12 examples"):
        AimMerging(OLD, probe_groups=["a"])
    broken = [{**item, "y": torch.tensor(math.nan)} for item in OLD]
    with pytest.raises(RunError, match="loss on the memory became nan after step 4"):
        train(tmp_path, AimMerging(broken))
