"""KarstSeg3D: paleokarst collapse features, by the U-Net of FaultSeg3D plus.

Wu, X., Yan, S., Qi, J. & Zeng, H. (2020). Deep learning for characterizing paleokarst collapse
features in 3-D seismic images. Journal of Geophysical Research: Solid Earth, 125(9),
e2020JB019685. https://doi.org/10.1029/2020JB019685
"""

from __future__ import annotations

from .faultseg3dplus import FaultSeg3dPlus


class KarstSeg3d(FaultSeg3dPlus):
    """Five resolution levels, joined by skip connections; trained to find karst."""
