"""The documentation says what the program does: its tables, its links, its Python."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from merganser.cli import main
from merganser.config import RunConfig
from merganser.methods import METHODS
from merganser.runs.record import MergeRecord
from tests.tiny import TEXTS, tiny_bert, tiny_t5

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_options_are_those_of_the_schema(page: Path, tables: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.renewed(text) == text, "run `python docs/tables.py`"
    assert text.count("<!-- options:") == text.count("<!-- end -->") == len(tables.MARKED.findall(text))


def test_every_section_has_its_table_on_some_page(tables: ModuleType) -> None:
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"<!-- options: (\w+) -->", everything)
    # Overrides have the keys of a task; the page says so.
    assert sorted(named) == sorted(set(tables.schema()) - {"TaskOverrides"})


def test_a_table_shows_bounds_defaults_and_what_is_required(tables: ModuleType) -> None:
    lines = tables.table("TrainingOptions").splitlines()
    assert "| `batch` | whole number > 0 | `32` | examples per forward pass, over all processes |" in lines
    assert tables.table("TaskOptions").count("| required |") == 2
    with pytest.raises(KeyError):
        tables.table("NoSuchOptions")


def test_a_stale_table_is_found_and_mended(tables: ModuleType) -> None:
    stale = "before\n<!-- options: EvaluationOptions -->\n| old |\n<!-- end -->\nafter\n"
    mended = tables.renewed(stale)
    assert mended.startswith("before\n<!-- options: EvaluationOptions -->\n| key |")
    assert "old" not in mended
    assert all(f"`{key}`" in mended for key in RunConfig.model_fields["evaluation"].annotation.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_every_method_is_on_its_page(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for option in METHODS[name].Options.model_fields:
        assert f"| `{option}` |" in text
    for heading in ("## What it stores", "## Options", "## Where it differs"):
        assert heading in text


def test_every_field_of_the_ledger_is_explained() -> None:
    text = (DOCS / "methods" / "aim.md").read_text(encoding="utf-8").partition("## The ledger")[2]
    assert [field for field in MergeRecord.model_fields if f"`{field}`" not in text] == []


def test_the_index_links_every_page() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([^)#]+)", text)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_layers_are_drawn_as_they_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawing = (DOCS / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    # A name or several, then at least three spaces and what the layer is.
    names = [re.split(r" {3,}", line.strip())[0] for line in drawing.splitlines() if line.strip(" │")]
    assert [set(name.split(" · ")) for name in names] == [set(layer.split(" | ")) for layer in layers]


def test_the_python_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="example")["main"](["--out", "examples/data"])
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    model = "sentence-transformers/all-MiniLM-L6-v2"
    assert model in blocks[0]
    script = tmp_path / "page.py"
    tiny = f'{tiny_bert(tmp_path / "model")}", "precision": "fp32'
    script.write_text("\n".join(blocks).replace(model, tiny), encoding="utf-8")
    capsys.readouterr()
    found = runpy.run_path(str(script))
    assert found["learner"].learned == ["colours", "reviews"]
    assert found["stream"].tasks[1].labels == ("Business", "Science or Technology", "Sports", "World")
    # Six probes of 1 give the threshold 2; at step 8 the merge is due and the only alarm is raised: calm, 0.6. The next
    # six probes of 2.5 give the threshold 5, which nothing reaches by step 16.
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "8 due 1 0.6 8"
    assert re.fullmatch(r"\[Answer\(text='(positive|negative)', score=[\d.]+\)\]", printed[-2])


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    model = "google/flan-t5-small"
    assert model in block
    tiny = f'{tiny_t5(tmp_path / "model", TEXTS)}", "precision": "fp32'
    script = tmp_path / "readme.py"
    script.write_text(block.replace(model, tiny), encoding="utf-8")
    found = runpy.run_path(str(script))
    assert found["learner"].learned == ["sentiment"]
    assert re.search(r"\[Answer\(text='(good|bad)', score=[\d.]+\)\]", capsys.readouterr().out)


def exit_code() -> int:
    """What the command in ``sys.argv`` exits with."""
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_commands_of_the_readme_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every `merganser` line about runs/first, in order, with a tiny model in place of the one from the hub."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="example")["main"](["--out", "examples/data"])
    text = (ROOT / "examples" / "matcher.yaml").read_text(encoding="utf-8")
    text = text.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny_bert(tmp_path / "model")))
    text = text.replace("precision: auto", "precision: fp32")
    (tmp_path / "examples" / "matcher.yaml").write_text(text, encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in readme.splitlines() if line.startswith("merganser ") and "runs/first" in line]
    assert [line.split()[1] for line in lines] == ["run", "learn", "undo", "ask", "report", "evaluate", "export"]
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line, comments=True))
        assert exit_code() == 0, capsys.readouterr().err
    assert (tmp_path / "exported").is_dir()
    assert (tmp_path / "tables" / "scores.csv").is_file()
