"""CoFiMA: moving average of the tasks' models, weighted entry by entry with Fisher information."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.fisher_options import FisherOptions
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import beside, read_weights, write_weights

if TYPE_CHECKING:
    from merganser.weights import Weights

FISHER = "fisher.safetensors"


class CofimaOptions(FisherOptions):
    """CoFiMA: CoMA, each entry weighted by its Fisher information."""

    name: Literal["cofima"] = "cofima"
    alpha: float = Field(0.4, ge=0, le=1, description="weight of the new task's Fisher-weighted weights")


def mean_new_weight(new: Weights, old: Weights, alpha: float) -> float:
    """Compute the new model's mean weight over all entries: ``a F / (a F + (1 - a) F_old)``, ``a`` at 0/0."""
    total = 0.0
    for name, information in new.items():
        new_information, old_information = alpha * information.double(), (1 - alpha) * old[name].double()
        summed = new_information + old_information
        total += float((new_information / summed).where(summed > 0, alpha).sum())
    return total / new.numel


class Cofima(Method[CofimaOptions]):
    r"""Deploy after task t > 1, entry by entry,
    :math:`m_t = \frac{(1 - \alpha) F_{t-1} m_{t-1} + \alpha F_t \theta_t}{(1 - \alpha) F_{t-1} + \alpha F_t}`.

    :math:`F_t` is the diagonal Fisher information of :math:`\theta_t` on task t; where both are zero the weights are
    :math:`1 - \alpha` and :math:`\alpha`.

    Source: Marouf et al. 2024, "Weighted Ensemble Models Are Strong Continual Learners" (arXiv 2312.08977).
    """

    Options = CofimaOptions
    title = "CoFiMA"
    paper = "Marouf 2024, arXiv 2312.08977"
    idea = "As CoMA, with each weight averaged by its importance to the tasks (Fisher information)."
    stores = "the weights and the last task's Fisher information (2 P)"

    _fisher: Weights | None = None

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.fisher import fisher
        from merganser.weights import Weights

        current, alpha = Weights.of(context.backbone.module), self.options.alpha
        with timed_merge(self.records):
            information = self.options.estimate(context)
        if self._fisher is not None:
            earlier, before = beside(self._fisher, information), context.before()
            share = mean_new_weight(information, earlier, alpha)
            record_merge(self.records, context, trained=current, before=before, weight_new=share, weight_old=1 - share)
            with timed_merge(self.records):
                for name, value in current.items():
                    both = [earlier[name], information[name]]
                    value.copy_(fisher([before[name], value], both, weights=[1 - alpha, alpha]))
        self._fisher = information

    def save(self, folder: Path) -> None:
        if self._fisher is not None:
            write_weights(folder / FISHER, self._fisher)

    def load(self, folder: Path) -> None:
        self._fisher = read_weights(folder / FISHER)

    def bytes_kept(self) -> dict[str, int]:
        return {} if self._fisher is None else {"Fisher information": self._fisher.nbytes}
