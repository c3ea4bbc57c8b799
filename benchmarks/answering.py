"""Answering in batches against answering one by one: examples per second.

    python benchmarks/answering.py > benchmarks/results/answering.md

The matcher is the demonstration's sentence encoder on newsgroup texts. For the others no pretrained model comes in a
package, so a T5 and a Llama of modest size with random weights are used: speed does not depend on the values, and every
answer is made to run to its full length. One thread; medians of several rounds, both ways in turn.
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
from merganser.models.base import Backbone, Lengths
from merganser.models.library_output import silence_libraries
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.runs.versions import versions
from merganser.streams.answers import AnswerSpec


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = demo_tasks(0, quick=False)[0]
    texts = [example.input for example in task.test[: arguments.texts]]
    ranked = replace(task.spec, mode="rank")
    print("| model and way of answering | texts | batched, examples/s | one by one, examples/s | ratio |")
    print("|---|---|---|---|---|")
    matcher = ModelOptions(name=demo_model(), kind="matcher", attention="eager")
    backbone = load_backbone(matcher, Lengths(64, 8), 0)
    print(compare("matcher, all-MiniLM-L6-v2, 20 labels", backbone, texts, ranked, arguments.rounds), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with silence_libraries():
            made = text_models(Path(folder), texts)
        for kind, path in made.items():
            options = ModelOptions.model_validate({"name": str(path), "kind": kind})
            backbone = load_backbone(options, Lengths(64, 16), 0)
            five = AnswerSpec((task.spec.labels or ())[:5], mode="rank")
            for spec, way in ((AnswerSpec(), "generate up to 16 tokens"), (five, "rank 5 labels")):
                print(compare(f"{kind}, {way}", backbone, texts, spec, arguments.rounds), flush=True)
    found = ", ".join(f"{key} {value}" for key, value in versions().items())
    command = f"python benchmarks/answering.py --rounds {arguments.rounds} --texts {arguments.texts}"
    print(f"\nCommand: `{command}`. {found}.")


if __name__ == "__main__":
    main()
