"""Tuning: options of each method are searched on development data, with the same budget for all, before the results.

The trials are a study of their own in ``DIR/tuning``: a method of it is a method of the study at one point of the grid,
and its tests are development texts. So they run, resume and share parts as all cells do. What is tried depends on the
scores so far alone, and an interrupted search goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merganser.errors import InputError, RunError
from merganser.files.atomic import write_json
from merganser.files.documents import parse_json, read_text
from merganser.study import grids
from merganser.study.cell_record import CellRecord, write_cell
from merganser.study.cells import Study, make_study
from merganser.study.folder import TUNING, StudyFolder
from merganser.study.options import TuneOptions, VariantOptions

FAILED = "failed.json"
"""File in that folder: cell -> digest of its configuration, of trials that have failed."""

ROUND = 4
"""Points of a method that are tried at the same time; the scores of all are known before the next ones are chosen."""

ATTEMPTS = 100
"""Proposals of the search that may have been tried before; then the next untried point of the grid follows."""

RunStudy = Callable[[Study, StudyFolder], None]


@dataclass
class _Search:
    """The search of one method.

    Attributes:
        label: of the method.
        axes: what is varied.
        points: tried so far, or being tried.
        scores: mean overall performance of each on development data; ``None``: the trial failed.
    """

    label: str
    axes: dict[grids.Path, list[Any]]
    points: list[grids.Point] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    def entry(self, number: int) -> str:
        """Return the name of a trial, as a method of the study of trials."""
        return f"{self.label} #{number + 1}"

    def best(self) -> grids.Point:
        """Return the point with the highest score, of equal ones the first.

        Raises:
            RunError: no trial was finished.
        """
        known = [(score, -number) for number, score in enumerate(self.scores) if score is not None]
        if not known:
            raise RunError(
                f"No trial of '{self.label}' was finished.", "What they printed is in the folder tuning/logs."
            )
        return self.points[-max(known)[1]]


def check_tuning(study: Study) -> None:
    """Refuse a grid that fits no method, or that stands beside another one.

    Raises:
        InputError: naming the key; or the search needs Optuna, which is not installed.
    """
    tune = study.options.tune
    if tune is None:
        return
    if study.options.grid or any(variant.grid for variant in study.options.methods.values()):
        raise InputError(
            f"{study.where}: the study has both 'tune' and a 'grid'.",
            "Tuning chooses one point of its grid; put what is compared into the methods.",
        )
    if study.options.processes > 1 or study.options.fsdp is not None:
        raise InputError(
            f"{study.where}: 'tune' is for cells of one process.", "Tune with processes: 1, on a smaller model or task."
        )
    searches = _searches(study, tune)
    grids.check_shared(
        grids.axes(tune.grid, f"{study.where}: tune.grid"),
        [_method_name(label, variant) for label, variant in study.options.methods.items()],
        f"{study.where}: tune.grid",
    )
    if not any(search.axes for search in searches):
        raise InputError(f"{study.where}: tune.grid is empty.", "Name options with the values to try.")
    if any(grids.size(search.axes) > tune.trials for search in searches):
        _optuna()


def tuned(study: Study, folder: StudyFolder, run: RunStudy | None) -> Study | None:
    """Return the study with the options that its tuning chose, after the trials that are missing.

    Args:
        folder: of the study.
        run: runs the cells of a study that are missing; ``None``: nothing is run.

    Returns:
        The study without its tuning; ``None`` where trials are missing and nothing is run.

    Raises:
        InputError: as :func:`check_tuning`, and as a study.
        RunError: no trial of a method was finished.
    """
    tune = study.options.tune
    if tune is None:
        return study
    check_tuning(study)
    searches = _searches(study, tune)
    trials = StudyFolder(folder.path / TUNING)
    while True:
        wanted = [search for search in searches if _propose(search, tune)]
        if not wanted:
            break
        round_ = _trial_study(study, tune, searches)
        _check_unchanged(round_, trials)
        if run is not None:
            run(round_, trials)
        elif not _all_tried(round_, trials):
            return None
        for search in searches:
            search.scores = [_score(round_, trials, search.entry(number)) for number in range(len(search.points))]
    _record_trials(study, tune, searches, folder, trials)
    chosen = {search.label: search.best() for search in searches if search.axes}
    return _with_methods(
        study, {label: _at(variant, label, chosen.get(label, {})) for label, variant in study.options.methods.items()}
    )


def most_trials(study: Study) -> int:
    """Return how many cells the tuning of a study has at most."""
    tune = study.options.tune
    if tune is None:
        return 0
    points = sum(min(tune.trials, grids.size(search.axes)) for search in _searches(study, tune) if search.axes)
    return points * len(tune.seeds) * len(study.options.named_streams)


def untuned(study: Study) -> Study:
    """Return the study with its options as they are, without its tuning."""
    return _with_methods(study, {label: _dump(variant) for label, variant in study.options.methods.items()})


def _searches(study: Study, tune: TuneOptions) -> list[_Search]:
    axes = grids.axes(tune.grid, f"{study.where}: tune.grid")
    return [
        _Search(label, grids.of_method(axes, _method_name(label, variant)))
        for label, variant in study.options.methods.items()
    ]


def _method_name(label: str, variant: VariantOptions) -> str:
    method = label if variant.method is None else variant.method
    return method if isinstance(method, str) else str(method.get("name"))


# The study of trials -------------------------------------------------------------------------------------------------


def _trial_study(study: Study, tune: TuneOptions, searches: Sequence[_Search]) -> Study:
    methods = {
        search.entry(number): _at(study.options.methods[search.label], search.label, point)
        for search in searches
        for number, point in enumerate(search.points)
    }
    orders = dict(list(study.options.orders.items())[:1])
    changes: dict[str, Any] = {
        "name": study.options.name and f"{study.name}: tuning",
        "seeds": list(tune.seeds),
        "development": tune.development,
        "fwt": False,
        "reference": None,
        **({"orders": orders} if orders else {}),
    }
    return _with_methods(study, methods, changes)


def _with_methods(study: Study, methods: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Study:
    value = {key: part for key, part in study.value.items() if key not in ("tune", "methods")}
    return make_study(
        {**value, **(changes or {}), "methods": dict(methods)}, study.where, study.folder, allow_many=True
    )


def _dump(variant: VariantOptions) -> dict[str, Any]:
    return variant.model_dump(mode="json", exclude_unset=True)


def _at(variant: VariantOptions, label: str, point: grids.Point) -> dict[str, Any]:
    """Return a method of a study at one point, which its cells have as their options."""
    value = _dump(variant)
    method = label if variant.method is None else variant.method
    value["method"] = {"name": method} if isinstance(method, str) else dict(method)
    if not point:
        return value
    grid: dict[str, Any] = {}
    for path, chosen in point.items():
        inner = grid
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = [chosen]
    return {**value, "grid": grid}


def _check_unchanged(study: Study, folder: StudyFolder) -> None:
    for cell in study.cells:
        if (status := folder.status(cell)).stage == "changed":
            raise InputError(
                f"The trial '{cell.name}' of the tuning is not what the study has now: {status.reason}.",
                f"Take the change back, or move '{folder.path}' elsewhere to tune anew.",
            )


def note_failed(study: Study, folder: StudyFolder, failed: Collection[str]) -> None:
    """Write down which trials have failed: a search without these scores is finished."""
    if failed:
        digests = {cell.name: cell.config.digest() for cell in study.cells if cell.name in failed}
        write_json(folder.path / FAILED, {**_failed(folder), **digests})


def _failed(folder: StudyFolder) -> dict[str, str]:
    try:
        return dict(parse_json(read_text(folder.path / FAILED)))
    except (OSError, ValueError, TypeError):
        return {}  # not there, or not whole: the trials are run again


def _all_tried(study: Study, folder: StudyFolder) -> bool:
    failed = _failed(folder)
    return all(
        folder.record_file(cell).is_file() or failed.get(cell.name) == cell.config.digest() for cell in study.cells
    )


def _score(study: Study, folder: StudyFolder, entry: str) -> float | None:
    """Return the mean score of a trial over its cells; ``None``: not all of them are finished."""
    records = [folder.record(cell) for cell in study.cells if cell.method == entry]
    scores = [None if record is None or record.stopped_by else record.op for record in records]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def _record_trials(
    study: Study, tune: TuneOptions, searches: Sequence[_Search], folder: StudyFolder, trials: StudyFolder
) -> None:
    """Put the records of all trials beside those of the results, marked as trials."""
    cells = _trial_study(study, tune, searches).cells
    labels = {search.entry(number): search.label for search in searches for number in range(len(search.points))}
    for cell in cells:
        record = trials.record(cell)
        if record is not None:
            changes = {"name": f"tuning-{record.name}"[:200], "method": labels[cell.method], "tuning": TUNING}
            write_cell(folder.records, _changed(record, {**changes, "run": f"{TUNING}/{record.run}"}))


def _changed(record: CellRecord, changes: Mapping[str, Any]) -> CellRecord:
    return record.model_copy(update=dict(changes))


# The search ----------------------------------------------------------------------------------------------------------


def _propose(search: _Search, tune: TuneOptions) -> bool:
    """Add the points that are tried next; return whether there are any."""
    if not search.axes:
        return False
    every = list(grids.points(search.axes))
    if len(every) <= tune.trials:
        new = [point for point in every if point not in search.points]
    else:
        left = min(ROUND, tune.trials - len(search.points))
        new = _proposed(search, every, left, tune.seeds[0]) if left > 0 else []
    search.points += new
    return bool(new)


def _proposed(search: _Search, every: Sequence[grids.Point], count: int, seed: int) -> list[grids.Point]:
    """Ask Optuna for points, with the scores so far (TPE: Bergstra et al. 2011)."""
    optuna = _optuna()
    # Places in the lists: values may be lists or mappings, which are no categories.
    space = {
        ".".join(path): optuna.distributions.CategoricalDistribution(list(range(len(values))))
        for path, values in search.axes.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed + len(search.points), n_startup_trials=ROUND)
    engine = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in zip(search.points, search.scores, strict=True):
        places = {".".join(path): search.axes[path].index(value) for path, value in point.items()}
        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        engine.add_trial(optuna.create_trial(params=places, distributions=space, value=score, state=state))
    new: list[grids.Point] = []
    for _ in range(ATTEMPTS):
        places = engine.ask(space).params
        point = {path: values[places[".".join(path)]] for path, values in search.axes.items()}
        if point not in search.points and point not in new:
            new.append(point)
        if len(new) == count:
            return new
    untried = [point for point in every if point not in search.points and point not in new]
    return [*new, *untried][:count]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "tune.grid has more points than tune.trials, and Optuna, which chooses among them, is not installed.",
            "Run `pip install 'merganser[tune]'`, or give as many trials as points.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
