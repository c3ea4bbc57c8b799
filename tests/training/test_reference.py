"""`compat: reference` on a tiny T5 with LoRA against a straight-line transcription of the released program's algorithm.

Both see the same data order (:class:`~merganser.training.data.EpochOrder`) and draw the same examples of the memory
(``numpy`` generators made of the seed and the number of the step or draw). Dropout is on in training, in rehearsal and
in the probes; its masks are made equal by a hook that seeds torch with the number of the forward pass. So the order and
the number of all forward passes are compared, too: one pass more or less on either side changes every later mask.
Everything is computed in double precision, so that sums in another order make no difference that could grow.

The released scripts train batches of 32 in micro-batches of 8: a step accumulates four losses, each divided by four.
The rehearsal passes through the same code with one batch of 32, so that its loss is divided by four, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merganser.events import Event, Merged
from merganser.methods.aim import Aim, AimOptions
from merganser.models.base import Backbone, Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from merganser.training.data import EpochOrder
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import TaskHooks, train_task
from tests.learner import toys
from tests.methods import plain

RATE, WARMUP, SEED = 0.005, 5, 12
OPTIONS = AimOptions(
    compat="reference", interval=4, cold_start=2, moving_until=8, halve_from=10, max_interval=14, measure_merges=False
)


@dataclass(frozen=True)
class Setting:
    """Steps, batch, accumulation, texts of the new task, threshold, grouping by length; without accumulation chosen so
    that merges fire for every cause and with every weight of the table."""

    steps: int
    micro: int
    accumulation: int
    texts: int
    threshold: float
    grouped: bool


def backbone() -> Backbone:
    name = str(toys.model_folder("seq2seq", layers=2))
    options = ModelOptions(name=name, kind="seq2seq", precision="fp32", lora={"r": 2})
    found = load_backbone(options, Lengths(32, 8), 0)
    found.module.double()
    seconds = itertools.count()
    found.module.register_forward_pre_hook(lambda *_: torch.manual_seed(next(seconds)) and None)
    return found


def features(model: Backbone, task: str, number: int) -> list[dict[str, Any]]:
    rows = [Example(row["input"], row["output"], "") for row in toys.rows(task, number)]
    return model.features(rows, AnswerSpec(toys.LABELS[task]))


def batches_of(new: list[Any], setting: Setting) -> Iterator[list[list[Any]]]:
    """The micro-batches of one step after the other, epoch after epoch, without end."""
    batch = setting.micro * setting.accumulation
    order = EpochOrder([item["length"] if setting.grouped else 0 for item in new], batch, SEED)
    for epoch in itertools.count():
        order.set_epoch(epoch)
        indices = list(order)
        for first in range(0, len(indices), batch):
            starts = range(first, first + batch, setting.micro)
            yield [[new[i] for i in indices[start : start + setting.micro]] for start in starts]


def copied(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def adapted(interval: int, learning: float, before: float) -> int:
    """The next interval: shorter where more was learned than before the merge before, longer otherwise."""
    if learning >= before:
        interval = max(2, int(interval / (learning / before)))
        return int(interval / 2) if interval >= 10 else interval
    return min(14, int(interval * (before / learning + (1 if interval < 10 else 0.5))))


def transcription(
    model: Backbone, new: list[Any], memory: list[Any], seed: int, setting: Setting
) -> list[dict[str, Any]]:
    """Two loops, one optimizer; everything from the description, nothing from the library's controller or callback."""
    batch = setting.micro * setting.accumulation
    module = model.module.train()
    params = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: n / WARMUP if n < WARMUP else (setting.steps - n) / (setting.steps - WARMUP)
    )

    def draw(purpose: int, number: int) -> list[Any]:
        chosen = np.random.default_rng([seed, purpose, number]).choice(len(memory), batch, replace=False)
        return [memory[i] for i in chosen]

    def step_on(batches: list[list[Any]]) -> None:
        optimizer.zero_grad()
        for examples in batches:
            (module(**model.collate(examples))["loss"] / setting.accumulation).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    interval, due, tau, p, history, alarms, signals, draws = 4, 4, 0.0, 0, [], 0, [], 0
    theta0, merges = copied(params), []
    for s, batches in enumerate(itertools.islice(batches_of(new, setting), setting.steps), start=1):
        step_on(batches)
        schedule.step()
        with torch.no_grad():
            loss = float(module(**model.collate(draw(2, s)))["loss"])  # dropout stays on
        forced = False
        if p < int(interval * 2 / 3):
            history.append(loss)
        elif p == int(interval * 2 / 3):
            history.append(loss)
            tau = sum(history) / len(history) * setting.threshold
        elif loss >= tau:
            alarms += 1
        elif s >= due + interval:
            alarms, forced = alarms + 1, True
        p += 1
        if not ((s >= due and alarms >= 1) or alarms >= 3):
            continue
        cause = "early" if s < due else "forced" if forced and alarms == 1 else "due"
        w_new = (0.5 if alarms > 1 else 0.6) if interval <= 8 else (0.4 if alarms > 1 else 0.5)
        theta_k = copied(params)
        learning = sum(float((k - o).abs().sum()) for k, o in zip(theta_k, theta0, strict=True)) / interval
        for _ in range(interval):  # as many rehearsal steps; the schedule stands still
            step_on([draw(5, draws)])  # one batch, through the same step: its loss is divided, too
            draws += 1
        with torch.no_grad():
            for q, k, o in zip(params, theta_k, theta0, strict=True):
                q.copy_(o + w_new * (k - o) + (1 - w_new) * (q - k))
        theta0 = copied(params)
        merges.append({"step": s, "cause": cause, "alarms": alarms, "interval": interval})
        merges[-1] |= {"w_new": w_new, "theta": theta0}
        if len(signals) > 2:
            interval = adapted(interval, learning, signals[-1])
        signals.append(learning)
        due, tau, p, history, alarms = s + interval, 0.0, 0, [], 0
    return [*merges, {"theta": copied(params)}]


def _check_variety(merges: list[dict[str, Any]]) -> None:
    assert {m["cause"] for m in merges} == {"due", "early", "forced"}
    assert len({m["interval"] for m in merges}) >= 3
    assert len({m["w_new"] for m in merges}) == 3  # every value of the weight table


@pytest.mark.parametrize(
    "setting", [Setting(64, 4, 1, 12, 1.005, True), Setting(16, 2, 4, 16, 1.0, False)], ids=["1", "4"]
)
def test_every_weight_after_every_merge_of_a_second_task(setting: Setting) -> None:
    given: dict[str, Any] = {"learning_rate": RATE, "warmup": WARMUP, **OPTIONS.training_values()}
    given["group_by_length"] = setting.grouped
    training = TrainingOptions(steps=setting.steps, batch=setting.micro, accumulation=setting.accumulation, **given)
    first = TrainingOptions(steps=10, batch=4, learning_rate=RATE / 10, warmup=WARMUP)

    def prepared() -> tuple[Backbone, list[dict[str, Any]], list[dict[str, Any]]]:
        model = backbone()
        old, new = features(model, "mood", 10), features(model, "topic", setting.texts)
        train_task(model, old, first, seed=SEED, records=TaskRecords("mood"))
        return model, new, old

    model, new, old = prepared()
    weights: list[list[Tensor]] = []

    def copy_weights() -> None:
        weights.append(copied(p for p in model.module.parameters() if p.requires_grad))

    def listener(event: Event) -> None:
        assert isinstance(event, Merged)
        copy_weights()

    method = Aim(OPTIONS.model_copy(update={"threshold_factor": setting.threshold}))
    method.records = TaskRecords("topic", 2, listener)
    context = plain.context(model.module, 2, task="topic", backbone=model, memory=old, training=training, seed=SEED)
    hooks = TaskHooks(method.callbacks(context))
    train_task(model, new, training, seed=SEED, records=method.records, hooks=hooks)
    method.after_task(context)
    copy_weights()

    expected = transcription(*prepared(), derive_seed(SEED, "aim"), setting)
    *merges, _ = expected
    assert merges
    if setting.accumulation == 1:
        _check_variety(merges)
    assert [(m.step, m.cause, m.alarms, m.interval, m.weight_new) for m in method.records.merges] == [
        (m["step"], m["cause"], m["alarms"], m["interval"], m["w_new"]) for m in merges
    ]
    for mine, theirs in zip(weights, expected, strict=True):
        for a, b in zip(mine, theirs["theta"], strict=True):
            assert torch.allclose(a, b, atol=1e-6, rtol=0)
