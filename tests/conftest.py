"""Before any test."""

import json
import os
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from outcrop.planner.rates import Rates, described

# Of two cores that were measured. Plans rest on rates: those of the machine that runs the tests
# would have it test other plans than the next one.
RATES = {
    "float32": Rates(7e10, 2e11, 3e11, 7e10, 7e10, 2e9, 1e-4, 1e-3, 1e9, 1e10, 3e8, 1.25),
    "float64": Rates(3e10, 1e10, 5e10, 7e10, 7e10, 2e9, 1e-4, 1e-3, 1e9, 1e10, 3e8, 1.25),
    "bfloat16": Rates(7e10, 5e11, 5e11, 5e10, 7e10, 2e9, 1e-4, 1e-3, 1e9, 1e10, 3e8, 1.25),
}


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # which has its parent's environment
        return
    config.cache_folder = tempfile.TemporaryDirectory()
    os.environ["OUTCROP_CACHE"] = config.cache_folder.name
    known = {
        described("cpu", dtype, threads): asdict(rates)
        for dtype, rates in RATES.items()
        for threads in range(1, os.cpu_count() + 1)
    }
    (Path(config.cache_folder.name) / "rates.json").write_text(json.dumps(known))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    # A shell that starts the tests in the background has their processes ignore Ctrl-C, and
    # `main` in a test before, of a process that is about to end, lets Ctrl-C kill it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_unconfigure(config):
    if hasattr(config, "cache_folder"):
        config.cache_folder.cleanup()
