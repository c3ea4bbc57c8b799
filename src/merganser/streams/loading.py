"""Create tasks from options: read the files, fill the prompts, collect the labels, check everything before training."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.metrics.function import is_function_name, metric_name
from merganser.streams.answers import AnswerSpec, MetricName
from merganser.streams.bad_rows import BadRows, BadRowsError, settle
from merganser.streams.builtin import BUILTIN, DEMO, KNOWN_IRREGULARITIES, NO_LABEL, SYNONYMS, task_kind
from merganser.streams.checks import check_names, check_task
from merganser.streams.examples import SPLITS, Part, drop_outsiders, drop_unlabelled, read_parts, reading_remarks
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.streams.label_sets import LabelSetChoice, choose_labels
from merganser.streams.metric_source import find_metric
from merganser.streams.mix_files import read_mix
from merganser.streams.options import SplitOptions, StreamOptions
from merganser.streams.sampling import draw_limited, generator, positions_by_output
from merganser.streams.splits import class_order, groups, hold_out
from merganser.streams.task import Example, Stream, Task
from merganser.streams.task_options import LabelSet, TaskOptions, TaskSettings

SUFFIX = "_T5.json"
"""How the files of AimMerging's layout end: ``train/NAME_T5.json``."""

DEMO_TEXTS = 300
"""Training and test texts per task of ``name: demo`` when no limit is given."""

_STREAM_DEFAULTS = ("limit", "limit_dev", "limit_test", "limit_seed", "on_bad_rows", "mix")
"""Settings of a task that have their default in the stream."""


def load_task(options: TaskOptions, base: Path) -> Task:
    """Read one task.

    Args:
        options: files and how to read them.
        base: folder that relative paths start from (that of the configuration file).

    Raises:
        InputError: anything wrong with the files (:mod:`~merganser.streams.formats`), their fields, or the task
            (:func:`~merganser.streams.checks.check_task`), before any training.
    """
    return _load(options, base, in_layout=False)


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
    if options.task_names() is None and options.split is None and options.name is None:
        raise InputError("The stream has tasks to watch and none to learn.", "Name tasks, or learn with --config.")
    if options.split is not None or options.name in IMAGE_SETS:
        return _split_stream(options, base)
    if options.tasks is not None:
        listed = list(options.tasks)
        title = options.name or "tasks"
    else:
        names = options.task_names() or []
        folder = base / (options.folder or "")
        listed = _folder_tasks(folder, options.folder or "", names, options.name)
        title = options.name or folder.resolve().name
    check_names([task.name for task in listed])
    tasks: list[Task] = []
    refused: list[BadRowsError] = []
    for resolved in [_resolve(task, options) for task in listed]:
        try:
            tasks.append(_load(resolved, base, in_layout=options.tasks is None))
        except BadRowsError as error:
            refused.append(error)  # to name those of all tasks at once
    if refused:
        sources = [source for error in refused for source in error.sources]
        raise BadRowsError(sources, can_skip=all(error.can_skip for error in refused))
    return Stream(title, tuple(tasks))


def _split_stream(options: StreamOptions, base: Path) -> Stream:
    """Read one data set and divide its classes among tasks."""
    values = {} if options.split is None else {k: getattr(options.split, k) for k in options.split.model_fields_set}
    if options.name in IMAGE_SETS:
        values = _over(IMAGE_SETS[options.name].split(options.folder), values)
    for name in _STREAM_DEFAULTS:
        values[name] = values.get(name) if values.get(name) is not None else getattr(options, name)
    split = SplitOptions.model_validate(values)
    parts = read_parts(split, base)
    choice = _choose_labels(split, parts)
    labels, texts = choice.labels or (), choice.texts
    if options.name in IMAGE_SETS and len(labels) != IMAGE_SETS[options.name].classes:
        raise InputError(
            f"{options.name} is a stream of {IMAGE_SETS[options.name].classes} classes, and {split.train} has "
            f"{len(labels)}.",
            "Give the whole data set, or describe your own under stream.split without a name.",
        )
    drop_outsiders(parts, choice.labels)
    mix, mix_remarks = read_mix(split.mix, base, parts["train"])
    remarks = (*settle(_bad(parts), split.on_bad_rows), *reading_remarks(parts), *mix_remarks)
    splits = _examples(parts)
    record = {part: read.source for part, read in parts.items()}
    if mix is not None:
        record["mix"] = mix.source
    seed = split.limit_seed or 0
    for part, share in (("test", split.test_share), ("dev", split.dev_share)):
        if share is not None:
            splits["train"], splits[part] = hold_out(splits["train"], share, generator(seed, "held out", part))
            record[part] = f"{share:g} of each class of train, drawn with seed {seed}"
    order = class_order(split, labels, base)
    by_class = {part: positions_by_output(examples) for part, examples in splits.items()}
    tasks = []
    for number, chosen in enumerate(groups(order, split), start=1):
        of_task = {
            part: [splits[part][i] for i in sorted(i for label in chosen for i in positions.get(label, ()))]
            for part, positions in by_class.items()
        }
        name = f"{split.prefix}-{number:02d}"
        labels_of_task = LabelSetChoice(chosen, {label: texts[label] for label in chosen} if texts else {})
        spec = _with_function(_answer_spec(name, split, labels_of_task, "accuracy", {}), base, record)
        # Of the whole data set: said once, with the first task.
        of_whole = remarks if number == 1 else ()
        train, dev, test = (of_task[part] for part in SPLITS)
        tasks.append(_limited(Task(name, train, dev, test, spec, dict(record), remarks=of_whole, mix=mix), split))
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
    for name in _STREAM_DEFAULTS:
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
    if not os.path.isdir(folder):
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
        if split != "dev" or os.path.exists(folder / split / file):
            values[split] = str(Path(shown) / split / file)
    return TaskOptions.model_validate(values)


def _load(options: TaskOptions, base: Path, in_layout: bool) -> Task:
    """Read one task.

    Args:
        in_layout: whether it comes from a folder in AimMerging's layout.
    """
    published = in_layout and task_kind(options.name) is not None
    parts = read_parts(options, base)
    if published and options.name in NO_LABEL:
        drop_unlabelled(parts, NO_LABEL[options.name])
    tolerated = KNOWN_IRREGULARITIES if published else frozenset()
    choice = _choose_labels(options, parts, tolerated)
    drop_outsiders(parts, choice.labels)
    remarks = (*settle(_bad(parts), options.on_bad_rows, tolerated), *reading_remarks(parts))
    if choice.remark:
        remarks = (*remarks, choice.remark)
    metric: MetricName = "exact_match" if in_layout else "accuracy"
    synonyms = SYNONYMS.get(options.name, {}) if published else {}
    if not set(synonyms.values()) <= set(choice.labels or ()):
        synonyms = {}  # the labels are others than those of the benchmark
    pairs = parts["train"].examples[0].rejected is not None
    record = {split: part.source for split, part in parts.items()}
    spec = _with_function(_answer_spec(options.name, options, choice, metric, synonyms, pairs), base, record)
    splits = _examples(parts)
    train, dev, test = (splits[split] for split in SPLITS)
    mix, mix_remarks = read_mix(options.mix, base, parts["train"])
    if mix is not None:
        record["mix"] = mix.source
    task = Task(options.name, train, dev, test, spec, record, remarks=(*remarks, *mix_remarks), mix=mix)
    return _limited(task, options)


def _choose_labels(options: TaskSettings, parts: dict[str, Part], tolerated: Collection[str] = ()) -> LabelSetChoice:
    """Choose the labels of a task or a split, of which a part without usable rows is refused first."""
    emptied = [bad for bad in _bad(parts) if not bad.good]
    if emptied:
        settle(_bad(parts), options.on_bad_rows, tolerated)
    train = parts["train"].examples
    label_set = None if train[0].rejected is not None else options.labels
    if train[0].rejected is not None and isinstance(options, SplitOptions):
        raise InputError(
            f"{parts['train'].bad.shown}: a split needs classes, and these rows are preferences.",
            "Name the fields of their texts and labels with 'input' and 'output', or list them under 'tasks'.",
        )
    # Images have no free-text answers, and neither has a split, which is cut by its labels.
    always = isinstance(options, SplitOptions) or any(example.image is not None for example in train)
    if label_set == "auto" and always:
        label_set = "train"
    return choose_labels(label_set, train, needed=options.answer == "rank" or options.metric == "accuracy")


def _bad(parts: dict[str, Part]) -> list[BadRows]:
    return [part.bad for part in parts.values()]


def _examples(parts: dict[str, Part]) -> dict[str, list[Example]]:
    return {split: parts[split].examples if split in parts else [] for split in SPLITS}


def _answer_spec(
    name: str,
    options: TaskSettings,
    choice: LabelSetChoice,
    labelled_metric: MetricName,
    synonyms: dict[str, str],
    pairs: bool = False,
) -> AnswerSpec:
    """Return how a task is answered and scored; ``pairs``: its examples are preferences."""
    metric = options.metric or ("rouge_l" if choice.labels is None else labelled_metric)
    try:
        if pairs:
            if foreign := options.foreign_to_preferences():
                raise InputError(f"Its rows are preferences, which have no '{foreign[0]}'.", f"Remove '{foreign[0]}'.")
            return AnswerSpec(prompt=options.prompt, dpo=options.dpo)
        return AnswerSpec(choice.labels, choice.texts, options.answer, metric, options.prompt, synonyms)
    except InputError as error:
        raise InputError(f"Task '{name}': {error.cause[0].lower()}{error.cause[1:]}", error.remedy) from error


def _with_function(spec: AnswerSpec, base: Path, record: dict[str, str]) -> AnswerSpec:
    """Import the function that scores a task, if one does, and note where it came from."""
    if not is_function_name(spec.metric):
        return spec
    metric = find_metric(metric_name(spec.metric), base)
    if metric.source:
        record["metric"] = metric.source
    return replace(spec, metric=metric)


def _limited(task: Task, options: TaskSettings) -> Task:
    """Check a task, and draw its limited examples."""
    # The whole files are checked first, so that a mistake in row 900 is reported at any limit.
    check_task(task)
    splits: dict[str, Sequence[Example]] = {"train": task.train, "dev": task.dev, "test": task.test}
    record = dict(task.source)
    limits = {"train": options.limit, "dev": options.limit_dev, "test": options.limit_test}
    for split, limit in limits.items():
        whole = splits[split]
        if limit is None or limit >= len(whole):
            continue
        seed = options.limit_seed or 0
        rng = generator(seed, task.name, split)
        every_label = split == "train" and task.labels is not None
        splits[split] = draw_limited(whole, limit, rng, every_label=every_label)
        record[f"{split}_limit"] = f"{limit} of {len(whole)} texts, drawn with seed {seed}"
    limited = replace(task, train=splits["train"], dev=splits["dev"], test=splits["test"], source=record)
    check_task(limited)
    return limited
