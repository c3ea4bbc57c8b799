"""Old examples beside every training batch: how many, how much of each, how many batches' at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from merganser.methods.base import TaskContext
from merganser.methods.shared.start_merge import FinishOptions

if TYPE_CHECKING:
    from merganser.models.base import Feature

REPLAY_SHARE = 0.5
"""Memory examples beside every training batch, as a share of it."""

CONSISTENCY = 1.0
"""Weight of the divergence from the answers that the model gave to them when the task began, where it writes them.

Where a text is compared with labels, holding the likelihoods of new labels, or of wrong answers, costs performance
where classes grow (docs/research.md)."""

REPLAY_PASSES = 8.0
"""How often a text of the memory is read beside the batches of one task, at most and on average."""

REPLAY_STEPS = 20.0
"""Tokens of the memory beside the batches of one task, at most, as a multiple of those of one optimizer step."""

REPLAY_TOKENS = 0.22
"""Tokens of these texts as a share of the task's, at most, where they can be cut: a task then costs less than 1.25
times plain fine-tuning, the losses measured at merges included."""

REPLAY_BATCHES_PER_PASS = 4
"""Training batches whose memory examples an encoder reads in one pass in a long task, where few stand beside each: a
pass of one or two texts that are cut takes almost as long as one of eight."""

FEWEST_PASSES = 10
"""Passes of a task with more than one batch each, at least."""

LEAST_TOKENS = 16
"""Tokens of a text that is cut, at least."""

LEAST_COST = 0.05
"""Share of the task's tokens that these may have in any case."""

BESIDE = ("replay_passes", "replay_steps", "replay_tokens", "replay_batches_per_pass")
"""Options of the examples that ``replay_share`` puts beside the training batches."""


class BesideOptions(FinishOptions):
    """Options of the memory examples beside the training batches."""

    replay_share: float | None = Field(
        REPLAY_SHARE,
        gt=0,
        le=1,
        description="memory examples beside every training batch as a share of it, as in `replay`; null: none, and "
        "rehearsal before merges alone, for which rehearsal_steps is then half by default",
    )

    replay_passes: float | None = Field(
        REPLAY_PASSES,
        gt=0,
        allow_inf_nan=False,
        description="with replay_share: passes over the memory beside the batches of one task, at most; a longer task "
        "has a smaller share; null: no limit",
    )
    replay_steps: float | None = Field(
        REPLAY_STEPS,
        gt=0,
        allow_inf_nan=False,
        description="with replay_share: tokens of these examples in one task, at most, as many as so many optimizer "
        "steps of the task read, which bounds what a long task costs; a share of "
        f"{LEAST_COST} of the task's tokens and one pass over the memory are always allowed; null: no limit",
    )
    replay_tokens: float | None = Field(
        REPLAY_TOKENS,
        gt=0,
        le=1,
        description="with replay_share, where an encoder compares a text with labels: tokens of these texts as a share "
        f"of the task's, at most; longer ones are cut to their first tokens, {LEAST_TOKENS} at least, as are the texts "
        "on which losses are measured at merges; null: none are",
    )
    replay_batches_per_pass: int | None = Field(
        REPLAY_BATCHES_PER_PASS,
        gt=1,
        description="with replay_share, where an encoder compares a text with labels, replay_steps bounds the share "
        "and few examples stand beside a batch: training batches whose memory examples are read in one pass, beside "
        "the last of them, their loss counted as many times; null: always beside each",
    )
    consistency: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="with replay_share: weight of the divergence from the answers that the model gave to these "
        f"examples when the task began, added to their loss; null: {CONSISTENCY:g} where it writes its answers, 0 "
        "where it compares a text with labels; 0: none",
    )

    def consistency_of(self, kind: str) -> float:
        """Return the weight of the divergence from earlier answers, for a kind of model."""
        if self.consistency is not None:
            return self.consistency
        return 0.0 if kind == "matcher" else CONSISTENCY

    def beside(self, context: TaskContext) -> float | None:
        """Return the memory examples beside the training batches, as a share of theirs; ``None``: none."""
        share = self._share(context)
        if share is None:
            return None
        return round(min(share, self._affordable(context)), 6) or 1 / _trained(context)

    def batches_per_pass(self, context: TaskContext) -> int:
        """Return the training batches whose memory examples are read in one pass."""
        share, batches = self._share(context), self.replay_batches_per_pass
        if share is None or batches is None or not self._cuts(context):
            return 1
        if share <= (affordable := self._affordable(context)):
            return 1
        # Of a task's last batches that fill no pass nothing is read: they must be few.
        enough = context.steps * context.training.accumulation >= FEWEST_PASSES * batches
        return batches if enough and affordable * batches < 1 else 1

    def longest_beside(self, context: TaskContext) -> int | None:
        """Return how many tokens of an old text are read beside the training batches, at most; ``None``: all."""
        share = self._share(context)
        if share is None or not self._cuts(context):
            return None
        assert self.replay_tokens is not None
        tokens = min(self.replay_tokens, self._tokens(context)) / share * _mean_length(context.features)
        return max(_cut_to(tokens), self._least_length(context))

    def _share(self, context: TaskContext) -> float | None:
        """Return what :meth:`beside` does without the limit of ``replay_steps``."""
        if self.replay_share is None or not context.memory:
            return None
        passes = math.inf if self.replay_passes is None else self.replay_passes
        return min(self.replay_share, passes * len(context.memory) / _trained(context))

    def _tokens(self, context: TaskContext) -> float:
        """Return the tokens of the memory that a task may read, as a share of its own."""
        return math.inf if self.replay_steps is None else max(self.replay_steps / context.steps, LEAST_COST)

    def _affordable(self, context: TaskContext) -> float:
        """Return the memory examples that have so many tokens, or are one pass over the memory, as a share."""
        new, old = _mean_length(context.features), _mean_length(context.memory)
        if self._cuts(context):
            old = min(old, self._least_length(context))
        return max(self._tokens(context) * new / old, len(context.memory) / _trained(context))

    def _least_length(self, context: TaskContext) -> int:
        """Return the tokens to which a text is cut beside as many as ``replay_share`` allows."""
        assert self.replay_tokens is not None
        assert self.replay_share is not None
        return _cut_to(self.replay_tokens / self.replay_share * _mean_length(context.features))

    def _cuts(self, context: TaskContext) -> bool:
        """Return whether texts of the memory are read in part: an encoder compares them with labels."""
        return self.replay_tokens is not None and self.replay_share is not None and context.backbone.kind == "matcher"


def _trained(context: TaskContext) -> int:
    """Return the examples that a task is trained on, counted once per pass."""
    return context.steps * context.training.batch * context.training.accumulation


def _cut_to(tokens: float) -> int:
    """Return the length of texts that are cut to about so many tokens: what a batch is padded to."""
    from merganser.models.padding import MULTIPLE

    return max(int(tokens) - int(tokens) % MULTIPLE, LEAST_TOKENS)


def _mean_length(features: Sequence[Feature]) -> float:
    """Compute the mean number of tokens of some examples; of images, whose number is the same, 1."""
    return sum(feature["length"] for feature in features) / len(features)
