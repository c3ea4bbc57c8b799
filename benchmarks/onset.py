"""How a task begins: the gradient of its loss before its first step, and its accuracy while it is learned.

At the onset of every task but the first, the gradient of its loss (norm over all weights that training moves; for LoRA,
over the layers' own weights, which does not depend on how an update is factored) is measured on 64 of its training
examples twice: at the weights deployed after the task before, and at those before the merge. Accuracy on the same
examples is measured every third step: the steps to 90 % of what it is after the last step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from merganser.events import Event, RowDone, StepDone, TaskStarted
from merganser.learner import Learner
from merganser.models.base import eval_mode
from merganser.streams.task import Task
from merganser.training.rehearsal import model_loss
from merganser.weights import Weights

PROBED, EVERY = 64, 3
"""Training examples on which a task is probed; steps between probes of its accuracy."""


@dataclass
class Onset:
    """Listens to a run, and measures how a task begins: gradients at its onset, accuracy while it is learned.

    Attributes:
        learner: set before the run begins.
        tasks: of the stream, by name.
        found: a line per task but the first.
    """

    tasks: Mapping[str, Task]
    learner: Learner | None = None
    found: list[dict[str, Any]] = field(default_factory=list)
    _deployed: Weights | None = None
    _tuned: Weights | None = None
    _batches: list[dict[str, Any]] = field(default_factory=list)
    _curve: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if self.learner is None or self.learner.session.method.joint:
            return
        weights = Weights.of(self.learner.session.backbone.module)
        if isinstance(event, TaskStarted) and event.index > 1:
            self._batches = self._probe(self.tasks[event.task])
            self._curve = [(0, self._accuracy())]
            kept = weights.snapshot()
            norms = {}
            for name, point in (("merged", self._deployed), ("tuned", self._tuned)):
                assert point is not None
                weights.copy_(point)
                norms[name] = self._gradient_norm()
            weights.copy_(kept)
            self.found.append({"task": event.index, "start_accuracy": self._curve[0][1], **norms})
        elif isinstance(event, StepDone):
            if self.found and (event.step % EVERY == 0 or event.step == event.steps):
                self._curve.append((event.step, self._accuracy()))
            if event.step == event.steps:
                self._tuned = weights.snapshot()
                if self.found:
                    last = self._curve[-1][1]
                    first = next(step for step, value in self._curve if value >= 0.9 * last)
                    self.found[-1] |= {"last_accuracy": last, "steps_to_90": first, "steps": event.steps}
        elif isinstance(event, RowDone) and event.learned:
            self._deployed = weights.snapshot()

    def _probe(self, task: Task) -> list[dict[str, Any]]:
        """Batches of the task's training examples, answered among all classes seen so far and its own."""
        assert self.learner is not None
        session = self.learner.session
        spec = task.spec.with_labels_of(known.spec for known in session.known_tasks().values())
        features = session.backbone.features(task.train, spec)
        chosen = np.random.default_rng(len(features)).permutation(len(features))[:PROBED]
        return [
            session.backbone.collate([features[place] for place in chosen[start : start + 32]])
            for start in range(0, len(chosen), 32)
        ]

    def _accuracy(self) -> float:
        assert self.learner is not None
        module = self.learner.session.backbone.module
        with eval_mode(module), torch.no_grad():
            right = [module(**batch)["logits"].argmax(-1) == batch["labels"] for batch in self._batches]
        return float(torch.cat(right).float().mean())

    def _gradient_norm(self) -> float:
        """Of the loss on the probe's examples; of a layer with LoRA, with respect to its own weights."""
        assert self.learner is not None
        module = self.learner.session.backbone.module
        adapted = [p for name, p in module.named_parameters() if name.endswith("base_layer.weight")]
        moved = adapted or [p for p in module.parameters() if p.requires_grad]
        frozen = [p for p in moved if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        with eval_mode(module):
            loss = torch.stack([model_loss(module, batch) for batch in self._batches]).mean()
            slopes = torch.autograd.grad(loss, moved, allow_unused=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        return math.sqrt(sum(float(slope.square().sum()) for slope in slopes if slope is not None))
