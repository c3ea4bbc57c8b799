"""Create tasks from options: read the files, fill the prompts, collect the labels, check everything before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.streams.answers import AnswerSpec, MetricName
from merganser.streams.builtin import BUILTIN, DEMO, task_kind
from merganser.streams.checks import check_names, check_task
from merganser.streams.formats import HUB, Table, is_image_source, read_table
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.streams.options import LabelSet, SplitOptions, StreamOptions, TaskOptions, TaskSettings
from merganser.streams.prompts import fill_prompt, prompt_fields
from merganser.streams.sampling import draw_limited, generator, positions_by_output
from merganser.streams.splits import class_order, groups, hold_out
from merganser.streams.task import Example, Stream, Task

SUFFIX = "_T5.json"
"""How the files of AimMerging's layout end: ``train/NAME_T5.json``."""

DEMO_TEXTS = 300
"""Training and test texts per task of ``name: demo`` when no limit is given."""

_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def load_task(options: TaskOptions, base: Path) -> Task:
    """Read one task.

    Args:
        options: files and how to read them.
        base: folder that relative paths start from (that of the configuration file).

    Raises:
        InputError: anything wrong with the files (:mod:`~merganser.streams.formats`), their fields, or the task
            (:func:`~merganser.streams.checks.check_task`), before any training.
    """
    splits, record = _read_splits(options, base)
    return _finish(options.name, options, splits, record, labelled_metric="accuracy")


def load_stream(options: StreamOptions, base: Path) -> Stream:
    """Read all tasks of a stream, in order.

    Tasks of a folder in AimMerging's layout have ``exact_match`` and a label set if they are classification tasks of
    the benchmarks, ``rouge_l`` and free text if they are generation tasks; other names are treated as
    :func:`load_task` treats them, but with ``exact_match``. ``overrides`` come on top.

    Args:
        options: which tasks.
        base: folder that relative paths start from.

    Raises:
        InputError: as :func:`load_task`; also a folder or tasks in it that are not there, a task name twice.
    """
    if options.name == DEMO:
        from merganser.streams.demo import demo_stream

        return demo_stream(
            options.limit or DEMO_TEXTS, options.limit_test or DEMO_TEXTS, options.limit_seed or 0, options.limit_dev
        )
    if options.split is not None or options.name in IMAGE_SETS:
        return _split_stream(options, base)
    if options.tasks is not None:
        metric: MetricName = "accuracy"
        listed = list(options.tasks)
        title = options.name or "tasks"
    else:
        metric = "exact_match"
        names = options.task_names() or []
        folder = base / (options.folder or "")
        listed = _folder_tasks(folder, options.folder or "", names, options.name)
        title = options.name or folder.resolve().name
    check_names([task.name for task in listed])
    resolved = [_resolve(task, options) for task in listed]
    read = ((task, *_read_splits(task, base)) for task in resolved)
    return Stream(title, tuple(_finish(task.name, task, splits, record, metric) for task, splits, record in read))


def _split_stream(options: StreamOptions, base: Path) -> Stream:
    """Read one data set and divide its classes among tasks."""
    values = {} if options.split is None else {k: getattr(options.split, k) for k in options.split.model_fields_set}
    if options.name in IMAGE_SETS:
        values = _over(IMAGE_SETS[options.name].split(options.folder), values)
    for name in ("limit", "limit_dev", "limit_test", "limit_seed"):
        values[name] = values.get(name) if values.get(name) is not None else getattr(options, name)
    split = SplitOptions.model_validate(values)
    splits, record = _read_splits(split, base)
    seed = split.limit_seed or 0
    for part, share in (("test", split.test_share), ("dev", split.dev_share)):
        if share is not None:
            splits["train"], splits[part] = hold_out(splits["train"], share, generator(seed, "held out", part))
            record[part] = f"{share:g} of each class of train, drawn with seed {seed}"
    labels, texts = _label_set("train" if split.labels == "auto" else split.labels, splits["train"])
    if options.name in IMAGE_SETS and len(labels or ()) != IMAGE_SETS[options.name].classes:
        raise InputError(
            f"{options.name} is a stream of {IMAGE_SETS[options.name].classes} classes, and {split.train} has "
            f"{len(labels or ())}.",
            "Give the whole data set, or describe your own under stream.split without a name.",
        )
    order = class_order(split, labels or (), base)
    by_class = {part: positions_by_output(examples) for part, examples in splits.items()}
    tasks = []
    for number, chosen in enumerate(groups(order, split), start=1):
        of_task = {
            part: [splits[part][i] for i in sorted(i for label in chosen for i in positions.get(label, ()))]
            for part, positions in by_class.items()
        }
        task_options = split.model_copy(
            update={"labels": {label: texts.get(label, label) for label in chosen} if texts else list(chosen)}
        )
        tasks.append(_finish(f"{split.prefix}-{number:02d}", task_options, of_task, dict(record), "accuracy"))
    return Stream(options.name or split.prefix, tuple(tasks))


def _over(defaults: dict[str, object], values: dict[str, object]) -> dict[str, object]:
    """Override the defaults of a built-in split; a setting also replaces the default of its alternative."""
    pairs = (("order", "order_seed"), ("tasks", "classes_per_task"), ("test", "test_share"), ("dev", "dev_share"))
    for first, second in (*pairs, *(pair[::-1] for pair in pairs)):
        if values.get(first) is not None:
            defaults = {key: value for key, value in defaults.items() if key != second}
    return {**defaults, **values}


def _resolve(task: TaskOptions, stream: StreamOptions) -> TaskOptions:
    """Combine a task's settings, its overrides, and the stream's limits where it has none."""
    values = {name: getattr(task, name) for name in task.model_fields_set}
    if override := stream.overrides.get(task.name):
        values |= {name: getattr(override, name) for name in override.model_fields_set}
    for name in ("limit", "limit_dev", "limit_test", "limit_seed"):
        if values.get(name) is None:
            values[name] = getattr(stream, name)
    return _validated(values)


def _validated(values: dict[str, object]) -> TaskOptions:
    from pydantic import ValidationError

    try:
        return TaskOptions.model_validate(values)
    except ValidationError as error:
        # Each part was valid alone; together they are not (labels: none here, answer: rank there).
        cause = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"Task '{values['name']}' with its overrides: {cause}.", "Change one of the two.") from error


def _folder_tasks(folder: Path, shown: str, names: Sequence[str], builtin: str | None) -> list[TaskOptions]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {shown}.", "Give the folder that holds train/, dev/ and test/.")
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise InputError(
                f"The folder {shown} has no subfolder {split}/.",
                f"Give the folder with train/, dev/ and test/, each with files NAME{SUFFIX}.",
            )
    for split in ("train", "test"):
        existing = sorted(path.name.removesuffix(SUFFIX) for path in (folder / split).glob(f"*{SUFFIX}"))
        if absent := [name for name in names if name not in existing]:
            whose = f"{builtin} needs {len(names)} tasks; " if builtin in BUILTIN else ""
            raise InputError(
                f"{whose}{shown}/{split} has no file {absent[0]}{SUFFIX}"
                + (f" (nor those of {', '.join(absent[1:])})" if len(absent) > 1 else "")
                + f"; it has {', '.join(existing) or 'none'}.",
                nearest(absent[0], existing) or "Add the files, or name the existing tasks with 'order'.",
            )
    return [_folder_task(folder, shown, name) for name in names]


def _folder_task(folder: Path, shown: str, name: str) -> TaskOptions:
    labels: dict[str | None, LabelSet] = {"classification": "train", "generation": None, None: "auto"}
    values: dict[str, object] = {"name": name, "labels": labels[task_kind(name)]}
    for split in ("train", "dev", "test"):
        file = f"{name}{SUFFIX}"
        if split != "dev" or (folder / split / file).exists():
            values[split] = str(Path(shown) / split / file)
    return TaskOptions.model_validate(values)


def _read_splits(options: TaskOptions | SplitOptions, base: Path) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Read the examples of train, dev and test, and return what each was read from."""
    sources = {"train": options.train, "dev": options.dev, "test": options.test}
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    record: dict[str, str] = {}
    for split, source in sources.items():
        if source is None:
            continue
        if not source.startswith(HUB) and is_image_source(base / source):
            from merganser.streams.images.sources import IMAGE_FIELD, LABEL_FIELD, image_examples, read_images

            table = read_images(base / source, source, options.classes)
            splits[split] = image_examples(table, IMAGE_FIELD, LABEL_FIELD)
        elif options.classes is not None:
            raise InputError(f"{source}: 'classes' names the classes of IDX files, and this is none.", "Remove it.")
        else:
            table = read_table(source, base, _HUB_SPLITS[split])
            if options.image is None:
                splits[split] = _examples(table, options)
            else:
                from merganser.streams.images.sources import image_examples

                splits[split] = image_examples(table, options.image, options.output)
        record[split] = f"{table.name} sha256:{table.sha256}"
    return splits, record


def _finish(
    name: str,
    options: TaskSettings,
    splits: dict[str, list[Example]],
    record: dict[str, str],
    labelled_metric: MetricName,
) -> Task:
    """Create a task from its examples: collect the labels, check everything, draw the limited examples."""
    label_set = options.labels
    if label_set == "auto" and any(example.image is not None for example in splits["train"]):
        label_set = "train"  # images have no free-text answers
    labels, texts = _label_set(label_set, splits["train"])
    metric = options.metric or ("rouge_l" if labels is None else labelled_metric)
    try:
        spec = AnswerSpec(labels, texts, options.answer, metric, options.prompt)
    except InputError as error:
        raise InputError(f"Task '{name}': {error.cause[0].lower()}{error.cause[1:]}", error.remedy) from error
    task = Task(
        name=name,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        spec=spec,
    )
    # The whole files are checked first, so that a mistake in row 900 is reported at any limit.
    check_task(task)
    limits = {"train": options.limit, "dev": options.limit_dev, "test": options.limit_test}
    for split, limit in limits.items():
        whole = splits[split]
        if limit is None or limit >= len(whole):
            continue
        seed = options.limit_seed or 0
        rng = generator(seed, name, split)
        splits[split] = draw_limited(whole, limit, rng, every_label=split == "train" and labels is not None)
        record[f"{split}_limit"] = f"{limit} of {len(whole)} texts, drawn with seed {seed}"
    limited = replace(task, train=splits["train"], dev=splits["dev"], test=splits["test"], source=record)
    check_task(limited)
    return limited


def _examples(table: Table, options: TaskSettings) -> list[Example]:
    names = [options.input] if isinstance(options.input, str) else options.input
    fields = prompt_fields(options.prompt)
    # A column called "input" needs no special case: unless 'input' says otherwise, {input} is that column.
    plain = [name for name in fields if name != "input"]
    examples = []
    for index, row in enumerate(table.rows):
        values = {name: table.text(index, name) for name in plain}
        if "input" in fields:
            values["input"] = "\n".join(table.text(index, name) for name in names)
        identity = row.get("id")
        examples.append(
            Example(
                input=fill_prompt(options.prompt, values),
                output=table.text(index, options.output).strip(),
                id="" if identity is None else str(identity),
            )
        )
    return examples


def _label_set(options: LabelSet, train: Sequence[Example]) -> tuple[tuple[str, ...] | None, dict[str, str]]:
    """Return the labels in a fixed order (as listed, or sorted when collected) and the texts for a matcher."""
    if options is None:
        return None, {}
    if isinstance(options, dict):
        return tuple(options), dict(options)
    if isinstance(options, list):
        return tuple(options), {}
    counts = Counter(example.output for example in train)
    if options == "auto" and min(counts.values()) < 2:
        return None, {}
    return tuple(sorted(counts)), {}
