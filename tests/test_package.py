"""The package as a whole: where it can be imported."""

from __future__ import annotations

import subprocess
import sys


def test_import_on_a_system_that_is_not_posix_is_refused_with_a_remedy() -> None:
    script = "import os; os.name = 'nt'; import merganser"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: Merganser runs on POSIX systems")
