"""MDIO v1 stores, under the names of a survey [1]_.

References
----------
.. [1] https://mdio-python.readthedocs.io
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr


def is_mdio(dataset: xr.Dataset) -> bool:
    """Whether a dataset is an MDIO v1 store of traces with inlines and crosslines."""
    return {"apiVersion", "createdOn"} <= set(dataset.attrs) and "trace_mask" in dataset


def as_survey(dataset: xr.Dataset) -> xr.Dataset:
    """Return an MDIO dataset as `outcrop.open` returns surveys, without headers.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of Dask arrays.

    Returns
    -------
    xarray.Dataset
        `time` is `twt`, `trace_mask` is the coordinate `live`, and where that is false samples
        are 0, which MDIO leaves NaN.
    """
    vertical = "depth" if "depth" in dataset.dims else "twt"
    names = {"time": "twt", "trace_mask": "live"}
    survey = dataset.rename({k: v for k, v in names.items() if k in dataset.variables})
    numbers = [n for n, v in survey.data_vars.items() if v.dtype.kind in "biuf"]
    survey = survey[numbers].set_coords("live")
    volumes = {n: v for n, v in survey.data_vars.items() if vertical in v.dims}
    for name, volume in volumes.items():
        survey[name] = volume.where(survey["live"], 0).astype(volume.dtype)
        survey[name].encoding = volume.encoding
    told: dict[str, Any] = {
        "twt": {"long_name": "two-way time", "units": "ms"},
        "depth": {"long_name": "depth", "standard_name": "depth", "units": "m"},
    }[vertical]
    for variable in survey.variables.values():
        for unit in variable.attrs.get("unitsV1", {}).values():
            variable.attrs["units"] = unit
    told["units"] = survey[vertical].attrs.get("units", told["units"])
    axis = survey[vertical].to_numpy().astype(np.float64)
    return survey.assign_coords({vertical: (vertical, axis, {**told, "positive": "down"})})
