"""``merganser merge``: models in, one model out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from merganser.cli.merge_output import ProgressBar, print_plan, print_report, print_rules
from merganser.errors import InputError

if TYPE_CHECKING:
    from merganser.checkpoints.merge import Report
    from merganser.checkpoints.plan import Plan
    from merganser.checkpoints.recipe import ModelEntry, Recipe
    from merganser.checkpoints.source import LocatedRecipe

DEFAULT_RULE = "linear"


def merge(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to merge: folders, files, adapters, hub ids or BASE+ADAPTER; or one merge.yaml."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the merged model to this new folder.")] = None,
    base: Annotated[str | None, typer.Option(help="Model that all of them were fine-tuned from.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Merge by this rule; --list shows all of them.", show_default=DEFAULT_RULE)
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weight of the models: one number for all, or one per model (.5,.5).")
    ] = None,
    density: Annotated[
        str | None, typer.Option(help="Fraction of each update that is kept: one number, or one per model.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set another parameter of the rule: name=value. May be repeated."),
    ] = None,
    fisher: Annotated[
        list[str] | None, typer.Option(help="Fisher information of a model; give it once per model, in their order.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Read the merge from this merge.yaml.")] = None,
    mergekit: Annotated[Path | None, typer.Option(help="Read the merge from this configuration of mergekit.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Data type of the result: float64, float32, float16 or bfloat16.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random masks.", show_default="0")] = None,
    space: Annotated[
        str | None,
        typer.Option(help="Adapters: merge the update B A, or A and B separately (factors).", show_default="update"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Adapters: truncate the result to this rank.", show_default="exact")
    ] = None,
    allow_different_bases: Annotated[
        bool, typer.Option("--allow-different-bases", help="Adapters: merge although they name different base models.")
    ] = False,
    common_only: Annotated[
        bool, typer.Option("--common-only", help="Merge only the tensors that all models have in equal shape.")
    ] = False,
    common_rows: Annotated[
        bool,
        typer.Option("--common-rows", help="Merge the rows that vocabularies of different sizes have in common."),
    ] = False,
    allow_config: Annotated[
        list[str] | None,
        typer.Option(help="Merge although the models' config.json differ in this key. May be repeated."),
    ] = None,
    tokenizer_from: Annotated[
        str | None,
        typer.Option(
            help="Take tokenizer, chat template and generation settings from this model.",
            show_default="base or first model",
        ),
    ] = None,
    ignore_vocabulary: Annotated[
        bool, typer.Option("--ignore-vocabulary", help="Merge although the tokenizers' vocabularies differ.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Merge although a model holds NaN or infinity.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing folder once the merge is complete.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and estimate the time, but write nothing.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of threads.",
            show_default="one per processor; half as many again for results of 1 GiB and more",
        ),
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="Compute with numba or numpy; auto chooses the faster. The result is the same.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    show_rules: Annotated[bool, typer.Option("--list", help="List the rules with their parameters and exit.")] = False,
) -> None:
    """Merge models or adapters by a rule, tensor by tensor, near the speed of copying a file."""
    if show_rules:
        print_rules(as_json)
        return
    if kernels not in ("auto", "numba", "numpy"):
        raise InputError(f"--kernels is {kernels!r}.", "Choose from auto, numba, numpy.")
    models = models or []
    if config is None and mergekit is None and len(models) == 1 and models[0].endswith((".yaml", ".yml")):
        config, models = Path(models[0]), []
    if config is None and mergekit is None and not models:
        raise InputError("There is nothing to merge.", "Name models, or a merge.yaml with --config.")
    if out is None and not dry_run:
        raise InputError("There is no --out.", "Name the folder to create.")
    common = _Common(
        base=base,
        dtype=dtype,
        seed=seed,
        space=space,
        rank=rank,
        allow_different_bases=allow_different_bases,
        common_only=common_only,
        common_rows=common_rows,
        allow_config=allow_config,
        tokenizer_from=tokenizer_from,
        ignore_vocabulary=ignore_vocabulary,
        allow_nonfinite=allow_nonfinite,
    )
    typed = {"rule": rule, "weights": weights, "density": density, "set": option, "fisher": fisher, "space": space}
    if config is not None or mergekit is not None:
        _refuse_both(models, [f"--{key}" for key, value in typed.items() if value], config, mergekit)
    if config is not None:
        located = _from_file(config, common)
    elif mergekit is not None:
        located = _from_mergekit(mergekit, common)
    else:
        chosen = rule or DEFAULT_RULE
        located = _from_options(_entries(models, chosen, weights, density, fisher or []), chosen, option or [], common)
    compute = _Compute(threads, kernels, overwrite)
    if dry_run:
        _dry_run(located, out, compute, as_json)
        return
    assert out is not None
    try:
        report = _run(located, out, compute)
    except KeyboardInterrupt:
        typer.echo("Stopped. No file was kept; run the same command to start over.", err=True)
        raise typer.Exit(130) from None
    print_report(report, as_json)


@dataclass(frozen=True)
class _Common:
    """Options that every recipe takes, from a file or from the command line; ``None`` or False: not given.

    The names are those of :class:`~merganser.checkpoints.recipe.Recipe`.
    """

    base: str | None
    dtype: str | None
    seed: int | None
    space: str | None
    rank: int | None
    allow_different_bases: bool
    common_only: bool
    common_rows: bool
    allow_config: list[str] | None
    tokenizer_from: str | None
    ignore_vocabulary: bool
    allow_nonfinite: bool

    def locate(self, recipe: Recipe) -> LocatedRecipe:
        """Return the recipe with these options, its models located."""
        from merganser.checkpoints.recipe_file import explained
        from merganser.checkpoints.source import locate_recipe

        with explained("command line"):
            for field in fields(self):
                value = getattr(self, field.name)
                if value is None or value is False:
                    continue
                if field.name == "allow_config":
                    value = [*recipe.allow_config, *value]
                setattr(recipe, field.name, value)  # checks it, as reading a file does
        return locate_recipe(recipe)


class _Compute(NamedTuple):
    """How to compute: options that do not change the result."""

    threads: int | None
    kernels: str
    overwrite: bool


# The recipe ---------------------------------------------------------------------------------------------------------


def _refuse_both(models: list[str], typed: list[str], config: Path | None, mergekit: Path | None) -> None:
    if config is not None and mergekit is not None:
        raise InputError("--config and --mergekit were both given.", "Give one of them.")
    if models or typed:
        raise InputError(
            f"A file describes the merge, but the command line also gives {', '.join([*models, *typed])}.",
            "Write it into the file; --dtype, --seed, --rank, --base, --tokenizer-from, --allow-config and the "
            "switches may be given with a file.",
        )


def _from_file(path: Path, common: _Common) -> LocatedRecipe:
    from merganser.checkpoints.recipe_file import read_recipe

    return common.locate(read_recipe(path))


def _from_mergekit(path: Path, common: _Common) -> LocatedRecipe:
    from merganser.checkpoints.mergekit_file import check_filters, check_layers, translate
    from merganser.checkpoints.recipe_file import parse, read_yaml_file

    theirs = read_yaml_file(path)
    content, notes = translate(theirs, str(path))
    located = common.locate(parse(content, str(path)))
    check_layers(theirs, located.models[0], str(path))
    check_filters(content, located.models[0], str(path))
    for note in notes:
        typer.echo(note, err=True)
    return located


def _from_options(entries: list[ModelEntry], rule: str, options: list[str], common: _Common) -> LocatedRecipe:
    """Return the recipe that the command line describes."""
    from merganser.checkpoints.recipe import Recipe
    from merganser.checkpoints.recipe_file import explained, read_yaml
    from merganser.merging.rules import get_rule

    chosen = get_rule(rule)
    values: dict[str, Any] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} has no '='.", "Write name=value, for example --set normalize=false.")
        parameter = chosen.parameter(name, "--set")
        if parameter in chosen.per_model:
            values[name] = _numbers(name, value, len(entries))
        elif name == "seed":
            common = replace(common, seed=read_yaml(value, f"--set {text!r}"))
        else:
            values[name] = read_yaml(value, f"--set {text!r}")
    with explained("command line"):
        recipe = Recipe(rule=rule, models=entries, options=values)
    return common.locate(recipe)


def _entries(
    models: list[str], rule: str, weights: str | None, density: str | None, fishers: list[str]
) -> list[ModelEntry]:
    """Return the models with what the command line gives for each."""
    from merganser.checkpoints.recipe import ModelEntry
    from merganser.merging.rules import get_rule

    if fishers and len(fishers) != len(models):
        raise InputError(
            f"There are {len(fishers)} --fisher for {len(models)} models.", "Give one per model, in order."
        )
    settings: list[dict[str, Any]] = [{} for _ in models]
    for key, text in (("weight", weights), ("density", density)):
        if text is not None:
            get_rule(rule).parameter(key, "command line")
            for setting, number in zip(settings, _numbers(key, text, len(models)), strict=True):
                setting[key] = number
    paths: list[str | None] = [*fishers] if fishers else [None] * len(models)
    return [
        ModelEntry(model=name, fisher=path, **setting)
        for name, path, setting in zip(models, paths, settings, strict=True)
    ]


def _numbers(key: str, text: str, count: int) -> list[float]:
    """Return one number per model, from one for all or one each."""
    parts = text.split(",")
    if len(parts) not in (1, count):
        raise InputError(f"{key} {text!r} has {len(parts)} numbers for {count} models.", "Give one per model.")
    try:
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise InputError(f"{key} {text!r} is not a number.", "Write for example .5,.5") from error
    return numbers * count if len(numbers) == 1 else numbers


# The merge ----------------------------------------------------------------------------------------------------------


def _run(located: LocatedRecipe, out: Path, compute: _Compute) -> Report:
    if located.has_adapter:
        from merganser.checkpoints.adapters.merge import merge_adapters

        return merge_adapters(located, out, overwrite=compute.overwrite)
    from merganser.checkpoints.merge import merge_checkpoints

    bar = ProgressBar() if sys.stderr.isatty() else None
    try:
        return merge_checkpoints(located, out, **compute._asdict(), progress=bar.show if bar else None)
    finally:
        if bar is not None:
            bar.end()


def _dry_run(located: LocatedRecipe, out: Path | None, compute: _Compute, as_json: bool) -> None:
    if located.has_adapter:
        from merganser.checkpoints.adapters.merge import describe

        print_plan(describe(located, out, overwrite=compute.overwrite), as_json)
        return
    import shutil

    from merganser.checkpoints.engine import load_kernels
    from merganser.checkpoints.estimate import estimate_seconds
    from merganser.checkpoints.merge import available_cpus, check_target, dropped_from, existing_parent, input_paths
    from merganser.checkpoints.plan import make_plan
    from merganser.checkpoints.sidecar_files import uncopied_files

    plan = make_plan(located)
    target = (out or Path.cwd() / "merged").expanduser().resolve()
    if out is not None:
        check_target(target, compute.overwrite, input_paths(located, plan))
    module = load_kernels(compute.kernels, plan.output_bytes)
    seconds = estimate_seconds(plan, module, compute.threads or available_cpus())
    print_plan(
        {
            "tensors": plan.rules,
            "copied buffers": plan.buffers,
            "kept from the base": plan.kept,
            "not common, kept": plan.only_reference,
            "not common, omitted": plan.left_out,
            "notes": plan.notes,
            "bytes to read": plan.input_bytes,
            "bytes to write": plan.file_bytes,
            "bytes free": shutil.disk_usage(existing_parent(target)).free,
            "files not copied": uncopied_files(plan.reference.folder, plan.reference.shards),
            "settings of other models": dropped_from(plan),
            "shards": {name: len(tensors) for name, tensors in plan.shards.items()},
            "estimated seconds": round(seconds, 1),
            "kernels": "numpy" if module is None else "numba",
        },
        as_json,
    )
    _warn_memory(plan)


def _warn_memory(plan: Plan) -> None:
    from merganser.checkpoints.estimate import largest_whole_tensor

    needed = largest_whole_tensor(plan)
    if needed:
        typer.echo(f"A rule needs whole tensors in memory: about {needed / 1e9:.1f} GB.", err=True)
