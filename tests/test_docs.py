"""The documentation says what the program does: its tables, its links, its Python."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from merganser.cli import main
from merganser.config import RunConfig
from merganser.methods import METHODS
from merganser.metrics import ScoreMatrix, summary
from merganser.runs import read_run
from merganser.runs.record import MergeRecord
from merganser.streams.options import MemoryOptions, StreamOptions
from tests.tiny import tiny_bert, tiny_llama

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SKELETON = ["Idea", "Formula", "Command line", "What it stores", "Measured", "Where it differs"]
"""The headings of a method's page."""


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
    assert tables.with_tables(text) == text, "run `python docs/tables.py`"
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
    mended = tables.with_tables(stale)
    assert mended.startswith("before\n<!-- options: EvaluationOptions -->\n| key |")
    assert "old" not in mended
    assert all(f"`{key}`" in mended for key in RunConfig.model_fields["evaluation"].annotation.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_its_options_and_the_common_headings(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- options: {METHODS[name].Options.__name__} -->" in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SKELETON


def test_every_metric_is_explained() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert [metric.name for metric in summary(ScoreMatrix()) if f"| `{metric.name}` |" not in text] == []


def test_the_example_of_the_metrics_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(DOCS / "metrics.md", "python")
    exec(example, {})
    lines = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert float(lines["OP"]) == pytest.approx((0.8 + 0.5) / 2)
    assert float(lines["BWT"]) == pytest.approx(0.8 - 0.88)


def test_the_sections_of_a_stream_are_valid() -> None:
    sections = [yaml.safe_load(block) for block in blocks(DOCS / "streams.md", "yaml")]
    streams = [StreamOptions.model_validate(section["stream"]) for section in sections if "stream" in section]
    assert len(streams) == 6
    (memory,) = [MemoryOptions.model_validate(section["memory"]) for section in sections if "memory" in section]
    assert memory == MemoryOptions()


def test_every_field_of_the_ledger_is_explained() -> None:
    text = (DOCS / "methods" / "aim.md").read_text(encoding="utf-8").partition("## The ledger")[2]
    assert [field for field in MergeRecord.model_fields if f"`{field}`" not in text] == []


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """Also finds pages that the navigation lacks, dead links, and names that the Python reference cannot find."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "merganser undo RUN" in (tmp_path / "commands.html").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those of all other pages are checked by building the site."""
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


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
    assert found["stream"].tasks[1].spec.labels == ("Business", "Science or Technology", "Sports", "World")
    # Six probes of 1 give the threshold 2; at step 8 the merge is due and the only alarm is raised: calm, 0.6. The next
    # six probes of 2.5 give the threshold 5, which nothing reaches by step 16.
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "8 due 1 0.6 8"
    section = text.partition("## A metric of your own")[2].partition("\n## ")[0]
    exec(textwrap.dedent("".join(re.findall(r"^(?:    .*)?\n", section, re.MULTILINE))), found)
    # The only test text is answered "red", which is right, or "white", which has five letters.
    assert float(capsys.readouterr().out) in (1.0, 3 / 5)
    assert re.fullmatch(r"\[Answer\(text='(positive|negative)', score=[\d.]+\)\]", printed[-2])


def exit_code() -> int:
    """What the command in ``sys.argv`` exits with."""
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_as_printed(page: Path, wanted: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the `merganser` commands of a page that are wanted, in order; return their subcommands."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("merganser ") and wanted(line)]
    run_commands(commands, monkeypatch)
    return [command[1] for command in commands]


HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_readme_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files and commands as printed, those within the text too, with a tiny model in place of the hub's.

    Where the text asks for it, a second task is learned; the question is asked again after it, about both tasks.
    """
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    (rows,) = blocks(readme, "csv")
    (settings,) = blocks(readme, "yaml")
    assert HUB_MODEL in settings
    tiny = f"{tiny_bert(tmp_path / 'model')}, precision: fp32"
    (tmp_path / "tickets.csv").write_text(rows, encoding="utf-8")
    settings = settings.replace(HUB_MODEL, tiny).replace("epochs: 8", "steps: 2")
    (tmp_path / "first.yaml").write_text(settings, encoding="utf-8")
    printed = re.findall(r"^(merganser .+)$|`(merganser [^`]+)`", readme.read_text(encoding="utf-8"), re.MULTILINE)
    learn, ask, *others = [shlex.split(line or inline) for line, inline in printed]
    (tmp_path / "next.csv").write_text(rows.replace("hardware", "urgent").replace("billing", "later"), encoding="utf-8")
    without_config = learn[: learn.index("--config")]
    second = [{"tickets": "next", "tickets.csv": "next.csv"}.get(word, word) for word in without_config]
    run_commands([learn, ask], monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] in ("hardware", "billing")
    run_commands([second, ask], monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] in ("hardware", "billing", "urgent", "later")
    run_commands(others, monkeypatch)
    assert {"report", "undo", "verify", "export"} <= {command[1] for command in others}
    assert {path.name for path in (tmp_path / "runs" / "first" / "tasks").iterdir()} == {"00-start", "01-tickets"}


def run_commands(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands:
        monkeypatch.setattr("sys.argv", command)
        assert exit_code() == 0, command


def test_the_walk_for_researchers_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block; of the runs that the loop would make, copies of the first stand in."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "walks" / "researcher.md"
    fences = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (first, loop, report), (script,) = ([text for kind, text in fences if kind == wanted] for wanted in ("", "python"))
    make_data, run = map(shlex.split, first.splitlines())
    assert make_data == ["python", "examples/make_data.py"]
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="example")["main"](["--out", "examples/data"])
    example = (ROOT / "examples" / "matcher.yaml").read_text(encoding="utf-8")
    for old, new in (
        (HUB_MODEL, str(tiny_bert(tmp_path / "model"))),
        ("precision: auto", "precision: fp32"),
        ("epochs: 3", "steps: 2"),
    ):
        assert old in example
        example = example.replace(old, new)
    (tmp_path / "examples" / "matcher.yaml").write_text(example, encoding="utf-8")
    # Straight after it, a question to the tasks, one of which has a prompt of its own.
    run_commands([run, ["merganser", "ask", "runs/compare/aim-0", "The printer does not switch on"]], monkeypatch)
    assert "Answered as a text of task '" in capsys.readouterr().err

    shell = ["bash", "-euc", 'merganser() { echo merganser "$@"; }\n' + loop]
    commands = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(commands) == 12
    assert commands.count(shlex.join(run)) == 1
    for command in map(shlex.split, commands):
        assert command[:3] == run[:3]
        if command != run and command[-1] != "2":  # two seeds give an interval, too
            shutil.copytree("runs/compare/aim-0", command[command.index("--out") + 1])
    exec(script, {})
    record = read_run("runs/compare/aim-0")
    (op,) = [f"{metric.value:.3f}" for metric in record.scores.summary if metric.name == "OP"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, op] for name in ("sequential", "replay", "aim", "joint")]

    drawn: list[Path] = []  # figures take seconds, and have tests of their own
    monkeypatch.setattr("merganser.report.write_figures", lambda record, folder, *others: drawn.append(folder) or [])
    run_commands([shlex.split(report)], monkeypatch)
    assert drawn == [Path("figures")]
    assert (tmp_path / "tables" / "scores.csv").is_file()


def test_the_walk_for_engineers_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="example")["main"](["--out", "examples/data"])
    page = DOCS / "walks" / "engineer.md"
    settings, chat = blocks(page, "yaml")
    tiny = f"{tiny_bert(tmp_path / 'model')}, precision: fp32"
    (tmp_path / "support.yaml").write_text(settings.replace(HUB_MODEL, tiny), encoding="utf-8")
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model in chat
    tiny = f"{tiny_llama(tmp_path / 'chat-model', pad=True, chat=True)}, precision: fp32"
    chat = chat.replace(model, tiny).replace("steps: 24", "steps: 2").replace("max_target: 32", "max_target: 4")
    (tmp_path / "chat.yaml").write_text(chat, encoding="utf-8")
    commands = run_as_printed(page, lambda line: True, monkeypatch)
    assert commands == ["run", "learn", "run", "learn", "ask", "report", "ask", "undo", "export", "export"]
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"adapter", "model"}


def test_the_ten_lines_of_the_methods_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index from papers to ten lines has one text for all methods; two kinds of method run it here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS)
    lines = importlib.import_module("site_hooks").ten_lines
    tiny = f'{tiny_bert(tmp_path / "model")}", "precision": "fp32'
    for method in ("aim", "kmerge"):
        script = tmp_path / f"{method}.py"
        script.write_text(lines(method).replace(HUB_MODEL, tiny), encoding="utf-8")
        assert runpy.run_path(str(script))["learner"].learned == ["weather", "mood"]
        assert "Answer(text='" in capsys.readouterr().out
