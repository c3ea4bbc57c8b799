"""What AimMerging's signals and rehearsal cost, and how much they improve scores: how its defaults were chosen.

    python benchmarks/tradeoff.py --data DATA --seeds 0 1 2 --out runs/tradeoff
    python benchmarks/tradeoff.py --table runs/tradeoff > benchmarks/results/tradeoff.md

The six tasks and the treatment of the texts are those of `quality.py`, smaller: two layers of its encoder, 320
training texts per task, 2 epochs, batch 8, 48 tokens, and up to 150 *development* texts per task to score on; no test
text is read. Each setting is one line of SETTINGS. Cost is CPU seconds of training (one thread) on the five tasks that
have a memory, as a ratio to plain sequential fine-tuning with the same seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from quality import settings, tasks
from reference import Stopwatch, cell

from merganser.config import check_config
from merganser.demo import demo_model
from merganser.learner import Learner
from merganser.runs import read_run

BEFORE_MERGES: dict[str, Any] = {"name": "aim", "replay_share": None, "probe_batch": None}
"""The default until 2026-11-29."""

LEAN: dict[str, Any] = {**BEFORE_MERGES, "rehearsal_steps": 2, "weight_old": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "compat: reference": {"name": "aim", "compat": "reference"},
    "default": BEFORE_MERGES,
    "a quarter of rehearsal": {**BEFORE_MERGES, "rehearsal_steps": 2},
    # A quarter of rehearsal and the paper's weights; then with one difference to the released program taken back each:
    "lean": LEAN,
    "probe every step": {**LEAN, "probe_every": 1},
    "fresh probe sets": {**LEAN, "probe_set": "fresh"},
    "dropout while probing": {**LEAN, "probe_dropout": True},
    "half the rehearsal": {**LEAN, "rehearsal_steps": 4},
    "full rehearsal": {**LEAN, "rehearsal_steps": 8},
    "random rehearsal batches": {**LEAN, "rehearsal_sampling": "iid"},
    "no merge at the end": {**LEAN, "merge_at_end": False},
    # How the default of another method was chosen:
    **{f"sfa {beta}": {"name": "sfa", "beta": beta} for beta in (0.1, 0.25, 0.5)},
}


def small_encoder(folder: Path) -> Path:
    """The first two layers of the demonstration's encoder, as a model of its own."""
    from transformers import AutoModel, AutoTokenizer

    if not folder.is_dir():
        model = AutoModel.from_pretrained(demo_model())
        model.encoder.layer = model.encoder.layer[:2]
        model.config.num_hidden_layers = 2
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(demo_model()).save_pretrained(folder)
    return folder


def learn(arguments: argparse.Namespace) -> None:
    """Make every run that is asked for and not there."""
    stream = tasks(arguments.data, "dev", arguments.texts, 150)
    encoder = small_encoder(arguments.out / "encoder")
    for seed in arguments.seeds:
        for name in arguments.settings or SETTINGS:
            folder = arguments.out / f"{name.replace(': ', '=').replace(', ', '+').replace(' ', '_')}-{seed}"
            if (folder / "cost.json").is_file():
                continue
            config = settings(SETTINGS[name], seed)
            config["model"]["name"] = str(encoder)
            if SETTINGS[name].get("compat"):  # which chooses the memory's sampler itself
                config["memory"] = {"share": 0.02}
            config["training"].update(epochs=arguments.epochs, batch=8, max_input=48)
            watch = Stopwatch()
            with Learner.of_config(folder / "run", check_config(config, name), listener=watch) as learner:
                learner.learn_stream(stream)
                found = {metric.name: metric.value for metric in learner.record.scores.summary}
                merges = len(learner.record.merges)
            result = {
                "setting": name,
                "seed": seed,
                "seconds": sum(watch.seconds[task.name] for task in stream[1:]),
                "OP": found["OP"],
                "BWT": found["BWT"],
                "learned": found["learning accuracy"],
                "merges": merges,
            }
            (folder / "cost.json").write_text(json.dumps(result), encoding="utf-8")
            print(result, flush=True)


def table(folder: Path) -> str:
    """The committed table: mean over seeds with t intervals; ratios are medians, paired by seed."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/cost.json"))]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_name.setdefault(result["setting"], {})[result["seed"]] = result
    lines = [
        "| setting | seeds | times sequential | OP | BWT | learning accuracy | merges |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [name for name in SETTINGS if name in by_name]:
        runs = by_name[name]
        ratios = [run["seconds"] / by_name["sequential"][seed]["seconds"] for seed, run in runs.items()]
        cells = [cell([run[key] for run in runs.values()], 100) for key in ("OP", "BWT", "learned")]
        merges = statistics.mean(run["merges"] for run in runs.values())
        ratio = statistics.median(ratios)
        lines.append(f"| {name} | {len(runs)} | {ratio:.2f} | {' | '.join(cells)} | {merges:.0f} |")
    if "compat: reference" in by_name:
        lines += ["", "Differences to `compat: reference`, paired by seed (mean ± half a 95 % t interval, points):", ""]
        lines += ["| setting | OP | BWT |", "|---|---|---|"]
        base = by_name["compat: reference"]
        for name in [name for name in SETTINGS if name in by_name and name != "compat: reference"]:
            pairs = [(run, base[seed]) for seed, run in by_name[name].items() if seed in base]
            lines.append(
                f"| {name} | {cell([a['OP'] - b['OP'] for a, b in pairs], 100)} "
                f"| {cell([a['BWT'] - b['BWT'] for a, b in pairs], 100)} |"
            )
    versions = read_run(next(folder.glob("*/run"))).info.versions
    lines += ["", f"Made with {', '.join(f'{key} {value}' for key, value in versions.items())}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--texts", type=int, default=320, help="training texts per task")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/tradeoff"))
    parser.add_argument("--table", type=Path, help="print the table of the runs in this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        print(table(arguments.table))
    elif arguments.data:
        learn(arguments)
    else:
        parser.error("--data or --table is needed")


if __name__ == "__main__":
    main()
