"""`outcrop`: collects the commands and turns errors into one line."""

from __future__ import annotations

import contextlib
import errno
import importlib
import inspect
import io
import logging
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from .. import __version__
from .. import cli as commands
from ..errors import OutcropError

app = typer.Typer(
    name="outcrop",
    help="Whole seismic surveys through deep networks: exact, seamless, within a memory budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Every module of this package with a `command` is one command, named as its file is.
for _module in pkgutil.iter_modules(commands.__path__):
    if _module.name != "main" and not _module.name.startswith("_"):
        _command = importlib.import_module(f"{commands.__name__}.{_module.name}").command
        # Typer keeps the line breaks of a docstring, in terminals of any width.
        _paragraphs = (inspect.getdoc(_command) or "").split("\n\n")
        app.command(
            _module.name,
            help="\n\n".join(p.replace("\n", " ") for p in _paragraphs),
            no_args_is_help=_module.name not in ("demo", "models"),
        )(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outcrop {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True
    ),
) -> None:
    """Whole seismic surveys through deep networks: exact, seamless, within a memory budget."""


def main() -> None:
    """Run the command line; an `OutcropError` becomes one line and exit status 2.

    The process is to end after it: from then on, Ctrl-C and SIGTERM kill it at once.
    """
    # Batch systems stop jobs so: as by Ctrl-C, locks and scratch files go, the page is written.
    interruption = _Interruption()
    signal.signal(signal.SIGTERM, interruption)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and is not ignored
        signal.signal(signal.SIGINT, interruption)
    debug = "--debug" in sys.argv
    if debug:  # accepted before and after the command's name
        sys.argv.remove("--debug")
    else:  # one line, without Python's own of where in the code it comes from
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # for terminals that have no "…" or "×"
    try:
        with _insisting():
            app()
    except BaseException as error:
        if isinstance(error, SystemExit):
            if error.code != 130:  # which typer makes of Ctrl-C
                raise
        elif not isinstance(error, KeyboardInterrupt) and (debug or not interruption.came):
            said = None if debug else _one_line(error)
            if said is None:
                raise
            typer.echo(f"error: {said}", err=True)
            sys.exit(2)
        typer.echo(f"interrupted; the same command {_how_it_goes_on()}", err=True)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # Now: threads of libraries, stopped in the middle, may hold Python's own end up for ever.
        os._exit(130)
    finally:  # of Python's own end, too, an interruption tells no story
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, signal.SIG_DFL)


def _how_it_goes_on() -> str:
    """Say what the same command does once it was interrupted."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    windows = any(word.partition("=")[0] == "--window" for word in sys.argv)
    resumed = command in ("ingest", "predict", "invert", "train") and not windows
    how = "with --resume " if command == "train" else ""
    then = "goes on where it stopped" if resumed else "begins anew"
    if "--overwrite" in sys.argv and command in ("ingest", "invert"):
        how = "without --overwrite "
    elif "--overwrite" in sys.argv and command == "predict" and resumed:
        then += "; of several surveys those that are whole are predicted anew"
    return f"{how}{then}"


class _Interruption:
    """What Ctrl-C and SIGTERM do: interrupt, and be remembered.

    A library that is stopped in the middle, as while it is imported, may end with another error.
    """

    came = False

    def __call__(self, number: int, frame: Any) -> None:
        self.came = True
        logging.disable(logging.CRITICAL)  # so may tasks of Dask's client, whose scheduler is gone
        signal.default_int_handler(number, frame)


def _one_line(error: BaseException) -> str | None:
    """Say what is wrong; None where it takes a traceback."""
    if isinstance(error, OutcropError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        # Such as a folder that this user may not look into.
        return f"{error.filename}: {error.strerror}; see to it, or take another path"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            sys.stdout.flush()
        except OSError:  # nor would it take the rest as Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # What is written elsewhere is named there.
        return f"the standard output: cannot be written ({error.strerror}); write it elsewhere"
    return None


@contextlib.contextmanager
def _insisting() -> Iterator[None]:
    """Interrupt again where Python drops what is raised, as while it collects garbage."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    usual, interrupted = sys.unraisablehook, False

    def hear(dropped: Any) -> None:
        nonlocal interrupted
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            interrupted = True
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        elif not interrupted:  # which else may come of that
            usual(dropped)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = hear
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = usual


if __name__ == "__main__":
    main()
