"""Why a merge of AimMerging gave each update the weight that it has."""

from __future__ import annotations

from merganser.control import ControllerConfig, weight_case
from merganser.report.formatting import plural, significant
from merganser.runs.record import MergeRecord, RunRecord


def weight_numbers(run: RunRecord) -> ControllerConfig | None:
    """Return the numbers that decided the weights of a run's merges; ``None`` if AimMerging's table did not.

    The fusion ``importance_masks`` computes weights of single parameters, and other methods have rules of their own.
    """
    method = run.info.config.get("method")
    if not isinstance(method, dict) or method.get("name") != "aim":
        return None
    from merganser.methods.aim import AimOptions

    config = AimOptions.model_validate(method).config()
    return None if config.fusion == "importance_masks" else config


def weight_reason(merge: MergeRecord, numbers: ControllerConfig | None) -> str:
    """Say why the new change has its weight, from the interval and the alarms; empty where the table did not decide."""
    if numbers is None:
        return ""
    new = significant(merge.weight_new)
    if numbers.weight_new is not None:
        return f"The new change weighs {new} at every merge (weight_new)."
    moving, alarmed = weight_case(numbers, merge.interval, merge.alarms)
    interval = (
        f"the planned interval of {plural(merge.interval, 'step')} is "
        f"{'at most' if moving else 'above'} {numbers.moving_until}, so the task {'still' if moving else 'no longer'} "
        "changes the weights a lot"
    )
    alarms = (
        f"{plural(merge.alarms, 'alarm')} {'is' if merge.alarms == 1 else 'are'} "
        f"{'above' if alarmed else 'at most'} {numbers.alarmed_above}, so earlier tasks are "
        f"{'' if alarmed else 'not '}being forgotten"
    )
    return f"The new change weighs {new}: {interval}; {alarms}."
