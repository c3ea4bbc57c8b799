"""Tasks of lm-evaluation-harness that are watched: a local definition, asked of tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from merganser.errors import InputError
from merganser.evaluation import score_task
from merganser.integrations import harness
from merganser.learner import Learner
from merganser.models.generative import GenerativeBackbone
from merganser.models.loading import load_backbone, resolve_lengths
from merganser.models.options import LoraOptions, ModelOptions
from merganser.runs import RunDirectory
from merganser.runs.verification import verify
from merganser.streams.watch import WatchedTask
from merganser.streams.watch_options import HarnessOptions
from tests.learner import toys

CHOICE = """
task: manners
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [good, bad]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

WRITTEN = """
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} ->"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two definitions and the questions that they read."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("harness")
    file = folder / "questions.jsonl"
    asked = [
        {"question": f"{('a great', 'a weak')[i % 2]} film {i}", "answer": ("good", "bad")[i % 2]} for i in range(5)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "manners.yaml").write_text(CHOICE.format(file=file))
    (folder / "writing.yaml").write_text(WRITTEN.format(file=file))
    return folder


@pytest.fixture(scope="module")
def backbone() -> GenerativeBackbone:
    options = ModelOptions(
        name=str(toys.model_folder("causal")), kind="causal", precision="fp32", lora=LoraOptions(r=2)
    )
    made = load_backbone(options, resolve_lengths(options, 32, 8), 0)
    assert isinstance(made, GenerativeBackbone)
    return made


def test_choices_are_those_of_the_likeliest_continuation(folder: Path, backbone: GenerativeBackbone) -> None:
    options = HarnessOptions(task="manners", folder=str(folder), limit=4)
    loaded = harness.load(options)
    assert loaded.options.metric == "acc"
    assert [(example.input, example.output) for example in loaded.examples[:2]] == [
        ("a great film 0", "good"),
        ("a weak film 1", "bad"),
    ]
    random, settings = torch.get_rng_state(), backbone.base.generation_config
    scored = harness.score(backbone, loaded.options, 2)
    expected = []
    tokenizer, model = backbone.tokenizer, backbone.base.eval()
    for example in loaded.examples:
        likelihood = {}
        for choice in ("good", "bad"):
            ids = torch.tensor([tokenizer(f"{example.input} {choice}").input_ids])
            start = len(tokenizer(example.input).input_ids)
            with torch.no_grad():
                logits = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            likelihood[choice] = float(logits.gather(-1, ids[0, start:, None]).sum())
        expected.append(max(likelihood, key=likelihood.__getitem__))
    assert list(scored.answers) == expected
    assert list(scored.values) == [float(a == e.output) for a, e in zip(expected, loaded.examples, strict=True)]
    assert torch.equal(random, torch.get_rng_state())
    assert backbone.base.generation_config is settings
    task = WatchedTask("m", test=loaded.examples, harness=loaded.options)
    assert score_task(backbone, task, 2).values == scored.values


def test_answers_are_written_by_greedy_decoding(folder: Path, backbone: GenerativeBackbone) -> None:
    scored = harness.score(backbone, HarnessOptions(task="writing", folder=str(folder), limit=2), 1)
    for answer, question in zip(scored.answers, ("a great film 0 ->", "a weak film 1 ->"), strict=True):
        ids = torch.tensor([backbone.tokenizer(question).input_ids])
        with torch.no_grad():
            for _ in range(3):  # max_gen_toks, not training.max_target
                ids = torch.cat([ids, backbone.base(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        written = backbone.tokenizer.decode(ids[0, -3:], skip_special_tokens=True)
        assert written.split("\n")[0].strip() == answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "manners", "metric": "f1"}, "has no metric 'f1' that is a mean .* It has acc, acc_norm"),
        ({"task": "broken"}, "'broken' of lm-evaluation-harness cannot be (read|asked)"),
    ],
)
def test_what_cannot_be_watched(options: dict[str, str], message: str, folder: Path) -> None:
    (folder / "broken.yaml").write_text("task: broken\ndataset_path: json\noutput_type: nonsense\ntest_split: test\n")
    with pytest.raises(InputError, match=message):
        harness.load(HarnessOptions(folder=str(folder), **options))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"needs the package lm_eval.*pip install 'merganser\[lm-eval\]'"):
        harness.load(HarnessOptions(task="arc_easy"))


def test_a_run_watches_a_task_of_the_harness(folder: Path, tmp_path: Path) -> None:
    """It is scored in every row, kept with the run, and checked for the same questions when the run goes on."""
    model = {"name": str(toys.model_folder("causal")), "kind": "causal", "precision": "fp32", "lora": {"r": 2}}
    training = {"steps": 1, "batch": 2, "max_input": 16, "max_target": 4}
    task = toys.rows("mood", 4)
    from merganser import AnswerSpec, Example, Task

    def learned(name: str) -> Task:
        examples = [Example(row["input"], row["output"]) for row in task]
        return Task(name, train=examples, test=examples[:2], spec=AnswerSpec())

    manners = HarnessOptions(task="manners", folder=str(folder), limit=3)
    run = tmp_path / "run"
    with Learner.open(run, model=model, training=training, method="sequential") as learner:
        learner.watch(WatchedTask("manners", group="general", harness=manners))
        learner.learn(learned("mood"))
        assert [row.scores["manners"].n for row in learner.scores.rows] == [3, 3]
        assert learner.record.scores.metrics["manners"] == "acc of manners (lm-evaluation-harness)"
    kept = [json.loads(line) for line in (run / "tasks" / "00-start" / "watch.jsonl").read_text().splitlines()]
    assert [line["output"] for line in kept] == ["good", "bad", "good"]
    assert verify(RunDirectory.open(run)).damaged == []
    (folder / "questions.jsonl").write_text(json.dumps({"question": "another", "answer": "bad"}) + "\n")
    harness.load.cache_clear()
    with Learner.open(run) as learner, pytest.raises(InputError, match="'manners' asks other questions now"):
        learner.learn(learned("topic"))
