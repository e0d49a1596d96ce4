"""Before any test."""

from outcrop.planner.rates import rates


def pytest_sessionstart(session):
    """Measure the device while it is quiet: plans rest on it, and tests run side by side."""
    if not hasattr(session.config, "workerinput"):
        for dtype in ("float32", "float64", "bfloat16"):
            rates("cpu", dtype)
