"""Settings that must be made before torch is imported."""

from __future__ import annotations

import os

from hypothesis import settings

# Two torch threads on busy cores can be twenty times slower while OpenMP spins; tests are small, one thread is enough.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# No test needs the network; without this a missing model would be looked for on the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A flush waits for the disk, some hundred times in a run's life; no test cuts the power (tests/faults.py pretends to).
os.fsync = lambda descriptor: None

# A busy machine is no failure. Where a change is judged, the same cases are tried every time; elsewhere, new ones.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
