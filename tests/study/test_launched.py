"""Cells of several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.study import launched
from merganser.study.cells import load_study, make_study
from merganser.study.local import find_machine
from tests.study.test_cells import values


def test_commands_of_one_and_of_several_processes(tmp_path: Path) -> None:
    def begins(**options: object) -> list[str]:
        return launched.launch_command(make_study(values(**options), "study.yaml", tmp_path), Path("out"), "a,s0")

    rest = ["study", "study.yaml", "--out", "out", "--cell", "a,s0"]
    assert begins() == ["merganser", *rest]
    assert begins(processes=2) == ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "merganser", *rest]
    assert begins(processes=2, fsdp="fsdp.yaml")[:6] == [
        *("accelerate", "launch", "--config_file", str(tmp_path / "fsdp.yaml"), "--num_processes", "2")
    ]


def test_what_cannot_be_launched_is_refused(tmp_path: Path) -> None:
    launched.check_launcher(make_study(values(), "here", tmp_path))
    with pytest.raises(InputError, match="read the study from its file"):
        launched.check_launcher(make_study(values(processes=2), "here", tmp_path))
    file = tmp_path / "study.yaml"
    file.write_text(str(values(fsdp="absent.yaml")))
    with pytest.raises(InputError, match=r"there is no file 'absent\.yaml'"):
        launched.check_launcher(load_study(file))


def test_processes_of_cells_share_the_cores_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.study.local.num_cores", lambda: 8)
    machine = find_machine(9, None, None, ("0", "1", "2", "3", "4"), processes=2)
    assert (machine.cells, machine.threads, machine.devices) == (2, 2, ("0,1", "2,3"))
    with pytest.raises(InputError, match="2 cells of 2 processes of 4 threads are more than the 8 cores"):
        find_machine(9, 2, 4, (), processes=2)


def test_the_error_of_its_processes_is_that_of_a_cell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("W: torchrun speaks\nerror: The loss became nan.\nE: rank 1 has ended\n")
    assert launched.last_error(log) == "The loss became nan."
    log.write_text("E: rank 1 has ended\n")
    assert launched.last_error(log) is None
