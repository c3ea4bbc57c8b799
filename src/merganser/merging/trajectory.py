"""AimMerging's merge: weighted updates of the steps on the new task and of the rehearsal steps.

Source: Feng et al., "AIMMerging", EMNLP 2025 (arXiv 2509.17348).
"""

from __future__ import annotations

from merganser.weights import Weights


def merge_two_phases(
    current: Weights, start: Weights, after_new: Weights, *, weight_new: float, weight_old: float
) -> Weights:
    r"""Merge the updates of the inner and of the rehearsal phase, in place.

    With :math:`\theta_0` = ``start`` (right after the last merge), :math:`\theta_k` = ``after_new`` (after the inner
    steps) and :math:`\theta_m` = ``current`` (after the rehearsal steps):

    .. math:: \theta \leftarrow \theta_0 + w_{new} (\theta_k - \theta_0) + w_{old} (\theta_m - \theta_k)

    For LoRA this merges the factors A and B separately, which is valid because both updates are on one trajectory.

    Args:
        current: overwritten with the merged weights.
        start, after_new: same names and shapes as ``current``.
        weight_new: weight of the update by the new task.
        weight_old: weight of the update by the memory.

    Returns:
        ``current``.

    Raises:
        ValueError: names or shapes differ.
    """
    # The same sum with coefficients per model instead of per difference, so that nothing is allocated:
    # (1 - w_new) theta_0 + (w_new - w_old) theta_k + w_old theta_m.
    return current.combine_(weight_old, [(weight_new - weight_old, after_new), (1.0 - weight_new, start)])
