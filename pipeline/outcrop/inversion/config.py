"""A run as a file: what `outcrop invert run.yaml` does."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, OutcropError
from .acquisition import ricker, time_step, wavelet
from .checks import check_shots
from .experiment import Options
from .gathers import open_shots
from .inverting import invert
from .kinds import check_kinds
from .model import grid_of, open_model
from .shaping import mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

# What a file says that is no argument of `invert`, or in another form.
_OWN = {"velocity", "observed", "output", "true", "pictures", "wavelet", "mask"}
_MAPPINGS = {"wavelet": ("ricker", "file"), "mask": ("water_bottom", "radius")}
_ARGUMENTS = {
    name
    for name, parameter in inspect.signature(invert).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
} - {"client", "overwrite", "on_iteration", "wavelet", "mask"}


class Run:
    """An inversion as a file describes it, checked for what can be checked without data.

    Parameters
    ----------
    path : path-like
        YAML. Paths in it are relative to its folder.

    Raises
    ------
    ArgumentError
        If it is no mapping, lacks something, or has a key that nothing knows.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.facts = _read(self.path)
        known = _OWN | _ARGUMENTS | set(Options.__dataclass_fields__)
        for key in self.facts:
            if key not in known:
                raise ArgumentError(
                    f"{self.path}: {key}: no such key; there are {', '.join(sorted(known))}"
                )
        for key in ("velocity", "observed", "output"):
            if key not in self.facts:
                raise ArgumentError(f"{self.path}: has no {key}: the path of a Zarr; add it")
        self._check_values()
        self.output = self._path("output")
        self.pictures = self._path("pictures") if "pictures" in self.facts else None
        self.drawn: list[Path] = []

    def invert(
        self,
        *,
        client: Client | None = None,
        overwrite: bool = False,
        on_iteration: Callable[[int, float], None] | None = None,
    ) -> xr.Dataset:
        """Run it; draw pictures if they are asked for."""
        facts = self.facts
        velocity, shots = self._path("velocity"), self._path("observed")
        arguments = {k: v for k, v in facts.items() if k not in _OWN}
        if arguments.get("storage_path") is not None:
            arguments["storage_path"] = self._path("storage_path")
        true = self._true(velocity)
        check_shots(open_shots(shots), grid_of(open_model(velocity)).dims, str(shots), True)
        source = self._wavelet(shots)
        allowed = None
        if "mask" in facts:
            allowed = mask(velocity, open_shots(shots), **facts["mask"])
        found = invert(
            velocity,
            shots,
            self.output,
            wavelet=source,
            mask=allowed,
            client=client,
            overwrite=overwrite,
            on_iteration=on_iteration,
            **arguments,
        )
        if self.pictures is not None:
            self._draw(found, shots, true, source)
        return found

    def _check_values(self) -> None:
        facts = dict(self.facts)
        for key, known in _MAPPINGS.items():
            if key not in facts:
                continue
            named = facts.pop(key)
            if not isinstance(named, dict):
                raise ArgumentError(f"{self.path}: {key}: is no mapping; see docs/inversion.md")
            for name, value in named.items():
                if name not in known:
                    raise ArgumentError(
                        f"{self.path}: {key}: {name}: no such key; there are {', '.join(known)}"
                    )
                facts[f"{key}: {name}"] = value
        check_kinds(facts, f"{self.path}: ")

    def _true(self, velocity: Path) -> xr.DataArray | None:
        """What the pictures show beside the inversion, so that drawing does not fail after it."""
        if self.pictures is not None and self.pictures.exists() and not self.pictures.is_dir():
            raise ArgumentError(f"{self.pictures}: is a file; choose another folder for pictures")
        if "true" not in self.facts:
            return None
        true, start = open_model(self._path("true")).vp, open_model(velocity).vp
        if true.sizes != start.sizes:
            raise ArgumentError(
                f"{self._path('true')}: has {dict(true.sizes)}, {velocity} has "
                f"{dict(start.sizes)}; resample one, or leave out true"
            )
        return true

    def _draw(
        self,
        found: xr.Dataset,
        shots: Path,
        true: xr.DataArray | None,
        source: xr.DataArray | None,
    ) -> None:
        from ..view.inversion import draw_inversion

        options = {k: v for k, v in self.facts.items() if k in Options.__dataclass_fields__}
        for name in ("storage_path", "memory", "batch_size"):
            options.pop(name, None)
        assert self.pictures is not None
        self.drawn = draw_inversion(
            found, open_shots(shots), self.pictures, true, source, **options
        )

    def _path(self, key: str) -> Path:
        return self.path.parent / os.fspath(self.facts[key])

    def _wavelet(self, path: Path) -> xr.DataArray | None:
        if "wavelet" not in self.facts:
            return None
        shots = open_shots(path)
        step, samples = time_step(shots["time"], str(path)), shots.sizes["time"]
        named = self.facts["wavelet"]
        if set(named) == {"ricker"}:
            return ricker(float(named["ricker"]), step, samples)
        if set(named) == {"file"}:
            file = self.path.parent / named["file"]
            try:
                values = np.load(file) if file.suffix == ".npy" else np.loadtxt(file)
                if values.dtype.kind not in "iuf" or values.ndim not in (1, 2) or not values.size:
                    raise ValueError(f"{values.dtype} of shape {values.shape} are no samples")
            except (OSError, ValueError, EOFError, AttributeError) as error:
                told = str(error).partition("\n")[0]
                raise ArgumentError(f"{file}: no wavelet: {told}; write numbers, (time)") from None
            if values.shape[-1] > samples:
                raise ArgumentError(
                    f"{file}: has {values.shape[-1]} samples, the traces {samples}; cut it"
                )
            silent = [(0, 0)] * (values.ndim - 1) + [(0, samples - values.shape[-1])]
            return wavelet(np.pad(values, silent), step)
        raise ArgumentError(
            f"{self.path}: wavelet: write ricker: and its frequency in Hz, or file: and a path to "
            "samples as .npy or text"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise OutcropError(
            f'{path}: reading it needs pyyaml ({error}); pip install "outcrop[inversion]"'
        ) from None
    try:
        facts = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(facts, dict):
        raise ArgumentError(f"{path}: holds no keys and values; see docs/inversion.md")
    # A bare `true:` is a boolean to YAML, as a key too.
    return {"true" if key is True else key: value for key, value in facts.items()}
