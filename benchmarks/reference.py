"""AimMerging in the setting in which its released program was measured: what a task with a memory costs.

    python benchmarks/reference.py --data DATA --work FOLDER --seeds 0 1 2 > benchmarks/results/reference.md
    python benchmarks/reference.py --data DATA --work FOLDER --seeds 0 1 2 --cold    # the second table
    python benchmarks/reference.py --data DATA --work FOLDER --seeds 0 1 2 --cold --recorded    # the third

DATA is a folder in AimMerging's layout; FOLDER keeps the warmed-up model and the runs. The setting: a T5 of 2 + 2
layers, width 64, 4 heads; LoRA r 8 on q and v; 1000 texts of at most 64 tokens, 3 epochs, steps of 32 texts in four
accumulated batches of 8, rehearsal and probe batch 32 (as the released scripts have them), first interval 8; one
thread. One setting is `compat: reference` with rehearsal gradients that are not divided by the four batches. Weights
are not selected by development texts: those of this benchmark are in the warm-up below.

No small T5 comes pretrained, and one with random weights learns nothing through LoRA. So its token embeddings are those
of the demonstration's encoder for the 4000 commonest word pieces of the texts, on their first 64 principal axes, and
all its weights are warmed up on newsgroups and Reuters topics (the demonstration's texts) and on the development texts
of dbpedia and agnews, so that it has met their labels. Then it learns these two in a row by each setting, with a memory
of 4 % (40 texts, more than a batch), in batches that are not grouped by length. CPU seconds of the second task's
training are compared, in turn, within one process. The released program measures no losses before and after its merges
for a ledger; `compat: reference` is timed without that (`measure_merges: false`), the defaults with it.

``--cold`` is nearer to the run in which the released program was timed, where scores have no meaning: random
weights, the first two tasks of its first order (dbpedia, amazon), the paper's memory of 2 % (20 texts, less than a
batch) and learning rate of 3e-4. What a task costs there depends on how often its merges rehearse, which is random with
such a model; ``--recorded`` removes this: the controller of `compat: reference` is given the probe losses and learning
signals that were recorded from the released program on that very task (tests/data/controller_traces), so that it merges
at the same steps and rehearses as much. Everything else, probes included, is computed and counted as usual. That task
was recorded with steps of one batch of 8, so that ``--recorded`` does not accumulate; the released program took 54 s
for it and 17 s for one without a memory, 3.1 times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from quality import bare

from merganser.config import check_config
from merganser.control import ControllerConfig, Merge, MergeController
from merganser.demo import demo_model
from merganser.events import Evaluating, Event, TaskStarted
from merganser.learner import Learner
from merganser.metrics import t_interval
from merganser.streams.demo import demo_stream
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.task import Task
from merganser.training.aim.config import REFERENCE, REFERENCE_DEFAULTS

TASKS = ["dbpedia", "agnews"]
COLD_TASKS = ["dbpedia", "amazon"]
RECORDED = Path(__file__).parents[1] / "tests" / "data" / "controller_traces" / "1_amazon_2.0.json"
BEFORE_MERGES: dict[str, Any] = {"name": "aim", "replay_share": None, "probe_batch": None}
"""The default until 2026-11-29."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "aim, compat: reference": {"name": "aim", "compat": "reference", "batch": 32, "measure_merges": False},
    "aim, compat: reference but the whole gradient": {
        **{"name": "aim", "replay_share": None, "batch": 32, "measure_merges": False},
        **{**REFERENCE, **REFERENCE_DEFAULTS, "rehearsal_gradient": "mean"},
    },
    "aim, defaults": BEFORE_MERGES,
    "aim, the paper's weights": {**BEFORE_MERGES, "weight_old": None},
    "aim, the paper's weights, a quarter of rehearsal": {**BEFORE_MERGES, "weight_old": None, "rehearsal_steps": 2},
}
REFERENCE_MEMORY = {"sampler": "reference", "allow_excess": True, "minimum_per_label": 0}
"""What `compat: reference` sets, for the setting without it."""


def tasks(data: Path, names: list[str], texts: int) -> list[Task]:
    """Tasks without the instruction around their texts."""
    options = StreamOptions(folder=str(data), order=names, limit=texts, limit_test=500)
    return [
        replace(
            task, train=tuple(map(bare, task.train)), dev=tuple(map(bare, task.dev)), test=tuple(map(bare, task.test))
        )
        for task in load_stream(options, Path.cwd()).tasks
    ]


def cold_model(folder: Path, stream: list[Task], words: bool = True) -> None:
    """A T5 of 2 + 2 layers whose embeddings, alone, know what words mean (``words``), or nothing does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    encoder = AutoTokenizer.from_pretrained(demo_model())
    rows = AutoModel.from_pretrained(demo_model()).embeddings.word_embeddings.weight.detach()
    counts = Counter(
        piece for task in stream for e in task.train for piece in encoder.tokenize(f"{e.input} {e.output}")
    )
    single = {piece for piece in encoder.get_vocab() if len(piece.removeprefix("##")) == 1}
    answers = {piece for task in stream for e in task.train for piece in encoder.tokenize(e.output)}
    common = [piece for piece, _ in counts.most_common(4000) if not piece.startswith("[")]
    pieces = list(dict.fromkeys([*common, *sorted(single), *sorted(answers)]))
    special = ["<pad>", "</s>", "<unk>"]
    raw = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate([*special, *pieces])}, unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4
    )
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    if words:
        known = rows[encoder.convert_tokens_to_ids(pieces)]
        known = known - known.mean(0)
        axes = torch.linalg.svd(known, full_matrices=False)[2][:64]
        with torch.no_grad():
            model.shared.weight[len(special) :] = known @ axes.T / (known @ axes.T).std()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(folder: Path, data: Path) -> None:
    """That model, all weights warmed up."""
    topics = [
        replace(
            task,
            spec=replace(task.spec, labels=tuple(task.spec.label_texts.values()), label_texts={}),
            train=tuple(replace(example, output=task.spec.text_of(example.output)) for example in task.train),
            dev=(),
            test=(),
        )
        for task in demo_stream(6000, 200, 0).tasks[:3]
    ]
    met = [replace(task, train=4 * tuple(task.dev), dev=(), test=task.dev[:100]) for task in tasks(data, TASKS, 1000)]
    stream = [*topics, *met]
    cold = folder.with_name("cold")
    cold_model(cold, stream)
    settings = {
        "model": {"name": str(cold), "kind": "seq2seq", "lora": None, "dropout": 0.0, "precision": "fp32"},
        "method": "joint",
        "training": {
            "steps": 1500,
            "batch": 32,
            "learning_rate": 2e-3,
            "warmup": 0.1,
            "max_input": 64,
            "max_target": 16,
        },
        "evaluation": {"future": False},
    }
    run = folder.with_name("warm-up")
    with Learner.of_config(run, check_config(settings, "warm-up")) as learner:
        learner.learn_stream(stream)
        print("warmed up:", {n: round(s.value, 3) for n, s in learner.evaluate().items()}, file=sys.stderr, flush=True)
        learner.export(folder, merged=True)
    shutil.rmtree(run)
    shutil.rmtree(cold)


class RecordedSignals(MergeController):
    """A controller that decides by recorded signals in place of the ones it is told."""

    def __init__(self, config: ControllerConfig) -> None:
        recorded = json.loads(RECORDED.read_text())
        self._probes: list[float] = recorded["probe_losses"]
        self._learning: list[float] = recorded["learning_signals"]
        names = ("threshold_factor", "interval", "cold_start", "min_interval", "max_interval")
        super().__init__(config, **{name: recorded[name] for name in names})

    def observe(self, step: int, probe_loss: float | None = None) -> Merge | None:
        return super().observe(step, None if probe_loss is None else self._probes[step - 1])

    def record(self, learning_signal: float) -> int:
        return super().record(self._learning[len(self.learning_signals)])


class Stopwatch:
    """CPU seconds of training each task, from its start to the first evaluation after it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._task: str | None = None
        self._began = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            self._task, self._began = event.task, time.process_time()
        elif isinstance(event, Evaluating) and self._task is not None:
            self.seconds[self._task] = time.process_time() - self._began
            self._task = None


def learn(
    model: Path, method: dict[str, Any], stream: list[Task], seed: int, run: Path, cold: bool, accumulation: int
) -> dict[str, float]:
    """One run; CPU seconds of the second task's training, and what came of it."""
    settings = {
        "model": {"name": str(model), "kind": "seq2seq", "lora": {"r": 8, "targets": ["q", "v"]}, "precision": "fp32"},
        "method": method,
        "memory": {"share": 0.02 if cold else 0.04, **(REFERENCE_MEMORY if method.get("rehearsal_gradient") else {})},
        "training": {
            "epochs": 3,
            "batch": 8,
            "accumulation": accumulation,
            "learning_rate": 3e-4 if cold else 1e-3,
            "max_input": 64,
            "max_target": 16,
            "group_by_length": False,
            **({"loss_mean": "batches"} if method.get("rehearsal_gradient") else {}),
        },
        "evaluation": {"future": False},
        "seed": seed,
    }
    watch = Stopwatch()
    with Learner.of_config(run, check_config(settings, "reference"), listener=watch) as learner:
        learner.learn_stream(stream)
        summary = {metric.name: metric.value for metric in learner.record.scores.summary}
        rehearsed = sum(merge.rehearsal_steps for merge in learner.record.merges)
    scores = {name: summary[name] for name in ("OP", "BWT")}
    return {"seconds": watch.seconds[stream[1].name], "rehearsed": rehearsed, **scores}


def cell(values: list[float], scale: float = 1.0) -> str:
    mean, half = t_interval([scale * value for value in values])
    return f"{mean:.1f}" + (f" ± {half:.1f}" if half is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="settings to run; default: all")
    parser.add_argument("--cold", action="store_true", help="random weights, see above")
    parser.add_argument("--accumulation", type=int, default=4, help="batches of 8 per optimizer step")
    parser.add_argument("--recorded", action="store_true", help="the released program's decisions, see above")
    arguments = parser.parse_args()
    if arguments.recorded and not arguments.cold:
        parser.error("--recorded is of the task of --cold: give both")
    if arguments.recorded:
        arguments.only = ["sequential", "aim, compat: reference"]
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / ("random-t5" if arguments.cold else "t5")
    stream = [replace(task, dev=()) for task in tasks(arguments.data, COLD_TASKS if arguments.cold else TASKS, 1000)]
    if not model.is_dir() and arguments.cold:
        cold_model(model, stream, words=False)
    elif not model.is_dir():
        build(model, arguments.data)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS if name in (arguments.only or SETTINGS)}
    for seed in arguments.seeds:
        for name in found:
            run = arguments.work / "run"
            shutil.rmtree(run, ignore_errors=True)
            method = {**SETTINGS[name]}
            if arguments.cold and "batch" in method:
                method["batch"] = 20  # all there is: a loader with batches of 32 gives no more
            with ExitStack() as stack:
                if arguments.recorded:
                    stack.enter_context(patch("merganser.training.aim.callback.MergeController", RecordedSignals))
                accumulation = 1 if arguments.recorded else arguments.accumulation
                found[name].append(learn(model, method, stream, seed, run, arguments.cold, accumulation))
            print(name, seed, found[name][-1], file=sys.stderr, flush=True)
    print("# AimMerging in the setting of its released program\n")
    print("| setting | CPU seconds of a task with a memory | times sequential | rehearsal steps | OP | BWT |")
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [a / b["seconds"] for a, b in zip(seconds, found["sequential"], strict=True)]
        print(
            f"| {name} | {statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {statistics.mean(run['rehearsed'] for run in runs):.0f} "
            f"| {cell([run['OP'] for run in runs], 100)} "
            f"| {cell([run['BWT'] for run in runs], 100)} |"
        )
    seeds = " ".join(map(str, arguments.seeds))
    cold = (
        f" --accumulation {arguments.accumulation}" * (arguments.accumulation != 4)
        + " --cold" * arguments.cold
        + " --recorded" * arguments.recorded
    )
    print(f"\nCommand: `python benchmarks/reference.py --data DATA --work FOLDER --seeds {seeds}{cold}`.")


if __name__ == "__main__":
    main()
