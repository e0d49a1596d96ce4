"""Faults of a survey on Kubernetes: workers by the Dask operator, data in an object store.

    python kubernetes.py s3://bucket/survey.zarr s3://bucket/faults.zarr --weights w.pth

Needs dask-kubernetes (pip install dask-kubernetes) and kubernetes.yaml beside this script, and runs
where the cluster's services can be reached: in a pod, or with `kubectl port-forward`. Interrupted,
the same command goes on where it stopped. Copy it and change what you like.
"""

from pathlib import Path
from typing import Annotated

import typer
import yaml

import outcrop
from outcrop.output import is_complete


def main(
    survey: Annotated[str, typer.Argument(help="Zarr written by `outcrop ingest`.")],
    out: Annotated[str, typer.Argument(help="Zarr to write.")],
    weights: Annotated[str, typer.Option(help="File of weights.")],
    model: Annotated[str, typer.Option(help="Network: see `outcrop models`.")] = "faultseg3d",
    memory: Annotated[str, typer.Option(help="Of the GPU, for one worker.")] = "60GB",
) -> None:
    """Predict on the workers of kubernetes.yaml."""
    from dask.distributed import Client
    from dask_kubernetes.operator import KubeCluster

    outcrop.open(survey)  # before machines are asked for
    if is_complete(out):
        raise outcrop.OutcropError(f"{out}: already exists; choose another path")
    spec = yaml.safe_load(Path(__file__).with_name("kubernetes.yaml").read_text())
    network = outcrop.models.load(model, weights=weights)
    record = outcrop.Record()
    with KubeCluster(custom_cluster_spec=spec) as cluster, Client(cluster) as client:
        print(f"Dask dashboard: {client.dashboard_link}")
        client.wait_for_workers(1)  # others take part as they join
        faults = outcrop.predict(
            network,
            survey,
            out,
            memory=memory,
            device="cuda",
            client=client,
            progress=True,
            listeners=[record],
        )
    outcrop.view.report(record, f"{out}.report.html", outcrop.open(survey), faults)


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
