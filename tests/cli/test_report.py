"""``merganser report`` on a run directory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from merganser.cli.report import report
from merganser.errors import InputError
from merganser.report import files
from tests.report.answered import to_disk
from tests.report.conftest import make_run

app = typer.Typer()
app.command()(report)


def test_page_figures_and_tables(tmp_path: Path) -> None:
    run = to_disk(make_run(["a", "b"], steps=30), tmp_path / "run")
    plain = to_disk(make_run(["a", "b"], steps=30, merging=False, method="sequential"), tmp_path / "plain")
    third = to_disk(make_run(["a", "b"], steps=30), tmp_path / "third")
    arguments = ["--baseline", str(plain), "--figures", str(tmp_path / "figures"), "--tables", str(tmp_path / "tables")]
    result = CliRunner().invoke(app, [str(run), *arguments, "--baseline", str(third)])
    assert result.exit_code == 0, result.output
    written = [Path(line.removeprefix("Wrote ")) for line in result.output.splitlines() if line.startswith("Wrote ")]
    assert written[0] == run / "report.html"
    assert len(written) == 1 + 8 + 4 + 7
    assert {"first_task.svg", "memory_loss.svg"} <= {path.name for path in written}
    assert all(path.is_file() for path in written)
    page = written[0].read_text(encoding="utf-8")
    assert "Sequential fine-tuning, seed 42" in page
    assert "AimMerging (third), seed 42" in page
    assert "Merge 1 of b, after step 15" in page
    assert page.count('class="chart curve"') == 2


def test_out_and_nothing_else(tmp_path: Path) -> None:
    run = to_disk(make_run(["a"], steps=3), tmp_path / "run")
    before = sorted(run.rglob("*"))
    out = tmp_path / "elsewhere" / "page.html"
    result = CliRunner().invoke(app, [str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.is_file()
    assert sorted(run.rglob("*")) == before


def test_baseline_of_other_tasks_changes_nothing(tmp_path: Path) -> None:
    run = to_disk(make_run(["a"], steps=3), tmp_path / "run")
    other = to_disk(make_run(["b"], steps=3), tmp_path / "other")
    result = CliRunner().invoke(app, [str(run), "--baseline", str(other)])
    assert isinstance(result.exception, InputError)
    assert not (run / "report.html").exists()


def test_no_run_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "absent")])
    assert isinstance(result.exception, InputError)
    assert "absent" in result.exception.cause


def test_a_run_on_a_disk_that_is_read_only_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = to_disk(make_run(["a"], steps=3), tmp_path / "a run")
    write = files.write_bytes

    def read_only(path: Path, content: bytes, shared: bool = False) -> None:
        if path.parent == run:
            raise OSError(errno.EROFS, "Read-only file system")
        write(path, content, shared)

    monkeypatch.setattr(files, "write_bytes", read_only)
    result = CliRunner().invoke(app, [str(run)])
    assert isinstance(result.exception, InputError)
    assert result.exception.cause == f"Cannot write in '{run}': Read-only file system."
    assert f"merganser report '{run}' --out report.html" in result.exception.remedy
    assert CliRunner().invoke(app, [str(run), "--out", str(tmp_path / "report.html")]).exit_code == 0
    asked_for = CliRunner().invoke(app, [str(run), "--out", str(run / "other.html")])
    assert isinstance(asked_for.exception, InputError)
    assert asked_for.exception.remedy == "Choose a folder that can be written."
