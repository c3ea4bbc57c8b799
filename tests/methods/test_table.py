"""Methods of installed packages: a small one on a path of its own, name clashes, broken ones."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from merganser import Learner
from merganser.cli import app
from merganser.config import RunConfig, check_config
from merganser.errors import InputError
from merganser.methods import BUILT_IN, METHODS, make_method
from tests.learner.test_learner import Interrupted, at_step, sections, task
from tests.learner.toys import results

PAGE = Path(__file__).parent.parent.parent / "docs" / "adding-a-method.md"
MODEL = {"name": "m", "kind": "causal"}


def install(
    root: Path, package: str, points: dict[str, str], files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``pip install`` leaves: modules and a ``.dist-info`` folder with entry points, on Python's path."""
    folder = root / package
    info = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[merganser.methods]", *lines, ""]))
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The package that the page builds, installed; file name -> text."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    files = dict(blocks)
    assert set(files) == {"merganser_anchor.py", "test_anchor.py", "pyproject.toml"}
    project = tomllib.loads(files["pyproject.toml"])["project"]
    modules = {name: text for name, text in files.items() if name.startswith("merganser_")}
    install(tmp_path / "site", project["name"], project["entry-points"]["merganser.methods"], modules, monkeypatch)
    return files


def test_the_page_builds_a_method_that_passes_its_own_test(anchor: dict[str, str]) -> None:
    names: dict[str, object] = {}
    exec(compile(anchor["test_anchor.py"], "test_anchor.py", "exec"), names)
    names["test_the_pull_and_the_mean_by_hand"]()  # type: ignore[operator]


def test_an_installed_method_is_known_everywhere(anchor: dict[str, str]) -> None:
    assert list(METHODS) == [*BUILT_IN, "anchor"]
    config = check_config({"model": MODEL, "method": {"name": "anchor", "weight": 3}}, "file")
    assert config.model_dump(mode="json")["method"] == {"name": "anchor", "weight": 3.0}
    assert type(make_method(config.method)).title == "Anchor"
    with pytest.raises(InputError, match=r"file: method.wieght: unknown key. Did you mean 'weight'"):
        check_config({"model": MODEL, "method": {"name": "anchor", "wieght": 3}}, "file")
    with pytest.raises(InputError, match=r"method.weight: Input should be greater than or equal to 0 \(got -1\)"):
        check_config({"model": MODEL, "method": {"name": "anchor", "weight": -1}}, "file")
    with pytest.raises(InputError, match=r"there is no method 'ancor'. Did you mean 'anchor'"):
        check_config({"model": MODEL, "method": "ancor"}, "file")
    schema = RunConfig.model_json_schema()
    assert schema["$defs"]["AnchorOptions"]["properties"]["weight"]["default"] == 1.0
    assert {"$ref": "#/$defs/AnchorOptions"} in schema["properties"]["method"]["oneOf"]
    listed = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [row["title"] for row in listed if row["name"] == "anchor"] == ["Anchor"]


def test_an_installed_method_learns_and_resumes(anchor: dict[str, str], tmp_path: Path) -> None:
    given = sections(method={"name": "anchor"}, training={"steps": 2}, evaluation={"future": False})
    given["method"] = {"name": "anchor", "weight": 0.5}
    tasks = [task("mood"), task("topic"), task("truth")]
    with Learner.open(tmp_path / "whole", **given) as learner:
        learner.learn_stream(tasks)
        assert learner.record.tasks[-1].method_bytes["mean"] == 2048
    with (
        pytest.raises(Interrupted),
        Learner.open(tmp_path / "broken", listener=at_step("truth", 1), **given) as learner,
    ):
        learner.learn_stream(tasks)
    with Learner.open(tmp_path / "broken") as learner:
        learner.learn_stream(tasks)
    assert results(tmp_path / "broken") == results(tmp_path / "whole")


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "explosive", {"boom": "explosive:Boom"}, {"explosive.py": "raise OSError('bang')"}, monkeypatch)
    assert "boom" in METHODS
    assert "boom" in list(METHODS)
    assert check_config({"model": MODEL, "method": "aim"}, "file").method.name == "aim"
    with pytest.raises(
        InputError, match="The method 'boom' of the package 'explosive' cannot be loaded: OSError: bang"
    ):
        METHODS["boom"]
    with pytest.raises(InputError, match="cannot be loaded: OSError: bang"):
        check_config({"model": MODEL, "method": "boom"}, "file")


def test_a_name_claimed_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "first", {"aim": "first:Aim", "mine": "first:Mine"}, {}, monkeypatch)
    install(tmp_path, "second", {"mine": "second:Mine"}, {}, monkeypatch)
    with pytest.raises(InputError, match="'aim' is claimed by Merganser itself and by the package 'first'"):
        METHODS["aim"]
    with pytest.raises(InputError, match="'mine' is claimed by the package 'second' and by the package 'first'"):
        METHODS["mine"]
    assert METHODS["replay"] is BUILT_IN["replay"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("odd:NUMBER", "3 is not a subclass of Method"),
        ("odd:Absent", "cannot be loaded: AttributeError"),
        ("odd:Untitled", "it has no title"),
        ("odd:Bare", "it has no Options"),
        ("odd:Misnamed", "the name in its Options is not 'odd'"),
    ],
)
def test_what_is_no_method_is_refused(value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from merganser.methods.base import Method\nfrom merganser.methods import Method\n"
        "from merganser.methods.replay import ReplayOptions\nNUMBER = 3\n"
        "class Untitled(Method): pass\n"
        "class Bare(Method): title = paper = idea = 'x'\n"
        "class Misnamed(Bare): Options = ReplayOptions\n"
    )
    install(tmp_path, "odd", {"odd": value}, {"odd.py": text}, monkeypatch)
    monkeypatch.delitem(__import__("sys").modules, "odd", raising=False)
    with pytest.raises(InputError, match=re.escape(said)):
        METHODS["odd"]
