"""Full-waveform inversion in 3-D: model shots over a block, invert them, draw what came out.

    python fwi.py results --cluster local --workers 2
    python fwi.py results --size large --cluster tcp://host:8786 --storage-mode disk

The small experiment has four sources over a block of higher velocity. The large one has 16 over
64 × 64 × 32 samples. Copy it and change what you like: for data of your own, ingest them with
`outcrop ingest --shots` and start from your own velocities. Interrupted, the same command goes on
where it stopped.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import outcrop
from outcrop import inversion
from outcrop.cluster import connect
from outcrop.output import is_complete
from outcrop.view import draw_inversion


class Size(StrEnum):
    """Of the experiment."""

    tiny = "tiny"
    small = "small"
    large = "large"


# Samples along depth, crossline and inline, sources, receivers, samples of a trace.
SIZES = {
    Size.tiny: ((12, 16, 16), (2, 2), (4, 4), 160),
    Size.small: ((20, 32, 32), (2, 2), (14, 14), 260),
    Size.large: ((32, 64, 64), (4, 4), (28, 28), 480),
}
SPACING, STEP, FREQUENCY = 10.0, 0.00125, 14.0  # m, s, Hz


def models(shape: tuple[int, ...]) -> tuple:
    """2000 m/s everywhere, and the same with a block that is 10 % faster in the middle."""
    start = np.full(shape, 2000.0, dtype=np.float32)
    true = start.copy()
    true[tuple(slice(n // 2 - n // 6, n // 2 + n // 6) for n in shape)] = 2200.0
    return inversion.velocity(start, SPACING), inversion.velocity(true, SPACING)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    size: Annotated[Size, typer.Option(help="tiny, small or large.")] = Size.small,
    iterations: Annotated[int, typer.Option(help="Of L-BFGS.")] = 20,
    storage_mode: Annotated[
        str, typer.Option(help="Where wavefields are kept: device, cpu or disk.")
    ] = "device",
    storage_compression: Annotated[
        bool, typer.Option("--storage-compression", help="Keep them in 8 bits a value.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    pml_width: Annotated[int, typer.Option(help="Samples of the absorbing layers.")] = 10,
    cluster: Annotated[
        str | None, typer.Option(help="Nothing, local, cuda, an address or a scheduler file.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Local workers.")] = None,
) -> None:
    """Model shots over a block anomaly and invert them."""
    shape, sources, receivers, samples = SIZES[size]
    start, true = models(shape)
    survey = inversion.surface_grid(
        true,
        sources=sources,
        receivers=receivers,
        wavelet=inversion.ricker(FREQUENCY, STEP, samples),
    )
    shots, inverted = out / "shots.zarr", out / "inverted.zarr"
    how = {"pml_width": pml_width, "device": device}
    with connect(cluster, workers) as client:
        if not is_complete(shots):
            inversion.model_shots(true, survey, shots, client=client, progress=True, **how)
        if not is_complete(inverted):
            inversion.invert(
                start,
                shots,
                inverted,
                iterations=iterations,
                smoothing=SPACING,
                mask=inversion.mask(start, survey, radius=3 * SPACING),
                storage_mode=storage_mode,
                storage_compression=storage_compression,
                client=client,
                on_iteration=lambda n, misfit: print(f"iteration {n}: misfit {misfit:.4g}"),
                **how,
            )
    found = inversion.open_inversion(inverted)
    if found.vp.shape[-3:] != shape:
        raise SystemExit(f"error: {out}: holds another size of it; choose another folder")
    if (done := found.sizes["iteration"] - 1) != iterations:
        raise SystemExit(
            f"error: {inverted} is complete with {done} iterations, not {iterations}; remove it, "
            f"or pass --iterations {done}"
        )
    pictures = draw_inversion(found, inversion.open_shots(shots), out, true.vp, **how)
    fall = 1 - float(found.misfit[-1] / found.misfit[0])
    print(f"misfit fell by {100 * fall:.1f} %")
    print(f"written: {shots}, {inverted}, {', '.join(map(str, pictures))}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
