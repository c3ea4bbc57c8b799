"""AimMerging's settings: each once, with its default, its bounds and its description; no torch here.

The options of ``method: aim``, the callback, the controller, the identity of a checkpoint, ``merganser replay --set``
and the table in docs/methods/aim.md are all derived from :class:`AimConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from merganser.control import ControllerConfig, IntervalPart
from merganser.settings import setting, with_default
from merganser.training.options import RehearsalSampling

ProbeSet = Literal["fresh", "fixed", "replayed"]
"""Which examples are probed, see :mod:`merganser.training.aim.probing`."""

Moments = Literal["keep", "empty"]
"""What becomes of the optimizer's moments at a merge."""

RehearsalGradient = Literal["mean", "divided"]
"""Gradient of a rehearsal step where a training step accumulates several batches."""

Fusion = Literal["trajectory", "importance_masks"]
"""How the updates of the two phases are merged, see :func:`merganser.training.aim.fusion.fusion_rule`."""

FEWEST = 4
"""Examples of ``probe_batch: quarter`` at least: the mean loss of fewer says little."""


@dataclass(frozen=True)
class AimConfig(ControllerConfig):
    """The settings of AimMerging: controller, rehearsal, probes and merges.

    Three defaults of the controller differ from the released program's, being cheaper and no worse (measured in
    docs/methods/aim.md, "Where it differs"): half of the rehearsal, two probes per interval, and the rehearsal's update
    kept whole.

    Raises:
        ValueError: a value is impossible, or two contradict each other.
    """

    weight_old: float | None = with_default(ControllerConfig, "weight_old", 1.0)
    rehearsal_steps: int | IntervalPart = with_default(ControllerConfig, "rehearsal_steps", "half")
    probes_per_interval: int | None = with_default(ControllerConfig, "probes_per_interval", 2)
    rehearsal_sampling: RehearsalSampling = setting(
        "epoch", "epoch: every example once per pass over the memory, in a new order; iid: independent draws"
    )
    batch: int | None = setting(
        None,
        "memory examples per rehearsal step; null: as many as training examples per optimizer step (batch times "
        "accumulation), or the whole memory if smaller",
        gt=0,
    )
    rehearsal_gradient: RehearsalGradient = setting(
        "mean",
        "gradient of a rehearsal step under accumulation; mean: that of its batch's mean loss, computed in parts as "
        "large as a training batch; divided: the same divided by the number of accumulated batches before clipping, "
        "computed in one pass, as in the released program",
    )
    probe_batch: int | Literal["quarter", "half"] | None = setting(
        "half",
        "memory examples per probe, and examples on which losses are measured at a merge; half: half as many as in "
        f"rehearsal; quarter: a quarter, but {FEWEST} at least; null: as many",
        gt=0,
    )
    probe_set: ProbeSet = setting(
        "fixed",
        "fresh: a random batch of the memory for every probe; fixed: one batch per task, spread over old tasks and "
        "their labels; replayed: no batch of its own, but the mean loss of the texts that replay_share put beside the "
        "training batches since the last probe, which costs nothing",
    )
    probe_dropout: bool = setting(False, "leave dropout on while probing, as the released program does")
    start_weight: float = setting(
        0.0,
        "every merge also goes this share of the way back to the weights that the task started from; 0: none, as in "
        "the released program",
        ge=0,
        lt=1,
    )
    moments: Moments = setting(
        "keep",
        "what becomes of the optimizer's moments at a merge; keep: nothing, as in the released program; empty: they "
        "begin anew, as they belong to the weights before it",
    )
    merge_at_end: bool = setting(
        True, "merge once more after the last step of a task, or where training is stopped before it"
    )
    fusion: Fusion = setting(
        "trajectory",
        "trajectory: two weights for all parameters; importance_masks: every parameter follows the phase that it is "
        "important to (Recurrent-KIF)",
    )
    important_share: float = setting(
        0.2, "importance_masks: share of the parameters that are important to a phase", gt=0, le=1
    )
    importance_smoothing: float = setting(
        0.85, "importance_masks: decay of the moving averages of importance", ge=0, lt=1
    )
    measure_merges: bool = setting(
        True,
        "measure losses before and after each merge, for the ledger and for guard_factor: three more forward passes, "
        "or four where the step was not probed without dropout",
    )
    guard_factor: float | None = setting(
        10.0,
        "a merge that multiplies a loss by more than this is refused (ordinary ones change losses by far less); null: "
        "only one that leaves a loss or weights that are not finite (the default with measure_merges: false and with "
        "only_at_end)",
        gt=1,
    )
    seed: int | None = setting(None, "seed of the sampled examples; None: the training seed", ge=0, section=None)
    checkpoints: bool = setting(
        True, "add the state to the trainer's checkpoints, and read it when training resumes from one", section=None
    )

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the controller's: no guard factor without measured losses, or with one merge at the end of a task.

        That merge may well multiply a loss that had fallen to 0.
        """
        unguarded = given.get("measure_merges") is False or given.get("only_at_end") is True
        guard = {"guard_factor": None} if unguarded and "guard_factor" not in given else {}
        return super().implied(given) | guard

    def probe_examples(self, rehearsed: int) -> int:
        """Return the memory examples per probe.

        Args:
            rehearsed: examples per rehearsal step.
        """
        if self.probe_batch == "quarter":
            return min(rehearsed, max(FEWEST, rehearsed // 4))
        if self.probe_batch == "half":
            return max(1, rehearsed // 2)
        return rehearsed if self.probe_batch is None else self.probe_batch


_IN_COMMON: dict[str, Any] = {
    **{name: getattr(ControllerConfig(), name) for name in ("weight_old", "probes_per_interval")},
    **{name: getattr(AimConfig(), name) for name in ("moments", "start_weight")},
    "probe_every": 1,
    "probe_batch": None,
}
"""What the paper and its program have in common: weights that sum to 1, a probe after every step."""

_REHEARSAL: dict[str, Any] = {"rehearsal_steps": ControllerConfig().rehearsal_steps}
"""As much rehearsal as training between two merges."""

PAPER_DEFAULTS: dict[str, Any] = _IN_COMMON | _REHEARSAL | {"probe_set": AimConfig().probe_set}
"""Defaults of ``compat: paper``."""

REFERENCE: dict[str, Any] = _IN_COMMON | {
    "minimum_rehearsal_steps": 0,
    "rehearsal_gradient": "divided",
    "rehearsal_sampling": "iid",
    "probe_set": "fresh",
    "probe_dropout": True,
    "merge_at_end": False,
    "guard_factor": None,
}
"""Settings of ``compat: reference``: the behaviour of the program released with the paper."""

REFERENCE_DEFAULTS: dict[str, Any] = _REHEARSAL
"""Defaults of ``compat: reference`` for settings that can still be changed."""

REFERENCE_TRAINING: dict[str, Any] = {"group_by_length": False, "loss_mean": "batches"}
"""Options of the ``training`` section that ``compat: reference`` sets."""

REFERENCE_SELECTION: dict[str, Any] = {
    "select_best": True,
    "select_by": "loss",
    "select_every": 40,
    "select_texts": 25,
    "select_last": False,
}
"""Defaults of the ``training`` section with ``compat: reference``, which can still be changed: deploy the weights with
the lowest loss on 25 development texts of each task seen, at steps 40, 80, ..."""
