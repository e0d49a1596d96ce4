"""`outcrop models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError
from ._shared import Option, options_of


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Network to describe, FILE.py:NAME of your own too; all unless given. Or "
            "'convert', with two files."
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="With 'convert': weights to read, and .safetensors to write."),
    ] = None,
    option: Option = None,
) -> None:
    """List the networks of the zoo, describe one, or convert weights.

    Examples: outcrop models faultssl; outcrop models convert a.ckpt b.safetensors
    """
    from .. import models

    files = files or []
    if name == "convert":
        if len(files) != 2:
            raise ArgumentError("models convert: give the file to read and the file to write")
        count = models.convert(*files)
        typer.echo(f"{files[1]}: {count} tensors")
        return
    if files:
        raise ArgumentError(f"models {name} {files[0]}: only 'convert' takes files")
    if name is None and option:
        raise ArgumentError("--option: only with the name of a network")
    if name is None:
        for each in models.names():
            typer.echo(f"{each}: {models.card(each).task}. {models.card(each).paper}")
        return
    from ._cards import card_lines, network_lines, option_lines

    network = models.load(name, weights="seeded", **options_of(option))
    card = models.card(network)
    typer.echo(name)
    takes = option_lines(name) if name in models.names() else ()
    for heading, text in (*card_lines(card), *takes, *network_lines(network, card)):
        typer.echo(f"  {heading}: {text}")
