"""Answering in batches against answering one by one: examples per second.

    python benchmarks/answering.py > benchmarks/results/answering.md

The matcher is the demonstration's sentence encoder on newsgroup texts. For the others no pretrained model comes in a
package, so a T5 and a Llama of modest size with random weights are used: speed does not depend on the values, and every
answer is made to run to its full length. One thread; medians of several rounds, both ways in turn.

A second table has the causal model alone, on texts that begin with the same 160 tokens as those with a system prompt
do: without and with the cache of that beginning, ranking with whole rows and with prompts read once, and the engine
of continuous batching. Its tokens per second are those of the prompts and, where text is written, of the answers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from merganser.demo import demo_model, demo_tasks
from merganser.models import prefix
from merganser.models.base import Backbone, Lengths
from merganser.models.causal import Causal
from merganser.models.engines import CheckedEngine, ContinuousBatching
from merganser.models.library_output import silence_libraries
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.runs.versions import versions
from merganser.streams.answers import AnswerSpec

BEGINNING = 160
"""Words of the beginning that texts share in the second table; about as many tokens, since the tokenizer is theirs."""


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A word-piece tokenizer trained on the texts."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=["<pad>", "</s>", "<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def text_models(folder: Path, texts: list[str]) -> dict[str, Path]:
    """A T5 and a Llama, 8 layers in all, width 256, random weights."""
    words = tokenizer(texts)
    size = len(words)
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=size, d_model=256, d_ff=1024, d_kv=32, num_layers=4, num_heads=8, decoder_start_token_id=0)
    llama = LlamaConfig(
        vocab_size=size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    made = {"seq2seq": T5ForConditionalGeneration(t5), "causal": LlamaForCausalLM(llama)}
    for kind, model in made.items():
        model.save_pretrained(folder / kind)
        words.save_pretrained(folder / kind)
    return {kind: folder / kind for kind in made}


def rate(answer: Callable[[], object], examples: int) -> float:
    """Examples per second of one call."""
    started = time.perf_counter()
    answer()
    return examples / (time.perf_counter() - started)


def compare(name: str, backbone: Backbone, texts: list[str], spec: AnswerSpec, rounds: int) -> str:
    """A line of the table."""

    def batched() -> None:
        backbone.answer(texts, spec, 32)

    def one_by_one() -> None:
        for text in texts:
            backbone.answer([text], spec, 1)

    batched()
    pairs = [(rate(batched, len(texts)), rate(one_by_one, len(texts))) for _ in range(rounds)]
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {name} | {len(texts)} | {fast:.1f} | {slow:.1f} | {ratio:.1f} |"


def ways_of_answering(backbone: Causal, texts: list[str], labels: tuple[str, ...], rounds: int) -> list[str]:
    """The lines of the second table."""
    beginning = " ".join(" ".join(texts).split()[:BEGINNING])
    prompts = [f"{beginning} {' '.join(text.split()[:40])}" for text in texts]
    read = sum(len(ids) for ids in backbone._encode(prompts))
    write, rank = AnswerSpec(), AnswerSpec(labels, mode="rank")
    engine = CheckedEngine("continuous", ContinuousBatching(backbone, 32), 1)

    def answers(spec: AnswerSpec, shortest: int, whole: bool | None, by: CheckedEngine | None) -> Callable[[], object]:
        def run() -> object:
            prefix.SHORTEST, backbone._cache_is_whole, backbone.engine = shortest, whole, by
            return backbone.answer(prompts, spec, 32)

        return run

    long = 16 * len(prompts)
    ways = {
        "write 16 tokens, everything read in each batch": (read + long, answers(write, 10**6, None, None)),
        "write 16 tokens, beginning read once (default)": (read + long, answers(write, 16, None, None)),
        "write 16 tokens, continuous batching": (read + long, answers(write, 16, None, engine)),
        "rank 5 labels, everything read for each label": (read, answers(rank, 10**6, False, None)),
        "rank 5 labels, beginning and prompts read once (default)": (read, answers(rank, 16, None, None)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (_, run) in ways.items():
            seconds[name].append(1 / rate(run, 1))
    return [
        f"| {name} | {len(prompts)} | {len(prompts) / taken:.1f} | {ways[name][0] / taken:,.0f} |"
        for name, measured in seconds.items()
        for taken in [statistics.median(measured)]
    ]


def batches(texts: list[str], ranked: AnswerSpec, rounds: int) -> None:
    """Print the first table."""
    print("| model and way of answering | texts | batched, examples/s | one by one, examples/s | ratio |")
    print("|---|---|---|---|---|")
    matcher = ModelOptions(name=demo_model(), kind="matcher", attention="eager")
    backbone = load_backbone(matcher, Lengths(64, 8), 0)
    print(compare("matcher, all-MiniLM-L6-v2, 20 labels", backbone, texts, ranked, rounds), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with silence_libraries():
            made = text_models(Path(folder), texts)
        for kind, path in made.items():
            options = ModelOptions.model_validate({"name": str(path), "kind": kind})
            backbone = load_backbone(options, Lengths(64, 16), 0)
            five = AnswerSpec((ranked.labels or ())[:5], mode="rank")
            for spec, way in ((AnswerSpec(), "generate up to 16 tokens"), (five, "rank 5 labels")):
                print(compare(f"{kind}, {way}", backbone, texts, spec, rounds), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--only", choices=("batches", "ways"), help="one of the two tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = demo_tasks(0, quick=False)[0]
    texts = [example.input for example in task.test[: arguments.texts]]
    ranked = replace(task.spec, mode="rank")
    if arguments.only != "ways":
        batches(texts, ranked, arguments.rounds)
    if arguments.only != "batches":
        labels = (task.spec.labels or ())[:5]
        with tempfile.TemporaryDirectory() as folder, silence_libraries():
            path = text_models(Path(folder), texts)["causal"]
            backbone = load_backbone(ModelOptions(name=str(path), kind="causal"), Lengths(512, 16), 0)
        assert isinstance(backbone, Causal)
        print("\n| causal, way of answering | texts | examples/s | tokens/s |")
        print("|---|---|---|---|")
        print("\n".join(ways_of_answering(backbone, texts, labels, arguments.rounds)))
    found = ", ".join(f"{key} {value}" for key, value in versions().items())
    only = f" --only {arguments.only}" if arguments.only else ""
    command = f"python benchmarks/answering.py --rounds {arguments.rounds} --texts {arguments.texts}{only}"
    print(f"\nCommand: `{command}`. {found}.")


if __name__ == "__main__":
    main()
