"""``merganser methods``, ``streams``, ``schema`` and ``--help``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merganser.config import RunConfig, check_config
from merganser.methods import METHODS
from merganser.streams.builtin import BUILTIN
from merganser.streams.images.image_sets import IMAGE_SETS
from tests.learner import toys
from tests.learner.toys import Command


def test_methods(merganser: Command) -> None:
    listed = json.loads(merganser("methods", "--json").out)
    assert [row["name"] for row in listed] == list(METHODS)
    assert {"sequential", "replay", "aim", "joint", "single"} <= {row["name"] for row in listed}
    aim = next(row for row in listed if row["name"] == "aim")
    assert aim["old_examples"] == "a small memory"
    assert "threshold_factor" in aim["options"]
    sequential = next(row for row in listed if row["name"] == "sequential")
    assert (sequential["old_examples"], sequential["grows_with_tasks"], sequential["options"]) == ("none", False, [])
    table = merganser("methods").out
    assert all(name in table for name in METHODS)
    assert "2509.17348" in table


@pytest.mark.parametrize("width", ["80", "200"])
def test_the_table_of_methods_cuts_nothing(width: str, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    table = merganser("methods").out
    assert max(map(len, table.splitlines())) <= int(width)
    assert "…" not in table
    words = set(table.split())
    for name, method in METHODS.items():
        said = f"{name} {method.paper} {method.idea} {method.stores} {method.start}"
        assert set(said.split()) <= words, name
    assert {"yes", "no", "none", "all"} <= words


def test_streams(merganser: Command) -> None:
    listed = json.loads(merganser("streams", "--json").out)
    assert [row["name"] for row in listed] == [*BUILTIN, "demo", *IMAGE_SETS]
    assert next(row for row in listed if row["name"] == "standard-cl-1")["tasks"] == list(
        BUILTIN["standard-cl-1"].tasks
    )
    assert "long-sequence-3" in merganser("streams").out


def resolve(schema: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The object schemas that a part of a JSON Schema may mean."""
    if "$ref" in part:
        return resolve(schema, schema["$defs"][part["$ref"].rsplit("/", 1)[-1]])
    found = [part] if "properties" in part else []
    for key in ("anyOf", "oneOf", "allOf"):
        found += [each for option in part.get(key, []) for each in resolve(schema, option)]
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            found += resolve(schema, part[key])
    return found


def described(schema: dict[str, Any], parts: list[dict[str, Any]], value: Any, path: str) -> list[str]:
    """Keys of a configuration that the schema does not describe."""
    if isinstance(value, list):
        return [found for each in value for found in described(schema, parts, each, path)]
    if not isinstance(value, dict):
        return []
    missing = []
    for key, inner in value.items():
        properties = [part["properties"][key] for part in parts if key in part["properties"]]
        if not properties:
            missing.append(f"{path}{key}")
            continue
        deeper = [each for found in properties for each in resolve(schema, found)]
        if deeper:
            missing += described(schema, deeper, inner, f"{path}{key}.")
    return missing


def test_schema_describes_every_key(merganser: Command) -> None:
    schema = json.loads(merganser("schema").out)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    for name in METHODS:
        full = check_config(toys.settings(method=name), "test").model_dump(mode="json")
        full["stream"].pop("overrides")
        assert described(schema, [schema], full, "") == []
    assert described(schema, [schema], {"training": {"batches": 3}}, "") == ["training.batches"]

    def undescribed(part: dict[str, Any], path: str) -> list[str]:
        found = []
        for key, inner in part.get("properties", {}).items():
            known = "description" in inner or any("description" in each for each in resolve(schema, inner))
            if not known and key != "name":
                found.append(f"{path}.{key}")
        return found

    assert [gap for name, part in schema["$defs"].items() for gap in undescribed(part, name)] == []
    # Every reference leads somewhere.
    text = json.dumps(schema)
    assert {part.split('"')[0] for part in text.split('"#/$defs/')[1:]} <= set(schema["$defs"])


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_every_key_of_the_examples_is_described(merganser: Command) -> None:
    schema = json.loads(merganser("schema").out)
    for example in EXAMPLES:
        value = toys.yaml.safe_load(example.read_text(encoding="utf-8"))
        for stream in [value.get("stream") or {}]:
            stream.pop("overrides", None)
            for task in stream.get("tasks", []):
                if isinstance(task.get("labels"), dict):
                    task["labels"] = list(task["labels"])
        if isinstance(value.get("method"), str):
            value["method"] = {"name": value["method"]}
        assert described(schema, [schema], value, "") == [], example.name


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'matplotlib', 'pandas', 'numpy'}"
    code = f"import sys, merganser, merganser.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reader_of_the_output_has_gone() -> None:
    """As in ``merganser streams --json | head -c 1``: no traceback, no complaint."""
    program = f"{sys.executable} -m merganser streams --json | (exec 0<&-; sleep 0.1)"
    done = subprocess.run(["bash", "-c", f"{program}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_ends_quietly_when_nobody_reads_on() -> None:
    """As in ``merganser methods 2>&1 | head -1``: what would be printed is not, and that is no error."""
    program = f"{sys.executable} -m merganser methods 2>&1 | (exec 0<&-; sleep 0.1)"
    done = subprocess.run(
        ["bash", "-c", f"{program}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_version_is_shown(merganser: Command) -> None:
    done = merganser("--version")
    assert done.code == 0
    assert re.fullmatch(r"merganser \d+\.\d+\.\d+\S*", done.out.strip())
