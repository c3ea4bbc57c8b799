"""The tables of the page, as plain rows of text for the template."""

from __future__ import annotations

from typing import Any

from merganser.metrics.function import is_function_name, metric_name
from merganser.report.formatting import (
    CAUSE_LETTER,
    MISSING,
    day,
    describe_merge,
    money,
    percent,
    plural,
    seconds,
    significant,
    size,
)
from merganser.report.merge_weights import weight_numbers, weight_reason
from merganser.report.names import method_name, model_name
from merganser.report.series import shown_merges
from merganser.runs.record import CostRecord, RunRecord, TaskRecord
from merganser.streams.memory import MemorySummary, allot
from merganser.streams.metric_source import PREFIX

COST_PARTS: dict[str, tuple[str, str]] = {
    name: (field.title, field.description or "") for name, field in CostRecord.model_fields.items() if field.title
}
"""Parts of a task's time: field of the cost record -> (short name, what it is), as the record states them."""

MERGING_FIELDS = ("probing_seconds", "rehearsal_seconds", "merging_seconds", "merge_eval_seconds")
"""Parts that plain fine-tuning does not spend: the cost of merging as a whole."""


def other_seconds(cost: CostRecord) -> float:
    """Return the time of the task in none of the measured parts (encoding, loading, starting up); never below 0."""
    return max(0.0, cost.seconds - sum(getattr(cost, field) for field in COST_PARTS))


def merging_share(costs: list[CostRecord]) -> float | None:
    """Return the fraction of all seconds spent in :data:`MERGING_FIELDS`; ``None`` where no time was recorded."""
    whole = sum(cost.seconds for cost in costs)
    return sum(getattr(cost, field) for cost in costs for field in MERGING_FIELDS) / whole if whole > 0 else None


def watched_marks(run: RunRecord) -> dict[str, str]:
    """Map each watched task to its mark: ``watched``, and what it stands for."""
    return {task.name: f"watched: {task.group}" if task.group else "watched" for task in run.scores.watched}


def _per_label(per_label: dict[str, int]) -> str:
    if not per_label:
        return MISSING
    low, high = min(per_label.values()), max(per_label.values())
    return f"{low} × {len(per_label)}" if low == high else f"{low} to {high} × {len(per_label)}"


def memory(run: RunRecord) -> dict[str, Any]:
    """Tabulate the examples stored of each task, their share of the task and of the budget, and the method's bytes."""
    rows = []
    summaries = _summaries_in_force(run)
    for task, kept in zip(run.tasks, summaries, strict=True):
        rows.append(
            {
                "task": task.name,
                "train": f"{task.train_examples:,}",
                "budget": f"{kept.budget:,}",
                "examples": f"{kept.examples:,}",
                "share": percent(kept.share),
                "used": percent(kept.examples / kept.budget) if kept.budget else MISSING,
                "over": kept.examples > kept.budget,
                "bytes": size(kept.bytes),
                "sampler": kept.sampler.replace("_", " "),
                "labels": _per_label(kept.per_label),
            }
        )
    examples = sum(kept.examples for kept in summaries)
    budget = sum(kept.budget for kept in summaries)
    train = sum(task.train_examples for task in run.tasks)
    last = max(run.tasks, key=lambda task: task.index, default=None)
    return {
        "rows": rows,
        "any": examples > 0,
        "total": {
            "train": f"{train:,}",
            "budget": f"{budget:,}",
            "examples": f"{examples:,}",
            "share": percent(examples / train) if train else MISSING,
            "used": percent(examples / budget) if budget else MISSING,
            "bytes": size(sum(kept.bytes for kept in summaries)),
        },
        "method": [(name, size(count)) for name, count in (last.method_bytes if last else {}).items()],
        "stored": stored_over_time(run),
    }


def _summaries_in_force(run: RunRecord) -> list[MemorySummary]:
    """Return what the memory holds of each task now; of a memory bounded in total, earlier tasks have given up some.

    Their bytes and labels are in proportion then: the examples are not read.
    """
    summaries = [task.memory for task in run.tasks]
    total = run.info.config.get("memory", {}).get("total")
    if total is None:
        return summaries
    slots = allot(total, [kept.examples for kept in summaries])
    return [
        kept.model_copy(
            update={
                "examples": number,
                "budget": number,
                "share": number / task.train_examples,
                "bytes": round(kept.bytes * number / kept.examples),
                "per_label": {},
            }
        )
        if kept.examples and number < kept.examples
        else kept
        for task, kept, number in zip(run.tasks, summaries, slots, strict=True)
    ]


def stored_over_time(run: RunRecord) -> str:
    """Format what is stored: ``2.4 MB in all, 1.2 MB after the first task``; empty where nothing was measured."""
    ordered = sorted(run.tasks, key=lambda task: task.index)
    totals = [sum(task.method_bytes.values()) for task in ordered if task.method_bytes]
    if not totals:
        return ""
    return f"{size(totals[-1])} in all" + (f", {size(totals[0])} after the first task" if len(totals) > 1 else "")


def cost(run: RunRecord, price: float | None = None) -> dict[str, Any]:
    """Tabulate the seconds: bars over the whole run, and a row per task; with the price of an hour, what they cost."""
    costs = [task.cost for task in run.tasks]
    whole = sum(entry.seconds for entry in costs)
    parts = [
        (name, meaning, sum(getattr(entry, field) for entry in costs)) for field, (name, meaning) in COST_PARTS.items()
    ]
    parts.append(("other", "encoding, loading, starting up", sum(map(other_seconds, costs))))
    longest = max((amount for _, _, amount in parts), default=0.0) or 1.0
    arithmetic = sum(entry.merging_seconds for entry in costs)

    def row(name: str, entries: list[CostRecord]) -> dict[str, Any]:
        return {
            "task": name,
            "seconds": seconds(sum(entry.seconds for entry in entries)),
            "parts": [seconds(sum(getattr(entry, field) for entry in entries)) for field in COST_PARTS],
            "other": seconds(sum(map(other_seconds, entries))),
            "share": percent(merging_share(entries)),
            "counts": [
                f"{sum(getattr(entry, field) for entry in entries):,}"
                for field in (
                    "steps",
                    "examples_trained",
                    "examples_rehearsed",
                    "examples_probed",
                    "examples_evaluated",
                )
            ],
        }

    return {
        "bars": [
            {
                "name": name,
                "meaning": meaning,
                "seconds": seconds(amount),
                "share": percent(amount / whole) if whole else MISSING,
                "width": f"{100 * amount / longest:.2f}",
            }
            for name, meaning, amount in parts
        ],
        "kinds": [name for name, _ in COST_PARTS.values()],
        "rows": [row(task.name, [task.cost]) for task in run.tasks],
        "total": row("whole run", costs),
        "merging": percent(merging_share(costs)),
        "price": None if price is None else [money(price), money(price * whole / 3600)],
        "price_of_merging": "" if price is None else money(price * whole * (merging_share(costs) or 0.0) / 3600),
        "arithmetic": percent(arithmetic / whole) if whole else MISSING,
    }


def ledger(run: RunRecord) -> list[dict[str, str]]:
    """Tabulate the merges shown with its numbers and description, which the page's script reads from the table."""
    numbers = weight_numbers(run)
    return [
        {
            "task": merge.task,
            "merge": str(merge.merge),
            "step": f"{merge.step:,}",
            "cause": f"{CAUSE_LETTER[merge.cause]} {merge.cause}" + (", refused" if merge.status == "refused" else ""),
            "alarms": str(merge.alarms),
            "interval": f"{merge.interval} → {merge.next_interval}",
            "weights": f"{significant(merge.weight_new)} / {significant(merge.weight_old)}",
            "story": f"{describe_merge(merge)} {weight_reason(merge, numbers)}".strip(),
        }
        for merge in shown_merges(run)
    ]


def tasks(run: RunRecord) -> list[dict[str, Any]]:
    """Tabulate the stream: sizes, metric and labels of each learned task, and where its data came from."""
    return [
        {
            "name": task.name,
            "counts": [f"{count:,}" for count in (task.train_examples, task.dev_examples, task.test_examples)],
            "truncated": truncated(task),
            "labels": str(len(task.spec.labels)) if task.spec.labels is not None else "free text",
            "metric": metric_label(metric_name(task.spec.metric)),
            "answer": task.spec.mode,
            "seed": str(task.seed),
            "fingerprint": task.fingerprint,
            "finished": day(task.finished),
            "source": list(task.source.items()),
            "remarks": task.remarks,
        }
        for task in run.tasks
    ]


def metric_label(name: str) -> str:
    """Return the name of a text score with spaces; that of a function (``module:name``) as it is.

    Of a metric that an installed package offers, the name that the package gives it.
    """
    return name.removeprefix(PREFIX) if is_function_name(name) else name.replace("_", " ")


def trained(run: RunRecord) -> list[dict[str, str]]:
    """Tabulate what tasks were trained on, by source; empty where no other data were mixed in."""
    if all(len(task.trained) < 2 for task in run.tasks):
        return []
    rows = []
    for task in run.tasks:
        all_rows, all_tokens = (sum(getattr(part, what) for part in task.trained) for what in ("rows", "tokens"))
        for part in task.trained:
            rows.append(
                {
                    "task": task.name,
                    "source": "its own examples" if part.share is None else part.source,
                    "asked": MISSING if part.share is None else percent(part.share),
                    "examples": f"{part.examples:,}",
                    "rows": f"{part.rows:,}",
                    "rows_share": percent(part.rows / all_rows) if all_rows else MISSING,
                    "tokens": f"{part.tokens:,}",
                    "tokens_share": percent(part.tokens / all_tokens) if all_tokens else MISSING,
                }
            )
    return rows


def truncated(task: TaskRecord) -> list[str]:
    """Describe which inputs and answers of a task were cut: ``12 of 3,000 train inputs``; empty where none were."""
    sizes = {"train": task.train_examples, "dev": task.dev_examples, "test": task.test_examples}
    sizes["mix"] = sum(part.examples for part in task.trained[1:])
    answers = 1 if task.spec.dpo is None else 2  # of an example
    return [
        f"{count:,} of {sizes[split] * (answers if part == 'answers' else 1):,} {split} {part}"
        for name, count in task.truncated.items()
        for split, _, part in [name.partition("_")]
    ]


def method_title(run: RunRecord) -> str:
    """Return the title of the method of ``run``, with its name where that is not known."""
    from merganser.methods import METHODS

    name = method_name(run)
    title = METHODS[name].title if name in METHODS else name
    method = run.info.config.get("method")
    ablation = method.get("ablation") if isinstance(method, dict) else None
    return f"{title} without merging" if isinstance(ablation, dict) and ablation.get("merge") is False else title


def standfirst(run: RunRecord) -> str:
    """Say in a sentence which model learned what, how, for how long, and with how many merges."""
    model = model_name(run)
    # A run whose first task is not learned yet has only its first row.
    if not run.tasks:
        return f"{model} has not learned any task of this run yet."
    merges = sum(merge.status == "applied" for merge in run.merges)
    joint = len({task.row for task in run.tasks}) == 1 and len(run.tasks) > 1
    manner = " together" if joint else (", one after another" if len(run.tasks) > 1 else "")
    text = f"{model} learned {plural(len(run.tasks), 'task')}{manner}, with {method_title(run)}"
    text += f" in {seconds(sum(task.cost.seconds for task in run.tasks))}"
    refused = len(run.merges) - merges
    if run.merges:
        return f"{text} and {plural(merges, 'merge')}" + (f" ({refused} more were refused)." if refused else ".")
    return f"{text}, without merges."
