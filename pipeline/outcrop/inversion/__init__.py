"""Full-waveform inversion with Deepwave, shots spread over a Dask cluster."""

from .acquisition import positions, ricker, streamer, surface_grid, wavelet
from .experiment import Options
from .gathers import open_shots
from .history import open_inversion
from .inverting import invert
from .migrating import migrate
from .model import velocity
from .modelling import model_shots
from .segy import ingest_shots
from .shaping import mask

__all__ = [
    "Options",
    "ingest_shots",
    "invert",
    "mask",
    "migrate",
    "model_shots",
    "open_inversion",
    "open_shots",
    "positions",
    "ricker",
    "streamer",
    "surface_grid",
    "velocity",
    "wavelet",
]
