"""Write the small data files that the other examples read: a few dozen made-up texts per task.

    python examples/make_data.py                # writes examples/data
    python examples/make_data.py --out my-data

What it writes under the folder:

    tickets-train.csv     subject, body, queue           support mails, by the team that answers them
    reviews-train.jsonl   text, mood                     opinions, positive or negative
    headlines-train.tsv   text, topic                    headlines, by topic
    claims-train.jsonl    premise, hypothesis, verdict   does the second sentence follow from the first?
    dates-train.jsonl     text, date                     a date in words, and in digits
    support-train.jsonl   messages                       conversations of customers and the support of a product
    digits-train.json     instruction, input, output     instructions as in Alpaca's files, some without an input
    folder/               train/, dev/, test/            three tasks in the layout of AimMerging's data
    long-sequence/        train/, dev/, test/            placeholders for the 15 tasks of the Long Sequence benchmark

and a ``-test`` file beside each ``-train`` file. No text is in two splits. The placeholders have the names and the
labels of the benchmark, so that its order can be tried; scores on them do not predict scores on the benchmark.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Words = Mapping[str, Sequence[str]]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
PEOPLE = ("teacher", "nurse", "farmer", "painter", "pilot", "student", "baker", "driver")
PLACES = (
    "the park", "the kitchen", "the library", "the station", "the garden", "the office", "the market", "the museum",
    "the harbour", "the school", "the church", "the theatre",
)  # fmt: skip

TICKETS: dict[str, tuple[Sequence[str], Words]] = {
    "network": (
        (
            "{thing} is down|Since {day} the {thing} in {room} drops the connection every few minutes.",
            "Cannot connect|The {thing} in {room} shows no signal. It worked until {day}.",
        ),
        {
            "thing": ("wireless network", "router", "VPN", "internet access"),
            "day": DAYS,
            "room": ("room 12", "the lobby", "our branch"),
        },
    ),
    "billing": (
        (
            "Question about an {paper}|The {paper} of {day} charges us twice for {item}. Please refund one of them.",
            "Wrong amount|We paid for {item} on {day}, but the {paper} still says overdue.",
        ),
        {
            "paper": ("invoice", "bill", "account statement"),
            "day": DAYS,
            "item": ("the licence", "the support plan", "ten seats"),
        },
    ),
    "hardware": (
        (
            "Broken {thing}|My {thing} {fault}. I need a replacement before {day}.",
            "{thing} does not work|Since {day} the {thing} {fault}, even after a restart.",
        ),
        {
            "thing": ("keyboard", "monitor", "printer", "laptop"),
            "fault": ("makes a loud noise", "does not switch on", "has a cracked case"),
            "day": DAYS,
        },
    ),
}

REVIEWS: dict[str, tuple[Sequence[str], Words]] = {
    mood: (
        (
            "The {thing} was {word} and the staff were {other}.",
            "A {word} {thing}; we will {again}.",
            "I found the {thing} {word}, {other} even.",
        ),
        {
            "thing": ("hotel", "film", "meal", "concert", "book", "tour"),
            "word": words[0],
            "other": words[1],
            "again": words[2],
        },
    )
    for mood, words in {
        "positive": (
            ("wonderful", "charming", "excellent"),
            ("friendly", "delightful", "brilliant"),
            ("come back soon", "tell all our friends"),
        ),
        "negative": (
            ("dreadful", "boring", "disappointing"),
            ("rude", "awful", "hopeless"),
            ("never come back", "ask for our money back"),
        ),
    }.items()
}

TOPICS: dict[str, Sequence[str]] = {
    "sports": ("the cup final", "the marathon", "the league match", "the tennis open"),
    "business": ("the stock market", "the car maker", "the interest rate", "the merger of two banks"),
    "science": ("the space telescope", "the new vaccine", "the fossil find", "the fusion reactor"),
}
HEADLINES = (
    "{topic} surprises experts on {day}",
    "Five questions about {topic} before {day}",
    "{day}: what {topic} means for us",
)

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")


def fill(templates: Iterable[str], words: Words) -> list[str]:
    """Every text that the templates give with every choice of words for their {slots}."""
    texts = []
    for template in templates:
        slots = list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))
        for choice in itertools.product(*(words[slot] for slot in slots)):
            text = template.format(**dict(zip(slots, choice, strict=True)))
            texts.append(text[0].upper() + text[1:])
    return texts


def balanced(by_label: Mapping[str, Sequence[Row]], count: int, rng: random.Random) -> list[Row]:
    """``count`` rows drawn without repetition. Every stretch of them has the labels as evenly as possible."""
    rounds = -(-count // len(by_label))
    columns = []
    for label, pool in by_label.items():
        distinct = list({json.dumps(row, sort_keys=True): row for row in pool}.values())
        if rounds > len(distinct):
            raise SystemExit(f"only {len(distinct)} different texts can be made for '{label}', not {rounds}")
        columns.append(rng.sample(distinct, rounds))
    rows: list[Row] = []
    for each in zip(*columns, strict=True):
        rows += rng.sample(each, len(each))
    return rows[:count]


def labelled(by_label: Mapping[str, Sequence[str]], text: str, label: str) -> dict[str, list[Row]]:
    """Rows with the fields ``text`` and ``label`` from the texts of each label."""
    return {name: [{text: each, label: name} for each in texts] for name, texts in by_label.items()}


# -- tasks for the configurations that list their files ---------------------------------------------------------------


def tickets(count: int, rng: random.Random) -> list[Row]:
    pools = {}
    for queue, (templates, words) in TICKETS.items():
        parts = [text.split("|") for text in fill(templates, words)]
        pools[queue] = [{"subject": subject, "body": body, "queue": queue} for subject, body in parts]
    return balanced(pools, count, rng)


def reviews(count: int, rng: random.Random) -> list[Row]:
    return balanced(labelled({mood: fill(*made) for mood, made in REVIEWS.items()}, "text", "mood"), count, rng)


def headlines(count: int, rng: random.Random) -> list[Row]:
    made = {name: fill(HEADLINES, {"topic": words, "day": DAYS}) for name, words in TOPICS.items()}
    return balanced(labelled(made, "text", "topic"), count, rng)


def claims(count: int, rng: random.Random) -> list[Row]:
    pools: dict[str, list[Row]] = {"yes": [], "no": []}
    for person, place in itertools.product(PEOPLE, PLACES):
        premise = f"A {person} is asleep in {place}."
        pools["yes"].append({"premise": premise, "hypothesis": f"Somebody sleeps in {place}.", "verdict": "yes"})
        pools["no"].append({"premise": premise, "hypothesis": f"The {person} is running.", "verdict": "no"})
    return balanced(pools, count, rng)


def dates(count: int, rng: random.Random) -> list[Row]:
    rows = [
        {"text": f"{month} {day}, {year}", "date": f"{year}-{number:02d}-{day:02d}"}
        for number, month in enumerate(MONTHS, 1)
        for day in range(1, 29)
        for year in (2023, 2024)
    ]
    return balanced({"dates": rows}, count, rng)


def support(count: int, rng: random.Random) -> list[Row]:
    """Conversations of two exchanges: what is broken, then where."""
    templates, words = TICKETS["hardware"]
    mails = [text.split("|")[1] for text in fill(templates, words)]
    rows = []
    for mail, room in itertools.product(mails, ("room 12", "the lobby", "our branch")):
        thing = next(thing for thing in words["thing"] if thing in mail)
        turns = [mail, "I am sorry to hear that. Where is it?", f"In {room}.", f"A new {thing} will come to {room}."]
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        rows.append({"messages": [{"role": "system", "content": "You help with hardware."}, *messages]})
    return balanced({"support": rows}, count, rng)


def digits(count: int, rng: random.Random) -> list[Row]:
    rows = []
    for row in dates(2 * count, rng):
        whole = {"instruction": f"Write {row['text']} in digits.", "input": ""}
        parts = {"instruction": "Write this date in digits.", "input": row["text"]}
        rows.append({**rng.choice((whole, parts)), "output": row["date"]})
    return balanced({"digits": rows}, count, rng)


# -- tasks in the layout of AimMerging's data: the fields are always id, input and output -----------------------------


def ask(question: str, pools: Mapping[str, Sequence[str]]) -> Callable[[int, random.Random], list[Row]]:
    """A task that asks one question about every text and names the possible answers."""
    option = f"{question} Choose one from the option. Option: {', '.join(pools)}.\n"
    texts = {name: [option + text for text in each] for name, each in pools.items()}
    return lambda count, rng: balanced(labelled(texts, "input", "output"), count, rng)


def moods(words: Mapping[str, Sequence[str]]) -> Callable[[int, random.Random], list[Row]]:
    things = ("story", "service", "food", "music", "ending", "staff", "room", "sound")
    made = {
        name: fill(
            ("The {thing} was {word}.", "We all found the {thing} {word}.", "Was the {thing} {word}? It was."),
            {"thing": things, "word": each},
        )
        for name, each in words.items()
    }
    return ask("What is the sentiment of the following paragraph?", made)


def topics(words: Mapping[str, Sequence[str]]) -> Callable[[int, random.Random], list[Row]]:
    made = {name: fill(HEADLINES, {"topic": each, "day": DAYS}) for name, each in words.items()}
    return ask("What is the topic of the following paragraph?", made)


def inference(labels: Sequence[str]) -> Callable[[int, random.Random], list[Row]]:
    second = {
        "entailment": "Somebody is in {place}.",
        "contradiction": "There is nobody in {place}.",
        "neutral": "The {person} has come on foot.",
    }
    template = "sentence 1: A {person} is waiting in {place}.\nsentence 2: "
    words = {"person": PEOPLE, "place": PLACES}
    made = {name: fill((template + second[name],), words) for name in labels}
    return ask('What is the logical relationship between the "sentence 1" and the "sentence 2"?', made)


def true_or_false(question: str, template: str) -> Callable[[int, random.Random], list[Row]]:
    """A passage and a statement about it, which is true when both speak of the same day."""
    made: dict[str, list[str]] = {"False": [], "True": []}
    for place, (first, second) in itertools.product(PLACES, itertools.product(DAYS, DAYS)):
        made[str(first == second)].append(template.format(place=place, first=first, second=second))
    return ask(question, made)


def causes(count: int, rng: random.Random) -> list[Row]:
    right = ("It had rained.", "The pavement was wet.")
    wrong = ("The sun was shining.", "The shop had a sale.", "The phone rang.")
    made: dict[str, list[str]] = {"A": [], "B": []}
    for person, place, good, bad in itertools.product(PEOPLE, PLACES, right, wrong):
        head = f'Which sentence is the cause of "The {person} slipped near {place}."?\n'
        made["A"].append(f"{head}A: {good}\nB: {bad}")
        made["B"].append(f"{head}A: {bad}\nB: {good}")
    return ask("Read the following question.", made)(count, rng)


def subject_lines(count: int, rng: random.Random) -> list[Row]:
    rows = []
    for queue, (templates, words) in TICKETS.items():
        for text in fill(templates, words):
            subject, body = text.split("|")
            rows.append({"input": f"Write a subject line for this mail to {queue}: {body}", "output": subject})
    return balanced({"subject lines": rows}, count, rng)


FIVE = {
    "very negative": ("terrible", "a disaster", "unbearable"),
    "negative": ("poor", "weak", "dull"),
    "neutral": ("average", "ordinary", "as expected"),
    "positive": ("good", "nice", "pleasant"),
    "very positive": ("outstanding", "perfect", "a triumph"),
}
TWO = {"Good": ("great", "lovely", "clever"), "Bad": ("awful", "tedious", "silly")}
NEWS = {
    "World": ("the peace talks", "the election abroad"),
    "Sports": TOPICS["sports"],
    "Business": TOPICS["business"],
    "Science or Technology": TOPICS["science"],
}
THINGS = {
    name: (f"the {word} of the year", f"a well-known {word}")
    for name, word in {
        "Company": "company", "Educational Institution": "college", "Artist": "singer", "Athlete": "runner",
        "Office Holder": "mayor", "Mean of Transportation": "locomotive", "Building": "church",
        "Natural Place": "lake", "Village": "village", "Animal": "butterfly", "Plant": "orchid", "Album": "album",
        "Film": "film", "Written Work": "novel",
    }.items()
}  # fmt: skip
QUESTIONS = {
    name: (f"{word} for beginners", f"the best {word}")
    for name, word in {
        "Society & Culture": "customs", "Science & Mathematics": "algebra", "Health": "diets",
        "Education & Reference": "dictionaries", "Computers & Internet": "browsers", "Sports": "football",
        "Business & Finance": "loans", "Entertainment & Music": "guitars", "Family & Relationships": "weddings",
        "Politics & Government": "elections",
    }.items()
}  # fmt: skip
PASSAGE = "passage: The shop near {place} opens on {first} only.\nquestion: Can one buy there on {second}?"
MEANING = "Whether the {} and the {} have the same meaning?"

FOLDER: dict[str, Callable[[int, random.Random], list[Row]]] = {
    "sentiment": moods(TWO),
    "news": topics(NEWS),
    "subject-lines": subject_lines,
}
LONG_SEQUENCE: dict[str, Callable[[int, random.Random], list[Row]]] = {
    "mnli": inference(("entailment", "neutral", "contradiction")),
    "cb": inference(("entailment", "contradiction", "neutral")),
    "rte": inference(("contradiction", "entailment")),
    "wic": true_or_false(MEANING.format("first word", "second word"), "{place}, {first} / {place}, {second}"),
    "qqp": true_or_false(
        MEANING.format("first sentence", "second sentence"),
        "first sentence: Is {place} open on {first}?\nsecond sentence: On {second}, can I visit {place}?",
    ),
    "copa": causes,
    "boolqa": true_or_false("According to the following passage, is the question true or false?", PASSAGE),
    "multirc": true_or_false("Is the answer to the question about the passage yes?", PASSAGE),
    "imdb": moods(TWO),
    "sst-2": moods(TWO),
    "yelp": moods(FIVE),
    "amazon": moods(FIVE),
    "dbpedia": topics(THINGS),
    "agnews": topics(NEWS),
    "yahoo": topics(QUESTIONS),
}
"""Names and labels as in the benchmark (Razdaibiedina et al. 2023, "Progressive Prompts"); the texts are stand-ins."""

LISTED: dict[str, tuple[str, Callable[[int, random.Random], list[Row]]]] = {
    "tickets": ("csv", tickets),
    "reviews": ("jsonl", reviews),
    "headlines": ("tsv", headlines),
    "claims": ("jsonl", claims),
    "dates": ("jsonl", dates),
    "support": ("jsonl", support),
    "digits": ("json", digits),
}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Rows as .csv, .tsv, .jsonl or .json, by the ending of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the data files that the examples read.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write into")
    parser.add_argument("--train", type=int, default=60, help="training texts per task")
    parser.add_argument("--test", type=int, default=24, help="test texts per task")
    parser.add_argument("--seed", type=int, default=0, help="decides which texts are drawn")
    given = parser.parse_args(arguments)
    for name, (ending, make) in LISTED.items():
        # One draw for all splits: no text can stand in two of them.
        rows = make(given.train + given.test, random.Random(f"{given.seed} {name}"))
        write_table(given.out / f"{name}-train.{ending}", rows[given.test :])
        write_table(given.out / f"{name}-test.{ending}", rows[: given.test])
    for folder, makers in (("folder", FOLDER), ("long-sequence", LONG_SEQUENCE)):
        for name, make in makers.items():
            rows = make(given.train + 2 * given.test, random.Random(f"{given.seed} {folder} {name}"))
            rows = [{"id": f"{name}_{number}", **row} for number, row in enumerate(rows)]
            splits = {
                "test": rows[: given.test],
                "dev": rows[given.test : 2 * given.test],
                "train": rows[2 * given.test :],
            }
            for split, part in splits.items():
                write_table(given.out / folder / split / f"{name}_T5.json", part)
    print(
        f"Wrote {len(LISTED) + len(FOLDER) + len(LONG_SEQUENCE)} tasks of {given.train} training texts to {given.out}"
    )


if __name__ == "__main__":
    main()
