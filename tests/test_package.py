"""The package as a whole: what importing costs, its names, its commands, its README."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import outcrop
from outcrop.cli.main import app

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
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            assert parameter.help, parameter.name
        else:
            assert parameter.help, parameter.name
            assert parameter.opts[0] in done.stdout


def test_error_is_one_line(tmp_path: Path) -> None:
    gone, out = tmp_path / "gone.zarr", tmp_path / "out.sgy"
    command = [sys.executable, "-m", "outcrop.cli.main", "export", str(gone), str(out)]
    done = run(*command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in run(*command, "--debug").stderr


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
        if words[0] == "outcrop" and words[1] not in ("demo", "view"):
            result = run(sys.executable, "-m", "outcrop.cli.main", *words[1:], cwd=tmp_path)
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
    from outcrop.cli._cards import card_lines, network_lines

    page = (ROOT / "docs" / "models.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert set(sections) == set(models.names())
    for name, text in sections.items():
        for heading, line in card_lines(models.card(name)):
            assert f"- {heading}: {line}\n" in text, name
    for name in ("karstseg3d", "unet25d"):
        network = models.load(name, weights="seeded")
        for heading, line in network_lines(network):
            assert f"{heading}: {line}" in sections[name], name
