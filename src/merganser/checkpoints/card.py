"""The model card of a merge: its inputs, its rule and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser.checkpoints.recipe import Recipe
from merganser.files.documents import yaml_document
from merganser.files.markdown import code_block, code_span
from merganser.merging.rules import get_rule


def model_card(recipe: Recipe, adapter: bool = False, notes: Sequence[str] = ()) -> str:
    """Write the card: Markdown with the metadata that the hub reads.

    Args:
        recipe: the merge.
        adapter: whether the result is a PEFT adapter.
        notes: what else a user of the result should know.
    """
    rule = get_rule(recipe.rule)
    parents = list(recipe.names) + ([recipe.base] if recipe.base else [])
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "tags": ["merge", "merganser"],
    }
    from_hub = [name.partition("@")[0] for name in parents if not Path(name).expanduser().exists()]
    if from_hub:
        head["base_model"] = list(dict.fromkeys(from_hub))
    rows = "\n".join(f"| {index} | {code_span(name)} |" for index, name in enumerate(recipe.names, start=1))
    base = f"\n| base | {code_span(recipe.base)} |" if recipe.base else ""
    told = "".join(f"* {code_span(note)}\n" for note in notes) + ("\n" if notes else "")
    content = yaml_document(recipe.to_content())
    return (
        f"---\n{yaml_document(head)}---\n\n"
        f"# Merged {'adapter' if adapter else 'model'}\n\n"
        f"Made with Merganser by the rule `{rule.name}`: {rule.summary} "
        f"({rule.source}).\n\n"
        f"| model | path or hub id |\n| --- | --- |\n{rows}{base}\n\n"
        f"{told}"
        f"Arithmetic in float32, rounded once. The same merge again:\n\n"
        f"```sh\nmerganser merge --config merge.yaml --out FOLDER\n```\n\n"
        f"{code_block(content, 'yaml')}"
    )
