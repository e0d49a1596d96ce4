"""Commands and scripts as a user calls them, in this process: a new one takes seconds to load."""

import contextlib
import io
import runpy
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import pytest

from outcrop.cli.main import main


def outcrop_command(*words, cwd="."):
    """Run a command line; return exit status and what it printed, as `subprocess.run` does."""
    return _run(main, "outcrop", words, cwd)


def script_command(script, *words, cwd="."):
    """Run a script likewise, as `python script words` does."""
    return _run(partial(runpy.run_path, str(script), run_name="__main__"), script, words, cwd)


def _run(function, name, words, cwd):
    out, err = io.StringIO(), io.StringIO()

    def show(message, category, filename, lineno, file=None, line=None):
        err.write(warnings.formatwarning(message, category, filename, lineno, line))

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
    ):
        patch.setattr(sys, "argv", [str(name), *map(str, words)])
        for each, use in (("formatwarning", warnings.formatwarning), ("showwarning", show)):
            patch.setattr(warnings, each, use)
        with pytest.raises(SystemExit) as stopped:
            function()
    status = stopped.value.code or 0
    if isinstance(status, str):  # which Python prints
        err.write(f"{status}\n")
        status = 1
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
