"""``merganser methods`` and ``merganser schema``: list what can be configured."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the continual-learning methods: idea, source, the examples they need and what they store."""
    from merganser.methods import METHODS

    rows = [
        {
            "name": name,
            "title": method.title,
            "source": method.paper,
            "idea": method.idea,
            "starts_from": method.start,
            "old_examples": "all" if method.full_memory else "a small memory" if method.uses_memory else "none",
            "stores": method.stores,
            "grows_with_tasks": method.grows or method.uses_memory,
            "options": sorted(set(method.Options.model_fields) - {"name"}),
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from merganser.cli.output import OutputConsole

    table = Table(title="Methods", show_lines=True)
    console = OutputConsole()
    # Shared out by hand: in 80 columns every name, word and arXiv number still has a line of its own, uncut.
    left = max(0, console.width - 80)
    table.add_column("method: name, and idea", width=15 + left // 2, overflow="fold")
    table.add_column("source", width=11 + left // 4, overflow="fold")
    table.add_column("a task starts from", width=10)
    table.add_column("old examples", width=8)
    table.add_column("stores (P: trained weights)", width=11 + left // 4, overflow="fold")
    table.add_column("grows?", width=6)
    for row in rows:
        table.add_row(
            Text.assemble((str(row["name"]), "bold"), "\n", str(row["idea"])),
            str(row["source"]),
            f"{row['starts_from']} weights",
            str(row["old_examples"]),
            str(row["stores"]),
            "yes" if row["grows_with_tasks"] else "no",
        )
    console.print(table)
    console.print("For the options of each, run: merganser methods --json, or merganser schema.", highlight=False)


def schema(
    merge: Annotated[bool, typer.Option("--merge", help="Print the schema of a merge.yaml instead.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Print the schema of a study's file instead.")] = False,
) -> None:
    """Print the JSON Schema of a run's YAML file, of a merge.yaml, or of a study: every key with its description."""
    if study:
        from merganser.study.options import StudyOptions

        typer.echo(json.dumps(StudyOptions.model_json_schema(), indent=2))
        return
    if merge:
        from merganser.checkpoints.recipe import Recipe

        typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    from merganser.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
