"""The command ``merge``: what a person types, reads, and gets wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from merganser.checkpoints.recipe import Recipe
from merganser.cli.merge import merge
from merganser.errors import InputError
from merganser.merging.rules import RULES
from tests.checkpoints.conftest import example, family, write_file, write_folder
from tests.checkpoints.test_merge import load
from tests.learner.toys import Command

__all__ = ["family"]

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(merge)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """Return the error that a mistake is answered with; messages themselves are in test_messages.py."""
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert result.exception.exit_code == 2
    return str(result.exception)


def test_models_are_merged(family: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(family["a"], family["b"], "--weights", ".25,.75", "--out", out)
    assert result.exit_code == 0, result.output
    assert "7 by linear" in result.stdout
    assert "model.position_ids" in result.stdout
    a, b, merged = load(family["a"]), load(family["b"]), load(out)
    name = "model.norm.weight"
    np.testing.assert_allclose(merged[name], 0.25 * a[name] + 0.75 * b[name], rtol=1e-5)


def test_every_option_reaches_the_recipe(family: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--base", family["base"], "--rule", "ties", "--density", ".3", "--weights", "1,2"]
    arguments += ["--set", "normalize=false", "--set", "scale=.5", "--seed", 4, "--dtype", "fp16", "--json"]
    result = run(family["a"], family["b"], *arguments, "--out", out)
    assert json.loads(result.stdout)["tensors"] == {"ties": 7}
    written = yaml.safe_load((out / "merge.yaml").read_text())
    assert written == {
        "rule": "ties",
        "models": [
            {"model": str(family["a"]), "weight": 1.0, "density": 0.3},
            {"model": str(family["b"]), "weight": 2.0, "density": 0.3},
        ],
        "base": str(family["base"]),
        "options": {"normalize": False, "scale": 0.5},
        "dtype": "float16",
        "seed": 4,
    }


def test_a_file_describes_the_merge_and_the_result_repeats_it(family: dict[str, Path], tmp_path: Path) -> None:
    content = {"rule": "slerp", "models": [str(family["a"]), str(family["b"])], "options": {"t": 0.2}}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(content))
    assert run(tmp_path / "merge.yaml", "--out", tmp_path / "one").exit_code == 0
    assert run("--config", tmp_path / "one" / "merge.yaml", "--out", tmp_path / "two").exit_code == 0
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_configuration_of_mergekit_is_read(family: dict[str, Path], tmp_path: Path) -> None:
    content = {
        "merge_method": "task_arithmetic",
        "base_model": str(family["base"]),
        "models": [{"model": str(family[key]), "parameters": {"weight": 0.5}} for key in ("a", "b")],
        "parameters": {"int8_mask": True},
        "dtype": "float32",
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
    result = run("--mergekit", tmp_path / "config.yml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "int8_mask: only saves memory" in result.stderr
    a, b, merged = load(family["a"]), load(family["b"]), load(tmp_path / "out")
    np.testing.assert_allclose(merged["model.scale"], (a["model.scale"] + b["model.scale"]) / 2, rtol=1e-6)


def test_filters_of_mergekit_that_leave_a_tensor_without_a_weight_are_refused(
    family: dict[str, Path], tmp_path: Path
) -> None:
    models = [{"model": str(family[key]), "parameters": {"weight": [{"filter": "mlp", "value": 3}]}} for key in "ab"]
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    said = refused("--mergekit", tmp_path / "config.yml", "--out", tmp_path / "out")
    assert "weight has no value for model.embed_tokens.weight" in said


def test_a_dry_run_writes_nothing(family: dict[str, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run(
        family["a"], family["b"], "--base", family["base"], "--rule", "sce", "--dry-run", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.iterdir()) == before
    for expected in ("tensors: sce 7", "bytes to read:", "bytes to write:", "bytes free:", "estimated seconds:"):
        assert expected in result.stdout
    assert "needs whole tensors in memory" in result.stderr


def test_a_dry_run_refuses_the_folders_that_the_merge_would(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for out in (family["a"], tmp_path / "full", tmp_path):
        arguments = [family["a"], family["b"], "--out", out]
        assert refused(*arguments, "--dry-run") == refused(*arguments)
    assert run(family["a"], family["b"], "--out", tmp_path / "full", "--dry-run", "--overwrite").exit_code == 0


def test_a_result_that_overflows_is_warned_of(tmp_path: Path) -> None:
    models = [write_folder(tmp_path / name, {"w": np.full(4, 1e5, np.float32)}) for name in "ab"]
    result = run(*models, "--dtype", "float16", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "1 tensors of the result hold NaN or infinity: w." in result.stderr
    result = run(*models, "--dtype", "float16", "--json", "--out", tmp_path / "json")
    assert json.loads(result.stdout)["nonfinite"] == ["w"]


def test_an_interrupt_keeps_no_file(family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("merganser.checkpoints.merge.run_jobs", stop)
    result = run(family["a"], family["b"], "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "No file was kept" in result.stderr
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_disk_that_fails_while_a_file_is_flushed(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("merganser.checkpoints.engine.flush", fail)
    result = run(family["a"], family["b"], "--out", tmp_path / "out")
    assert "of-00003.safetensors: Input/output error. No file was kept" in str(result.exception)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_adapters_are_not_replaced_by_their_merge(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    for more in ([], ["--dry-run"]):
        assert "an input of the merge" in refused(tmp_path / "x", "--out", tmp_path / "x", "--overwrite", *more)
        assert "an input of the merge" in refused(tmp_path / "x", "--out", tmp_path, "--overwrite", *more)
    assert (tmp_path / "x" / "adapter_config.json").exists()


def test_fishers_are_given_in_the_order_of_the_models(family: dict[str, Path], tmp_path: Path) -> None:
    for key, value in (("a", 3.0), ("b", 1.0)):
        tensors = {k: np.full_like(v, value) for k, v in example(0).items()}
        write_folder(tmp_path / f"f{key}", tensors)
    fishers = ["--fisher", tmp_path / "fa", "--fisher", tmp_path / "fb"]
    assert run(family["a"], family["b"], "--rule", "fisher", *fishers, "--out", tmp_path / "out").exit_code == 0
    a, b, merged = load(family["a"]), load(family["b"]), load(tmp_path / "out")
    np.testing.assert_allclose(merged["model.scale"], (3 * a["model.scale"] + b["model.scale"]) / 4, rtol=1e-6)


def test_adapters_are_merged_with_adapters(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        tensors = {"base_model.model.q.lora_A.weight": np.ones((1, 3), np.float32)}
        tensors["base_model.model.q.lora_B.weight"] = np.full((2, 1), 2.0 if name == "x" else 4.0, np.float32)
        write_file(tmp_path / name / "adapter_model.safetensors", tensors)
    result = run(tmp_path / "x", tmp_path / "y", "--rank", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Largest truncation error: 0.0000 at q" in result.stdout
    dry = run(tmp_path / "x", tmp_path / "y", "--dry-run")
    for expected in ("modules: 1", "rules: linear 1", "bytes to write:", "bytes free:", "estimated seconds:"):
        assert expected in dry.stdout
    assert "full rank" in refused(tmp_path / "x", tmp_path / "y", "--rule", "ties", "--dry-run")
    assert "exists" in refused(tmp_path / "x", tmp_path / "y", "--dry-run", "--out", tmp_path / "out")
    assert run(tmp_path / "x", tmp_path / "y", "--dry-run", "--out", tmp_path / "out", "--overwrite").exit_code == 0
    assert "is an input" in refused(tmp_path / "x", tmp_path / "y", "--out", tmp_path / "x", "--overwrite")
    assert "is not an adapter" in refused(
        tmp_path / "x", write_folder(tmp_path / "m", example(0)), "--out", tmp_path / "o"
    )


def test_adapters_of_different_bases_need_a_switch(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": f"owner/{name}"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        tensors = {"q.lora_A.weight": np.ones((1, 3), np.float32), "q.lora_B.weight": np.ones((2, 1), np.float32)}
        write_file(tmp_path / name / "adapter_model.safetensors", tensors)
    both = (tmp_path / "x" / "adapter_model.safetensors", tmp_path / "y")
    assert "--allow-different-bases" in refused(*both, "--out", tmp_path / "out")
    assert run(*both, "--allow-different-bases", "--out", tmp_path / "out").exit_code == 0
    again = run(tmp_path / "out" / "merge.yaml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output


def test_files_that_are_not_copied_are_named(family: dict[str, Path], tmp_path: Path) -> None:
    (family["a"] / "modeling_x.py").write_text("")
    assert "files not copied: 1: modeling_x.py" in run(family["a"], family["b"], "--dry-run").stdout
    result = run(family["a"], family["b"], "--out", tmp_path / "out")
    assert "Files not copied (1): modeling_x.py" in result.stdout


def test_the_list_names_every_rule() -> None:
    result = run("--list")
    for name, rule in RULES.items():
        assert f"{name}: " in result.stdout
        assert rule.summary in result.stdout
    assert {row["name"] for row in json.loads(run("--list", "--json").stdout)} == set(RULES)


def test_help_starts_without_the_heavy_libraries() -> None:
    """Neither torch nor numba nor numpy is imported to print a page."""
    script = (
        "import sys, typer\n"
        "from merganser.cli.merge import merge\n"
        "app = typer.Typer()\n"
        "app.command()(merge)\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numba', 'numpy', 'transformers', 'peft', 'scipy', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_a_merge_needs_no_torch(family: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "import sys, typer\nfrom merganser.cli.merge import merge\napp = typer.Typer()\napp.command()(merge)\n"
        f"try:\n    app([{str(family['a'])!r}, {str(family['b'])!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "out" / "merge.yaml").exists()


def test_the_schema_of_a_recipe_names_every_key(merganser: Command) -> None:
    schema = json.loads(merganser("schema", "--merge").out)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "from" in schema["$defs"]["Override"]["properties"]


def test_options_for_models_that_are_not_quite_alike(family: dict[str, Path], tmp_path: Path) -> None:
    (family["b"] / "config.json").write_text('{"model_type": "llama", "rope_theta": 7.0, "rms_norm_eps": 0.1}')
    (family["b"] / "chat_template.jinja").write_text("{{ x }}")
    arguments = [family["a"], family["b"], "--out", tmp_path / "out"]
    assert "rope_parameters.rope_theta is 10000.0 in" in refused(*arguments)
    allowed = ["--allow-config", "rope_theta", "--allow-config", "rms_norm_eps"]
    result = run(*arguments, *allowed, "--dry-run")
    assert f"settings of other models: 1: chat template of {family['b']}" in result.stdout
    result = run(*arguments, *allowed)
    assert f"--tokenizer-from takes those of one (1): chat template of {family['b']}" in result.stdout
    written = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    assert written["allow_config"] == ["rope_theta", "rms_norm_eps"]
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump({**written, "allow_config": ["rope_theta"]}))
    assert "rms_norm_eps" in refused("--config", tmp_path / "merge.yaml", "--out", tmp_path / "x")
    more = ["--allow-config", "rms_norm_eps", "--tokenizer-from", family["b"], "--common-rows"]
    assert run("--config", tmp_path / "merge.yaml", "--out", tmp_path / "two", *more).exit_code == 0
    assert (tmp_path / "two" / "chat_template.jinja").is_file()
    written = yaml.safe_load((tmp_path / "two" / "merge.yaml").read_text())
    assert (written["tokenizer_from"], written["common_rows"]) == (str(family["b"]), True)
