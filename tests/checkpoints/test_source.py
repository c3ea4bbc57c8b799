"""Hub ids: what is fetched, at which commit, and what is said where there is nothing to merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import typer
import yaml
from typer.testing import CliRunner

from merganser.checkpoints.adapters.merge import merge_adapters
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import locate, open_checkpoint
from merganser.cli.merge import merge
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_folder
from tests.merging.test_adapters import plain, write_adapter

COMMIT = "0123456789" * 4


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of one place: repositories by name, and what was asked of it."""
    known: dict[str, Any] = {"asked": [], "files": {}, "wanted": []}

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        known["asked"].append((name, revision))
        known["wanted"] = allow_patterns
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
        if not folder.is_dir():
            raise FileNotFoundError(f"no {name}")
        return str(folder)

    def list_repo_files(name: str, revision: str | None) -> list[str]:
        if name not in known["files"]:
            raise ConnectionError("offline")
        return list(known["files"][name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.chdir(tmp_path)
    return known


def run(*arguments: object) -> None:
    app = typer.Typer()
    app.command()(merge)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def folder_of(name: str) -> Path:
    made = Path("hub") / f"models--{name.replace('/', '--')}" / "snapshots"
    made.mkdir(parents=True)
    return made / COMMIT


def test_the_merge_names_the_commits_it_used(hub: dict[str, Any], tmp_path: Path) -> None:
    write_folder(folder_of("own/x"), example(0))
    write_folder(tmp_path / "local", example(1))
    content = {"rule": "ties", "models": ["own/x", "local"], "base": "own/x@main"}
    merge_checkpoints(parse(content, "test"), tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    assert [entry["model"] for entry in written["models"]] == [f"own/x@{COMMIT}", str(tmp_path / "local")]
    assert written["base"] == f"own/x@{COMMIT}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| 1 | `own/x@{COMMIT}` |" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == ["own/x"]
    hub["asked"].clear()
    merge_checkpoints(parse(written, "test"), tmp_path / "again")
    assert hub["asked"] == [("own/x", COMMIT)]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_hub_id_is_looked_up_once_per_merge(more: list[str], hub: dict[str, Any], tmp_path: Path) -> None:
    write_folder(folder_of("own/x"), example(0))
    write_folder(folder_of("own/y"), example(1))
    write_adapter(folder_of("own/a"), plain())
    run("own/x", "own/y", "own/x", "--base", "own/y", "--rule", "ties", "--out", tmp_path / "out", *more)
    assert hub["asked"] == [("own/x", None), ("own/y", None)]
    hub["asked"].clear()
    run("own/a", "own/a", "--out", tmp_path / "adapter", *more)
    assert hub["asked"] == [("own/a", None)]
    hub["asked"].clear()
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]} for name in ("own/x", "own/y")]}]
    content = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 0.5}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
    run("--mergekit", tmp_path / "config.yml", "--out", tmp_path / "theirs", *more)
    assert hub["asked"] == [("own/x", None), ("own/y", None)]


def test_adapters_name_their_commits_too(hub: dict[str, Any], tmp_path: Path) -> None:
    write_adapter(folder_of("own/a"), plain())
    merge_adapters(parse({"rule": "linear", "models": ["own/a", "own/a"]}, "test"), tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    assert written["models"][0]["model"] == f"own/a@{COMMIT}"


def test_a_revision_may_hold_slashes(hub: dict[str, Any]) -> None:
    write_folder(folder_of("own/x"), example(0))
    locate("own/x@refs/pr/1")
    assert hub["asked"] == [("own/x", "refs/pr/1")]
    assert locate("own/x@v1").name == f"own/x@{COMMIT}"
    with pytest.raises(InputError, match="no file or folder a/b/c"):
        locate("a/b/c")


def test_every_file_of_a_tokenizer_is_fetched(hub: dict[str, Any]) -> None:
    write_folder(folder_of("own/x"), example(0))
    locate("own/x")
    assert {"*.spm", "*.vocab", "*.model.v*", "*.bpe", "*.codes", "*.jinja"} <= set(hub["wanted"])
    assert not {"*.bin", "*.py", "*.pt"} & set(hub["wanted"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["config.json", "optimizer.pt", "pytorch_model.bin"],
            r"own/b holds .* pickle only \(pytorch_model\.bin\).*M\.from_pretrained\('own/b'\)\.save_pretrained\('b-",
        ),
        (
            ["adapter_config.json", "adapter_model.bin"],
            r"\(adapter_model\.bin\).*hf download own/b --local-dir b && .*torch\.load.* b/adapter_model\.bin b/.*",
        ),
        (["config.json", "training_args.bin"], "own/b holds no safetensors file"),
    ],
)
def test_pickles_on_the_hub_are_refused_with_the_command(files: list[str], message: str, hub: dict[str, Any]) -> None:
    folder_of("own/b").mkdir()
    hub["files"]["own/b"] = files
    with pytest.raises(InputError, match=message):
        locate("own/b")


def test_pickles_in_the_cache_are_refused_without_a_network(hub: dict[str, Any]) -> None:
    folder = folder_of("own/b")
    folder.mkdir()
    with pytest.raises(InputError, match=r"cannot be reached: offline.*from_pretrained\('own/b'"):
        locate("own/b")
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(InputError, match="pickle only"):
        locate("own/b")
    with pytest.raises(InputError, match="revision='v1'"):
        locate("own/b@v1")


def test_the_weights_are_named_before_other_pickles(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        open_checkpoint(str(tmp_path))


def test_a_folder_with_a_model_and_an_adapter_is_ambiguous(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "config.json", "label_vectors.safetensors"):
        (tmp_path / name).write_text("{}")
    assert locate(str(tmp_path)).path == tmp_path  # config.json and vectors beside an adapter are no model
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(InputError, match="holds a model and an adapter") as error:
        locate(str(tmp_path))
    assert str(tmp_path / "adapter_model.safetensors") in error.value.remedy
    for name in ("adapter_model.safetensors", "model.safetensors"):  # a file is not
        assert locate(str(tmp_path / name)).path == tmp_path / name
