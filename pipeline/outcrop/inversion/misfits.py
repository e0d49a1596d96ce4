"""How far modelled traces are from observed ones: sums over traces, so that batches add up."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .physics import load_deepwave

Misfit = Callable[[Tensor, Tensor], Tensor]


def least_squares(modelled: Tensor, observed: Tensor) -> Tensor:
    """Sum of the squared differences [1]_.

    Parameters
    ----------
    modelled, observed : Tensor, (trace, time)

    References
    ----------
    .. [1] Tarantola, A., 1984, Inversion of seismic reflection data in the acoustic approximation:
       Geophysics, 49, 1259-1266, https://doi.org/10.1190/1.1441754
    """
    return load_deepwave().misfits.l2(modelled, observed, reduction="sum")


def correlation(modelled: Tensor, observed: Tensor) -> Tensor:
    """One minus the normalised correlation of each trace, summed: amplitudes do not count [1]_.

    Parameters
    ----------
    modelled, observed : Tensor, (trace, time)

    References
    ----------
    .. [1] Choi, Y., and Alkhalifah, T., 2012, Application of multi-source waveform inversion to
       marine streamer data using the global correlation norm: Geophysical Prospecting, 60,
       748-758, https://doi.org/10.1111/j.1365-2478.2012.01079.x
    """
    return load_deepwave().misfits.normalised_cross_correlation(modelled, observed, reduction="sum")


def envelope(modelled: Tensor, observed: Tensor) -> Tensor:
    """Mean squared difference of the envelopes of each trace, summed: cycles skip less [1]_.

    Parameters
    ----------
    modelled, observed : Tensor, (trace, time)

    References
    ----------
    .. [1] Bozdağ, E., Trampert, J., and Tromp, J., 2011, Misfit functions for full waveform
       inversion based on instantaneous phase and envelope measurements: Geophysical Journal
       International, 185, 845-870, https://doi.org/10.1111/j.1365-246X.2011.04970.x
    """
    return load_deepwave().misfits.envelope(modelled, observed, reduction="sum")


MISFITS: dict[str, Misfit] = {
    "least_squares": least_squares,
    "correlation": correlation,
    "envelope": envelope,
}
