"""Networks that nobody here wrote: MONAI's, as they come."""

import pytest
import torch
from monai.networks import nets

from outcrop import whole_volume

NETWORKS = {
    "UNet": (lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2), (32, 16, 44)),
    "SegResNet": (lambda: nets.SegResNet(3, 8, 1, 2), (16, 32, 24)),
    "DynUNet": (
        lambda: nets.DynUNet(
            3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], res_block=True
        ),
        (20, 16, 32),
    ),
    "DynUNet, deep supervision": (
        lambda: nets.DynUNet(
            2, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], deep_supervision=True, norm_name="batch"
        ),
        (48, 64),
    ),
    "AttentionUnet": (lambda: nets.AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)), (32, 16, 24)),
    "BasicUNet": (lambda: nets.BasicUNet(3, 1, 2, (4, 4, 8, 8, 16, 4)), (32, 16, 33)),
    "SwinUNETR": (lambda: nets.SwinUNETR(1, 2, feature_size=12), (64, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tiled_equals_whole(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make().double().eval()
    x = torch.randn(1, 1, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    modes = ("device", "disk")
    for storage_mode in modes[name == "SwinUNETR" :]:  # which takes as long as all others
        found = whole_volume(network, x, tile=(16,) * len(shape), storage_mode=storage_mode)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
