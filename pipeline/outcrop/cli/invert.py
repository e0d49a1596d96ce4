"""`outcrop invert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._shared import Cluster, Overwrite, TlsCa, TlsCert, TlsKey, Workers, tls_of


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="YAML: velocity, observed, output and options of outcrop.inversion.invert."
        ),
    ],
    cluster: Cluster = None,
    workers: Workers = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    overwrite: Overwrite = False,
) -> None:
    """Invert shot gathers for velocities: full-waveform inversion with Deepwave.

    Each iteration is committed. Interrupted, the same command goes on where it stopped.

    Example: outcrop invert run.yaml --cluster local --workers 2
    """
    from ..cluster import connect
    from ..inversion.config import Run
    from ..targets import check_free

    wanted = Run(run)
    check_free(wanted.output, overwrite)

    def told(iteration: int, misfit: float) -> None:
        typer.echo(f"iteration {iteration}: misfit {misfit:.6g}", err=True)

    with connect(cluster, workers, tls_of(tls_ca, tls_cert, tls_key)) as client:
        if client is not None:
            typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
        found = wanted.invert(client=client, overwrite=overwrite, on_iteration=told)
    sizes = " × ".join(f"{n} {d}" for d, n in found["vp"].sizes.items())
    how = found.attrs["inverted_with"]
    # Each band has another misfit.
    fall = float(found["misfit"][-1] / found["misfit"][-1 - how["iterations"]])
    band = " in the last band" if len(how["bands"]) > 1 else ""
    typer.echo(f"{wanted.output}: vp, {sizes}; misfit {100 * fall:.3g} % of the first{band}")
    if wanted.drawn:
        typer.echo(f"{wanted.pictures}: {', '.join(path.name for path in wanted.drawn)}")
