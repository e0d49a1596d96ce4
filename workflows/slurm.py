"""Faults of a survey on a SLURM cluster: a job for each worker, this script as the client.

    python slurm.py survey.zarr faults.zarr --weights w.pth --jobs 8 --partition gpu

Needs dask-jobqueue (pip install dask-jobqueue). Run it on a login node, in tmux or the like, or as
a small job of its own; the survey and the output must lie where all nodes see them. Interrupted,
the same command goes on where it stopped. Copy it and change what you like.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop


def main(
    survey: Annotated[Path, typer.Argument(help="Zarr written by `outcrop ingest`.")],
    out: Annotated[Path, typer.Argument(help="Zarr to write.")],
    weights: Annotated[str, typer.Option(help="File of weights.")],
    model: Annotated[str, typer.Option(help="Network: see `outcrop models`.")] = "faultseg3d",
    memory: Annotated[str, typer.Option(help="Of the GPU, for one worker.")] = "60GB",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    jobs: Annotated[int, typer.Option(help="Workers, with a GPU each.")] = 4,
    partition: Annotated[str, typer.Option(help="Of SLURM, with GPUs.")] = "gpu",
    time: Annotated[str, typer.Option(help="Longest time of a job.")] = "12:00:00",
) -> None:
    """Predict on workers that SLURM starts."""
    from dask.distributed import Client
    from dask_jobqueue import SLURMCluster

    survey, out = survey.absolute(), out.absolute()  # as the workers see them
    outcrop.open(survey)  # before jobs wait in the queue
    if (out / "zarr.json").exists():
        raise outcrop.OutcropError(f"{out}: already exists; choose another path")
    network = outcrop.models.load(model, weights=weights)
    on_gpu = device == "cuda"
    record, log = outcrop.Record(), outcrop.events.JsonLog(f"{out}.log.jsonl")
    with (
        SLURMCluster(
            queue=partition,
            walltime=time,
            cores=1,  # one tile at a time
            job_cpu=8,
            memory="64GB",
            job_extra_directives=["--gpus-per-task=1"] if on_gpu else [],
            worker_extra_args=["--resources", "GPU=1"] if on_gpu else [],
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=jobs)
        print(f"Dask dashboard: {client.dashboard_link}")
        client.wait_for_workers(1)  # others take part as they join
        faults = outcrop.predict(
            network,
            survey,
            out,
            memory=memory,
            device=device,
            client=client,
            progress=True,
            listeners=[record, log],
        )
    outcrop.view.report(record, f"{out}.report.html", outcrop.open(survey), faults)


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
