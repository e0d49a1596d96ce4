"""`outcrop models`."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[
        str | None, typer.Argument(help="Network to describe; all unless given.")
    ] = None,
) -> None:
    """List the networks of the zoo, or describe one."""
    from dataclasses import fields

    from .. import models

    if name is None:
        for each in models.names():
            typer.echo(f"{each}: {models.card(each).task}. {models.card(each).paper}")
        return
    card = models.card(name)
    for field in fields(card):
        value = getattr(card, field.name)
        if field.name == "outputs":
            value = "; ".join(
                f"{o.name} ({o.long_name}, {o.units}, {o.valid_range})" for o in value
            )
        typer.echo(f"{field.name}: {value}")
