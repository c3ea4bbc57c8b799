"""Formats of numbers, names of metrics and causes, and the description of a merge in sentences."""

from __future__ import annotations

from datetime import UTC, datetime

from merganser.control import CAUSES
from merganser.runs.options import Keep
from merganser.runs.record import MergeRecord
from merganser.tables import MISSING, finite, score
from merganser.tables import row_label as row_label

CAUSE_LETTER = {"due": "D", "early": "E", "forced": "F", "end": "T"}
"""Letter of each cause of a merge; ``end`` is T for the end of the task, since E is early."""

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

ABBREVIATIONS = {"OP": "overall performance", "BWT": "backward transfer", "FWT": "forward transfer"}
"""Names of metrics that are abbreviated, spelled out."""


def metric_title(name: str) -> str:
    """Return a metric's name with its abbreviation spelled out: ``OP, overall performance``."""
    long = ABBREVIATIONS.get(name.split()[0])
    return f"{name}, {long}" if long else name


def cause_title(cause: str) -> str:
    """Return a cause of a merge and what it means: ``due: on or after the planned step, ...``."""
    return f"{cause}: {CAUSES[cause]}"


def score_with_error(value: float | None, stderr: float | None) -> str:
    """Format a score and its standard error in percent: ``74.9 ± 1.8``."""
    return score(value) + (f" ± {score(stderr)}" if finite(stderr) is not None else "")


def p_value(value: float | None) -> str:
    """Format a p value with three decimals, without the zero before them."""
    known = finite(value)
    if known is None:
        return ""
    return "<.001" if known < 0.001 else f"{known:.3f}".removeprefix("0")


def significant(value: float | None, digits: int = 3) -> str:
    """Format a number of unknown magnitude with ``digits`` significant digits."""
    known = finite(value)
    if known is None:
        return MISSING
    rounded = float(f"{known:.{digits}g}")
    text = f"{rounded:,.0f}" if abs(rounded) >= 10**digits else f"{rounded:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa} × 10^{int(exponent)}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Format a fraction in [0, 1] as a percentage: one decimal below ten percent, none above."""
    known = finite(value)
    if known is None:
        return MISSING
    amount = 100 * known
    digits = 1 if 0 < abs(amount) < 9.95 else 0
    return f"{amount:.{digits}f} %".replace("-", "−")


def seconds(value: float | None) -> str:
    """Format a duration: ``0.04 s``, ``12.3 s``, ``4 min 05 s`` or ``2 h 03 min``."""
    known = finite(value)
    if known is None:
        return MISSING
    if known == 0:
        return "0 s"
    if known < 1:
        return f"{known:.2f} s"
    if known < 59.95:
        return f"{known:.1f} s"
    whole = round(known)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(known / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def day(text: str) -> str:
    """Format a time in ISO 8601 as a person writes it: ``2 January 2026, 03:04 UTC``; another text stays as it is."""
    try:
        time = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return text
    # Not strftime, whose names of months depend on the machine.
    return f"{time.day} {MONTHS[time.month - 1]} {time.year}, {time:%H:%M} UTC"


def money(amount: float) -> str:
    """Format an amount of money: two decimals, or two significant digits where it is smaller."""
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else significant(amount, 2)


def size(count: int) -> str:
    """Format a number of bytes in decimal units."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    units = ["kB", "MB", "GB"]
    amount /= 1000
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        del units[0]
    return f"{significant(amount)} {units[0]}"


def literal(text: str) -> str:
    """Return ``text`` for matplotlib, shown as it is: a ``$`` in a task's name does not begin a formula."""
    return text.replace("$", r"\$")


def shortened(text: str, limit: int = 18) -> str:
    """Return ``text`` with at most ``limit`` characters, an ellipsis in place of the rest."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shortened_within(text: str, limit: int = 18) -> str:
    """Return ``text`` with at most ``limit`` characters, an ellipsis in its middle: names often differ at their end."""
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end]}…{text[-end:]}"


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 merge``, ``2 merges``, ``1,200 merges``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kept_rows(keep: Keep) -> str:
    """Name the rows beside row 0 whose weights are kept without a tag: ``the last row``, ``the last 3 rows``."""
    return "the last row" if keep in ("tagged", 1) else f"the last {keep} rows"


def _change(name: str, before: float | None, after: float | None) -> str:
    first, last = finite(before), finite(after)
    if first is None or last is None:
        return ""
    if significant(first) == significant(last):
        return f"{name} stayed at {significant(first)}"
    return f"{name} {'rose' if last > first else 'fell'} from {significant(first)} to {significant(last)}"


def _cause(merge: MergeRecord) -> str:
    alarms = plural(merge.alarms, "alarm")
    if merge.cause == "due":
        raised = f" with {alarms} raised" if merge.alarms else ""
        return f"it was due (planned every {plural(merge.interval, 'step')}){raised}"
    if merge.cause == "early":
        return f"it fired early, after {alarms} within the planned interval of {plural(merge.interval, 'step')}"
    if merge.cause == "forced":
        overdue = plural(merge.interval, "step")
        return f"it was forced, {overdue} or more beyond the planned one, since no other alarm was raised"
    return "the task ended"


def describe_merge(merge: MergeRecord) -> str:
    """Describe one merge: its step, cause and weights, and the losses before and after it."""
    parts = [f"Merge {merge.merge} of {merge.task}, after step {merge.step:,}: {_cause(merge)}."]
    forgetting = finite(merge.forgetting_signal)
    if forgetting is not None:
        against = ""
        if finite(merge.threshold) is not None:
            against = f" against a threshold of {significant(merge.threshold)}"
        parts.append(f"The loss on the memory was {significant(forgetting)}{against}.")
    parts.append(f"Learning signal {significant(merge.learning_signal)}.")
    rehearsal = f"After {plural(merge.rehearsal_steps, 'rehearsal step')}, " if merge.rehearsal_steps else ""
    # A method that merges once a task has been trained merges two models; nothing was rehearsed.
    models = merge.cause == "end" and not merge.rehearsal_steps and (merge.norm_old or 0) > 0
    new, old = ("task's update", "model so far") if models else ("new change", "rehearsal's")
    if not merge.rehearsal_steps and not models:
        new = "change since the last merge"  # of new and old examples alike, where old ones stand in the batches
    weights = f"{significant(merge.weight_new)} of the {new} (L2 norm {significant(merge.norm_new)})"
    if merge.rehearsal_steps or (merge.norm_old or 0) > 0:
        weights += f" and {significant(merge.weight_old)} of the {old} (L2 norm {significant(merge.norm_old)}"
        weights += f", cosine {significant(merge.cosine, 2)})" if finite(merge.cosine) is not None else ")"
        done = "were merged"
    else:
        done = "was kept"
    if merge.status == "refused":
        why = f": {merge.reason}" if merge.reason else ""
        parts.append(f"{rehearsal}merging {weights} was refused and undone{why}.")
    else:
        parts.append(f"{rehearsal}{weights} {done}.")
    changes = [
        _change("the loss on the new task", merge.loss_new_before, merge.loss_new_after),
        _change("the loss on the memory", merge.loss_old_before, merge.loss_old_after),
    ]
    measured = ", ".join(change for change in changes if change)
    if measured:
        parts.append(f"{measured}.")
    if merge.cause != "end":
        if merge.next_interval == merge.interval:
            parts.append(f"The interval stays at {plural(merge.interval, 'step')}.")
        else:
            direction = "shortens" if merge.next_interval < merge.interval else "lengthens"
            parts.append(f"The interval {direction} from {merge.interval:,} to {plural(merge.next_interval, 'step')}.")
    return " ".join(part[0].upper() + part[1:] for part in parts)
