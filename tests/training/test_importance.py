"""Recurrent-KIF as a fusion of AimMerging: a tiny run against a straight-line transcription."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from merganser import AimConfig, AimMerging
from merganser.events import Event, Merged
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import MemoryBatches
from tests.training.test_aim import BATCH, CLIP, NEW, OLD, RATE, STEPS, Regression, arguments, collate, train

CONFIG = AimConfig(interval=8, rehearsal_steps=4, adapt_interval=False, watch_forgetting=False)


def transcription() -> tuple[list[list[Tensor]], list[float]]:
    """Eight inner steps, four outer ones, scores of each, fusion; again and again."""
    model = Regression()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)
    memory = MemoryBatches(OLD, BATCH, 5)
    total = sum(p.numel() for p in params)

    def step_on(batch: list[dict[str, Tensor]], average: list[Tensor], uncertainty: list[Tensor]) -> None:
        optimizer.zero_grad()
        model(**collate(batch))["loss"].backward()
        nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        for i, p in enumerate(params):  # with the weights after the step, and the gradients before it
            assert p.grad is not None
            now = (p.detach() * p.grad).abs()
            average[i] = 0.85 * average[i] + 0.15 * now
            uncertainty[i] = 0.85 * uncertainty[i] + 0.15 * (now - average[i]).abs()

    def zeros() -> list[Tensor]:
        return [torch.zeros_like(p) for p in params]

    def best_fifth(average: list[Tensor], uncertainty: list[Tensor]) -> list[Tensor]:
        scores = [a * u for a, u in zip(average, uncertainty, strict=True)]
        least = torch.cat([s.flatten() for s in scores]).topk(round(0.2 * total)).values[-1]
        return [s >= least for s in scores]

    theta0, draws = [p.detach().clone() for p in params], 0
    merged, means = [], []
    average, uncertainty = zeros(), zeros()
    rehearsed = zeros(), zeros()  # run on through the task
    for s in range(1, STEPS + 1):
        first = (s - 1) * BATCH % len(NEW)
        step_on(NEW[first : first + BATCH], average, uncertainty)
        schedule.step()
        if s % 8:
            continue
        new = best_fifth(average, uncertainty)
        theta_k = [p.detach().clone() for p in params]
        for _ in range(4):
            step_on(memory.rehearsal(draws), *rehearsed)
            draws += 1
        old = best_fifth(*rehearsed)
        average, uncertainty = zeros(), zeros()
        weight_sum = 0.0
        with torch.no_grad():
            for p, o, k, n, m in zip(params, theta0, theta_k, new, old, strict=True):
                w = torch.where(n & m, 0.4, torch.where(n, 1.0, torch.where(m, 0.0, 0.5)))
                weight_sum += float(w.sum())
                p.copy_(o + w * (k - o) + (1 - w) * (p - k))
        theta0 = [p.detach().clone() for p in params]
        merged.append(theta0)
        means.append(weight_sum / total)
    return merged, means


def test_every_weight_after_every_merge_is_that_of_the_transcription(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []
    model = Regression()

    def listener(event: Event) -> None:
        assert isinstance(event, Merged)
        seen.append([p.detach().clone() for p in model.parameters() if p.requires_grad])

    callback = AimMerging(
        OLD, CONFIG, fusion="importance_masks", merge_at_end=False, records=TaskRecords(listener=listener)
    )
    Trainer(model, arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[callback]).train()
    expected, means = transcription()
    assert [merge.step for merge in callback.merges] == list(range(8, STEPS, 8))
    assert {(merge.interval, merge.rehearsal_steps, merge.cause) for merge in callback.merges} == {(8, 4, "due")}
    assert [merge.weight_new for merge in callback.merges] == pytest.approx(means)
    assert all(merge.weight_new + merge.weight_old == pytest.approx(1) for merge in callback.merges)
    for ours, theirs in zip(seen, expected, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert torch.allclose(left, right, atol=1e-6, rtol=0)


def test_importance_is_not_measured_where_no_fusion_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("merganser.training.aim.fusion.Importance", never)
    callback = AimMerging(OLD, CONFIG)
    train(tmp_path, callback)
    assert callback.merges
    assert not any("importance" in name for name in callback.task_state().tensors)
