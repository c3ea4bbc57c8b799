"""``merganser merge``: models in, one model out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import InputError

if TYPE_CHECKING:
    from merganser.checkpoints.merge import Report
    from merganser.checkpoints.plan import Plan
    from merganser.checkpoints.recipe import Recipe


def merge(
    models: Annotated[
        list[str] | None, typer.Argument(help="Folders, .safetensors files, adapters or hub ids; or a merge.yaml.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make.")] = None,
    base: Annotated[str | None, typer.Option(help="Model that all of them started from.")] = None,
    rule: Annotated[str | None, typer.Option(help="How to merge; see --list.", show_default="linear")] = None,
    weights: Annotated[str | None, typer.Option(help="One number, or one per model: .5,.5")] = None,
    density: Annotated[str | None, typer.Option(help="Share of an update kept; one, or one per model.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Any other parameter of the rule: name=value; repeatable.")
    ] = None,
    fisher: Annotated[
        list[str] | None, typer.Option(help="Fisher information of a model, in the models' order; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A merge.yaml.")] = None,
    mergekit: Annotated[Path | None, typer.Option(help="A configuration of mergekit.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the result: float32, float16, bfloat16, float64.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random rules.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Adapters: merge the update (exact) or the factors.", show_default="update")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Adapters: rank of the result; otherwise the exact one.")] = None,
    allow_different_bases: Annotated[
        bool, typer.Option("--allow-different-bases", help="Adapters: accept those that name different base models.")
    ] = False,
    common_only: Annotated[bool, typer.Option("--common-only", help="Merge what all models have in common.")] = False,
    ignore_vocabulary: Annotated[
        bool, typer.Option("--ignore-vocabulary", help="Merge although the tokenizers' vocabularies differ.")
    ] = False,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder when the merge is done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per processor.")] = None,
    kernels: Annotated[str, typer.Option(help="auto, numba or numpy; the result is the same.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    show_rules: Annotated[bool, typer.Option("--list", help="List the rules and their parameters.")] = False,
) -> None:
    """Merge models or adapters by a rule, tensor by tensor, near the speed of copying a file."""
    if show_rules:
        _print_rules(as_json)
        return
    if kernels not in ("auto", "numba", "numpy"):
        raise InputError(f"--kernels is {kernels!r}.", "Choose from auto, numba, numpy.")
    given = {
        "models": models or [],
        "base": base,
        "rule": rule,
        "weights": weights,
        "density": density,
        "set": option or [],
        "fisher": fisher or [],
        "dtype": dtype,
        "seed": seed,
        "space": space,
        "rank": rank,
        "common_only": common_only,
        "ignore_vocabulary": ignore_vocabulary,
        "allow_nonfinite": allow_nonfinite,
        "allow_different_bases": allow_different_bases,
    }
    recipe, notes = _recipe(given, config, mergekit)
    for note in notes:
        typer.echo(note, err=True)
    if out is None and not dry_run:
        raise InputError("There is no --out.", "Name the folder to make.")
    if dry_run:
        _dry_run(recipe, out, threads, kernels, overwrite, as_json)
        return
    assert out is not None
    try:
        report = _run(recipe, out, threads, kernels, overwrite)
    except KeyboardInterrupt:
        typer.echo("Stopped. Nothing was left behind; the same command begins anew.", err=True)
        raise typer.Exit(130) from None
    _print_report(report, as_json)


def _recipe(given: dict[str, Any], config: Path | None, mergekit: Path | None) -> tuple[Recipe, list[str]]:
    """The recipe from a file or from the command line, and what to tell about it."""
    from merganser.checkpoints.recipe_file import parse

    models = given["models"]
    if config is None and mergekit is None and len(models) == 1 and models[0].endswith((".yaml", ".yml")):
        config, models = Path(models[0]), []
    if config is not None or mergekit is not None:
        _refuse_both(given, models, config, mergekit)
        path = config or mergekit
        assert path is not None
        content = _yaml(path)
        if mergekit is not None:
            from merganser.checkpoints.mergekit_file import check_filters, check_layers, translate

            theirs = content
            content, notes = translate(theirs, str(path))
            check_layers(theirs, content["models"][0]["model"], str(path))
            check_filters(content, content["models"][0]["model"], str(path))
        else:
            notes = []
        for key in ("dtype", "seed", "rank", "base"):
            if given[key] is not None:
                content[key] = given[key]
        for key in ("common_only", "ignore_vocabulary", "allow_nonfinite", "allow_different_bases"):
            if given[key]:
                content[key] = True
        return parse(content, str(path)), notes
    if not models:
        raise InputError("There is nothing to merge.", "Name models, or a merge.yaml with --config.")
    return parse(_content(given), "command line"), []


def _refuse_both(given: dict[str, Any], models: list[str], config: Path | None, mergekit: Path | None) -> None:
    if config is not None and mergekit is not None:
        raise InputError("There are --config and --mergekit.", "Pass one of them.")
    typed = [f"--{key}" for key in ("weights", "density", "set", "fisher") if given[key]]
    typed += [f"--{key}" for key in ("rule", "space") if given[key] is not None]
    if models or typed:
        raise InputError(
            f"There is a file that describes the merge, and {', '.join([*models, *typed])}.",
            "Write it into the file; --dtype, --seed, --rank, --base and the switches may be given with it.",
        )


def _content(given: dict[str, Any]) -> dict[str, Any]:
    """What the command line says, as the content of a ``merge.yaml``."""
    from merganser.merging.table import rule as rule_named

    chosen = rule_named("linear" if given["rule"] is None else given["rule"])
    models: list[dict[str, Any]] = [{"model": name} for name in given["models"]]
    for key, text in (("weight", given["weights"]), ("density", given["density"])):
        if text is not None:
            chosen.parameter(key, "command line")
            _spread(models, key, text)
    options: dict[str, Any] = {}
    per_model = {parameter.name for parameter in chosen.per_model}
    for text in given["set"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} has no '='.", "Write name=value, for example --set normalize=false.")
        chosen.parameter(name, "--set")
        if name in per_model:
            _spread(models, name, value)
        elif name == "seed":
            given = {**given, "seed": _read_yaml(value, f"--set {text!r}")}
        else:
            options[name] = _read_yaml(value, f"--set {text!r}")
    if given["fisher"]:
        if len(given["fisher"]) != len(models):
            raise InputError(
                f"There are {len(given['fisher'])} --fisher for {len(models)} models.", "Give one per model, in order."
            )
        for entry, path in zip(models, given["fisher"], strict=True):
            entry["fisher"] = path
    content = {
        "rule": chosen.name,
        "models": models,
        "base": given["base"],
        "options": options,
        "dtype": given["dtype"],
        "seed": given["seed"] if given["seed"] is not None else 0,
        "common_only": given["common_only"],
        "ignore_vocabulary": given["ignore_vocabulary"],
        "allow_nonfinite": given["allow_nonfinite"],
        "allow_different_bases": given["allow_different_bases"],
        "space": given["space"],
        "rank": given["rank"],
    }
    return {key: value for key, value in content.items() if value is not None}


def _spread(models: list[dict[str, Any]], key: str, text: str) -> None:
    """One number for all models, or one each."""
    parts = text.split(",")
    if len(parts) not in (1, len(models)):
        raise InputError(f"{key} {text!r} has {len(parts)} numbers for {len(models)} models.", "Give one per model.")
    for entry, part in zip(models, parts * len(models) if len(parts) == 1 else parts, strict=False):
        try:
            entry[key] = float(part)
        except ValueError as error:
            raise InputError(f"{key} {text!r} is not a number.", "Write for example .5,.5") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: {error}.", "Correct it there.") from error
    content = _read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a map of keys.", "See docs/merging.md for an example.")
    return content


def _read_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Numbers of thousands of digits and days that no month has are ValueErrors.
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not YAML: {reason}.", "Correct it there.") from error


def _is_adapters(recipe: Recipe) -> bool:
    from merganser.checkpoints.source import adapter_folder, locate

    return any(adapter_folder(locate(name)) is not None for name in recipe.models)


def _run(recipe: Recipe, out: Path, threads: int | None, kernels: str, overwrite: bool) -> Report:
    if _is_adapters(recipe):
        from merganser.checkpoints.adapter_files import merge_adapters

        return merge_adapters(recipe, out, overwrite=overwrite)
    from merganser.checkpoints.merge import merge_checkpoints

    bar = _Bar() if sys.stderr.isatty() else None
    try:
        return merge_checkpoints(
            recipe, out, threads=threads, kernels=kernels, overwrite=overwrite, progress=bar.show if bar else None
        )
    finally:
        if bar is not None:
            bar.end()


class _Bar:
    """Bytes written on one line of the terminal, at most ten times a second. (A bar of rich costs a merge's
    start-up.)"""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._shown = 0.0

    def show(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._shown < 0.1 and done < total:
            return
        self._shown = now
        filled = 30 * done // max(total, 1)
        speed = done / max(now - self._started, 1e-9)
        left = (total - done) / max(speed, 1.0)
        line = f"{'#' * filled}{'.' * (30 - filled)} {done / 1e9:.2f} of {total / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s"
        sys.stderr.write(f"\r{line}, {left:.0f} s left ")
        sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\n")


def _dry_run(
    recipe: Recipe, out: Path | None, threads: int | None, kernels: str, overwrite: bool, as_json: bool
) -> None:
    if _is_adapters(recipe):
        from merganser.checkpoints.adapter_files import describe

        _print_map(describe(recipe, out, overwrite=overwrite), as_json)
        return
    import shutil

    from merganser.checkpoints.engine import load_kernels
    from merganser.checkpoints.merge import available_cpus, check_target, existing_parent, inputs_of
    from merganser.checkpoints.plan import estimate_seconds, make_plan
    from merganser.checkpoints.sidecar_files import uncopied_files

    plan = make_plan(recipe)
    target = (out or Path.cwd() / "merged").expanduser().resolve()
    if out is not None:
        check_target(target, overwrite, inputs_of(recipe, plan))
    module = load_kernels(kernels, plan.output_bytes)
    seconds = estimate_seconds(plan, module, threads or available_cpus())
    _print_map(
        {
            "tensors": plan.rules,
            "copied buffers": plan.buffers,
            "kept from the base": plan.kept,
            "not common, kept": plan.only_reference,
            "not common, left out": plan.left_out,
            "bytes to read": plan.input_bytes,
            "bytes to write": plan.file_bytes,
            "bytes free": shutil.disk_usage(existing_parent(target)).free,
            "files not copied": uncopied_files(plan.reference.folder, plan.reference.shards),
            "shards": {name: len(tensors) for name, tensors in plan.shards.items()},
            "estimated seconds": round(seconds, 1),
            "kernels": "numpy" if module is None else "numba",
        },
        as_json,
    )
    _warn_memory(plan)


def _warn_memory(plan: Plan) -> None:
    from merganser.checkpoints.plan import largest_whole_tensor

    needed = largest_whole_tensor(plan)
    if needed:
        typer.echo(f"A rule needs its tensor whole: about {needed / 1e9:.1f} GB of memory.", err=True)


def _print_map(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(content))
        return
    for key, value in content.items():
        if isinstance(value, list):
            value = f"{len(value)}" + (f": {', '.join(value[:5])}{', ...' if len(value) > 5 else ''}" if value else "")
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
        elif isinstance(value, int):
            value = f"{value:,}"
        typer.echo(f"{key}: {value}")


def _print_report(report: Report, as_json: bool) -> None:
    if report.nonfinite:
        typer.echo(
            f"Warning: the result holds NaN or infinity in {len(report.nonfinite)} tensors: {_some(report.nonfinite)}. "
            "What was merged overflows its type: use smaller weights or a wider --dtype.",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    merged = ", ".join(f"{count} by {name}" for name, count in report.tensors.items())
    speed = report.bytes / 1e9 / max(report.seconds, 1e-9)
    typer.echo(f"{report.out}: {merged or 'nothing merged'}; {report.bytes:,} bytes in {report.seconds:.1f} s")
    for what, names in (
        ("Not floating-point, copied", report.buffers),
        ("Kept from the base", report.kept),
        ("Not common to all, kept", report.only_reference),
        ("Not common to all, left out", report.left_out),
        ("Files not copied", report.not_copied),
    ):
        if names:
            typer.echo(f"{what} ({len(names)}): {_some(names)}")
    if report.errors:
        worst = max(report.errors, key=lambda name: report.errors[name])
        typer.echo(f"Largest truncation error: {report.errors[worst]:.4f} at {worst}")
    if speed and sys.stderr.isatty():
        typer.echo(f"{speed:.2f} GB/s", err=True)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def _print_rules(as_json: bool) -> None:
    from merganser.merging.table import RULES

    if as_json:
        rows = [
            {
                "name": rule.name,
                "summary": rule.summary,
                "source": rule.source,
                "base": rule.base,
                "per_model": [parameter.name for parameter in rule.per_model],
                "options": {parameter.name: parameter.default for parameter in rule.options},
            }
            for rule in RULES.values()
        ]
        typer.echo(json.dumps(rows))
        return
    width = max(map(len, RULES))
    for rule in RULES.values():
        needs = "needs a base" if rule.base == "required" else "no base"
        if rule.extra:
            needs += f", a {rule.extra} file per model"
        parameters = [f"{p.name} per model" for p in rule.per_model]
        parameters += [f"{p.name} = {str(p.default).lower()}" for p in rule.options]
        typer.echo(f"{rule.name:<{width}}  {rule.summary} [{needs}]")
        typer.echo(f"{'':<{width}}  {rule.source}; {', '.join(parameters) or 'no parameters'}")
