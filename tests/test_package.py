"""The package as a whole: what importing costs, its names, its commands, its README."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import outcrop
from command_line import outcrop_command
from outcrop.cli.main import app, main

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "xarray", "zarr", "dask", "distributed", "segyio", "matplotlib", "bokeh"}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", ["outcrop", "outcrop.cli.main"])
def test_import_is_light(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(json.loads(done.stdout))


@pytest.mark.parametrize("name", outcrop.__all__)
def test_public_name(name: str) -> None:
    assert getattr(outcrop, name) is not None
    assert name in dir(outcrop)


def test_names_in_the_documentation_are_public() -> None:
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    named = re.findall(
        r"\boutcrop\.([A-Za-z_]+)(?:\.([a-z_]+))?", "".join(map(Path.read_text, pages))
    )
    assert {one for one, _ in named} <= set(outcrop.__all__)
    assert {other for one, other in named if one == "training" and other} <= {
        *outcrop.training.__all__
    }


def test_no_module_takes_the_place_of_a_function() -> None:
    """Python binds a submodule to its package under its name, over a function of that name."""
    code = """
import importlib, inspect, pkgutil, outcrop, outcrop.training
packages = [outcrop, outcrop.training]
before = [inspect.ismodule(getattr(p, name)) for p in packages for name in p.__all__]
for module in pkgutil.walk_packages(outcrop.__path__, "outcrop."):
    importlib.import_module(module.name)
after = [inspect.ismodule(getattr(p, name)) for p in packages for name in p.__all__]
assert before == after, (before, after)
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        outcrop.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_stands_alone(name: str) -> None:
    done = run(sys.executable, "-m", "outcrop.cli.main", name, "--help")
    assert done.returncode == 0, done.stderr
    about = inspect.cleandoc(COMMANDS[name].help or "")
    assert about
    assert "\n" not in about.replace("\n\n", "")  # or lines break there on any terminal
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            assert parameter.help, parameter.name
        else:
            assert parameter.help, parameter.name
            assert parameter.opts[0] in done.stdout


def test_error_is_one_line(tmp_path: Path) -> None:
    gone, out = tmp_path / "gone.zarr", tmp_path / "out.sgy"
    command = [sys.executable, "-m", "outcrop", "export", str(gone), str(out)]
    done = run(*command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in run(*command, "--debug").stderr


@pytest.mark.parametrize(
    ("command", "sign", "says"),
    [
        ("invert run.yaml", signal.SIGTERM, "goes on where it stopped"),
        (
            "invert run.yaml --overwrite",
            signal.SIGINT,
            "without --overwrite goes on where it stopped",
        ),
        ("demo --size 192 --out made", signal.SIGINT, "begins anew"),
    ],
)
def test_interrupted(command: str, sign: int, says: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")  # a file whose end never comes
    process = subprocess.Popen(
        [sys.executable, "-m", "outcrop.cli.main", *command.split()],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pipe, deadline = None, time.monotonic() + 60
    while pipe is None and not (tmp_path / "made").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # which it is while nobody reads from it
            pipe = os.open(tmp_path / "run.yaml", os.O_WRONLY | os.O_NONBLOCK)
    process.send_signal(sign)
    _, told = process.communicate(timeout=60)
    if pipe is not None:
        os.close(pipe)
    assert process.returncode == 130
    assert told.endswith(f"interrupted; the same command {says}\n")


def test_what_an_interrupted_prediction_does_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from outcrop.cli.main import _how_it_goes_on

    for words, says in (("", "goes on where it stopped"), ("--window=64", "begins anew")):
        monkeypatch.setattr(sys, "argv", f"outcrop predict a.zarr b.zarr {words}".split())
        assert _how_it_goes_on() == says


@pytest.mark.parametrize("how", ["at once", "where Python drops it", "in the middle of an import"])
def test_interrupted_beside_a_thread_that_does_not_end(how: str) -> None:
    code = f"""
import gc, logging, signal, threading, time
from outcrop.cli import main
threading.Thread(target=time.sleep, args=[600]).start()
print("begun")
def app():
    if {how!r} == "in the middle of an import":
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            logging.getLogger("distributed.client").error("the scheduler was stopped, too")
            raise AttributeError("half a module")
    if {how!r} == "where Python drops it":
        stop = lambda phase, _: phase == "stop" and signal.raise_signal(signal.SIGTERM)
        gc.callbacks.append(stop)
        gc.collect()
        time.sleep(50)
    signal.raise_signal(signal.SIGTERM)
main.app = app
main.main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stdout == "begun\n"
    assert done.stderr.startswith("interrupted; ")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_when_all_is_done(sign: int) -> None:
    code = f"""
import atexit, os
from outcrop.cli.main import main
atexit.register(os.kill, os.getpid(), {int(sign)})
main()
"""
    done = run(sys.executable, "-c", code, "--version")
    assert done.returncode == -sign
    assert done.stdout == f"outcrop {outcrop.__version__}\n"
    assert done.stderr == ""


def test_a_terminal_of_ascii(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outcrop.cli.main", "info", "tests/data/segy/f3.sgy"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"cdp_x .* \? ", done.stdout)


def test_a_plan_that_cannot_be_drawn_is_printed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/data/segy/small.sgy", tmp_path / "s.sgy")
    outcrop.ingest(tmp_path / "s.sgy", tmp_path / "s.zarr")
    command = ["plan", str(tmp_path / "s.zarr"), "--model", "faultseg3d", "--draw"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "s.sgy" / "plan.png")])
    assert isinstance(done.exception, outcrop.OutcropError)
    assert "plan.png: cannot be written" in str(done.exception)
    assert "stage" in done.output
    done = CliRunner().invoke(app, [*command, "plan.xyz"])
    assert "plan.xyz: no such format" in str(done.exception)
    assert not done.output


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["outcrop", "--version"])
    with pytest.raises(SystemExit):
        main()
    said = warnings.formatwarning(UserWarning("2 tiles are gone"), UserWarning, "code.py", 7, "x")
    assert said == "warning: 2 tiles are gone\n"


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["outcrop", "info", "s" * 300])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {'s' * 300}: File name too long; ")


def test_a_full_standard_output_is_one_line() -> None:
    code = f"exec {sys.executable} -m outcrop models > /dev/full"
    done = run("sh", "-c", code)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the standard output: cannot be .*No space left.*\n", done.stderr)


def test_an_option_that_nothing_would_heed() -> None:
    done = CliRunner().invoke(app, ["models", "-o", "version=2018"])
    assert "--option: only with the name of a network" in str(done.exception)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("use_norm=False", False),
        ("use_norm=true", True),
        ("layers=(1,1,1,2)", (1, 1, 1, 2)),
        ("base=32", 32),
        ("mode=iou", "iou"),
        ("mode='iou'", "iou"),
        ("version=2018", "2018"),
    ],
)
def test_options_are_what_python_and_json_call_them(given: str, value: object) -> None:
    from outcrop.cli._shared import options_of

    assert options_of([given]) == {given.partition("=")[0]: value}


def readme_blocks(*languages: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def readme_commands() -> list[str]:
    text = "".join(readme_blocks("sh", "bash", "console", "shell")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_readme_commands_are_run() -> None:
    """Each is one that `test_readme_runs` runs, or a target of the Makefile."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in readme_commands():
        words = shlex.split(command, comments=True)
        assert words[0] in ("outcrop", "make", "git", "cd"), command
        assert words[0] != "make" or set(words[1:]) <= targets, command
        assert words[0] != "outcrop" or words[1] in COMMANDS, command


def test_readme_runs(tmp_path: Path) -> None:
    """The README's main path works as it is printed, in a folder with f3.sgy and w.pth."""
    shutil.copy(ROOT / "tests/data/segy/f3.sgy", tmp_path)
    weights(tmp_path / "w.pth")
    done = []
    for command in readme_commands():
        words = shlex.split(command, comments=True)
        if words[1] == "train":  # the same, with less to do
            words += shlex.split(
                "--epochs 1 --samples 2 --val-samples 1 --crop 24 --size 32 --workers 0"
            )
        if words[0] == "outcrop" and words[1] != "demo":
            result = outcrop_command(*words[1:], cwd=tmp_path)
            assert result.returncode == 0, f"{command}\n{result.stderr}"
            done.append(command)
    for path in tmp_path.iterdir():
        if path.name not in ("f3.sgy", "w.pth"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for code in readme_blocks("python"):
        ast.parse(code)
    code = "\n".join(readme_blocks("python"))
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert done, "the README shows no command line"


def test_readme_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert "://" in link or (ROOT / link).exists(), link


def weights(path: Path) -> None:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    torch.save(outcrop.models.load("faultseg3d", weights="seeded").state_dict(), path)


def test_the_page_of_networks_is_what_the_cards_say() -> None:
    from outcrop import models
    from outcrop.cli._cards import card_lines, network_lines, option_lines

    page = (ROOT / "docs" / "models.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert set(sections) == set(models.names())
    for name, text in sections.items():
        for heading, line in (*card_lines(models.card(name)), *option_lines(name)):
            assert f"- {heading}: {line}\n" in text, name
    for name in ("karstseg3d", "unet25d"):
        network = models.load(name, weights="seeded")
        for heading, line in network_lines(network, network.card):
            assert f"{heading}: {line}" in sections[name], name
