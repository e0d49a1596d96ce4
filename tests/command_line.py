"""`outcrop` as a user calls it, in this process: a new one takes seconds to load all libraries."""

import contextlib
import io
import sys
import warnings
from types import SimpleNamespace

import pytest

from outcrop.cli.main import main


def outcrop_command(*words, cwd="."):
    """Run a command line; return exit status and what it printed, as `subprocess.run` does."""
    out, err = io.StringIO(), io.StringIO()

    def show(message, category, filename, lineno, file=None, line=None):
        err.write(warnings.formatwarning(message, category, filename, lineno, line))

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
    ):
        patch.setattr(sys, "argv", ["outcrop", *map(str, words)])
        for name, function in (("formatwarning", warnings.formatwarning), ("showwarning", show)):
            patch.setattr(warnings, name, function)
        with pytest.raises(SystemExit) as stopped:
            main()
    return SimpleNamespace(
        returncode=stopped.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue()
    )
