"""Channel probability of a survey: SEG-Y in, labelled Zarr, SEG-Y and a picture out.

    python channels.py survey.sgy results --weights wang25channel.pth --memory 4GB

Copy it and change what you like. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.survey import is_ingested


def main(
    segy: Annotated[
        Path, typer.Argument(help="3-D survey, SEG-Y; of a prestack one the first offset is drawn.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[str, typer.Option(help="File of weights, or 'seeded' for random ones.")],
    model: Annotated[str, typer.Option(help="channelseg3d or wang25channel.")] = "wang25channel",
    memory: Annotated[str, typer.Option(help="Memory for one process, such as 4GB.")] = "2GB",
) -> None:
    """Channel probability of a survey: SEG-Y in, labelled Zarr, SEG-Y and a picture out."""
    store, predicted = out / "survey.zarr", out / "channels.zarr"
    network = outcrop.models.load(model, weights=weights)
    if not any(o and o.name == "channel_probability" for o in outcrop.models.card(network).outputs):
        raise outcrop.errors.ArgumentError(f"--model {model}: predicts no channel_probability")
    if not is_ingested(segy, store):
        outcrop.ingest(segy, store, progress=True)
    survey = outcrop.open(store)
    outcrop.predict_all(network, [survey], [predicted], memory=memory, progress=True)
    found = outcrop.open(predicted).channel_probability
    outcrop.export(found, out / "channels.sgy", like=segy, overwrite=True)
    drawn = survey.amplitude.isel(offset=0, missing_dims="ignore")
    shown = found.isel(offset=0, missing_dims="ignore")
    outcrop.view.sections(drawn, shown, path=out / "channels.png", title=segy.name)
    print(f"written: {store}, {predicted}, {out / 'channels.sgy'}, {out / 'channels.png'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
