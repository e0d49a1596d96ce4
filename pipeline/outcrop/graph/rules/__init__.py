"""One rule per operator: which boxes it needs, how to evaluate it on them, what it costs.

To add an operator: if each of its output points depends on the same point of its operands
alone, add its name to `_POINTWISE`; otherwise write a subclass of `Rule` and add it to `RULES`.
An operator that is not in the table is evaluated whole.
"""

from __future__ import annotations

import math

from .along import (
    Along,
    Beside,
    Concatenate,
    Fourier,
    Lookup,
    Matrices,
    Sampled,
    Scatter,
    Spectrogram,
)
from .base import Opaque, Rule, Values
from .convolution import Convolution, TransposedConvolution
from .pointwise import (
    BatchNorm,
    Component,
    Convert,
    Expand,
    LayerNorm,
    Linear,
    Normalize,
    PerChannel,
    Pointwise,
    Rectify,
)
from .recurrent import Recurrent
from .reduce import Extreme, Gram, Moments, Reduce, Reduction, Sum
from .resample import (
    Gather,
    Nearest,
    at_maps,
    flip_maps,
    pad_maps,
    repeat_maps,
    roll_maps,
    slice_maps,
    spread_maps,
)
from .taps import (
    LargestOf,
    Separable,
    adaptive_taps,
    cubic_taps,
    linear_taps,
    smooth_cubic_taps,
    smooth_linear_taps,
)
from .tokens import Attention, Distances, Einsum, MatMul
from .unpool import Places, Unpool
from .upsampled import UpsampledConvolution
from .views import Drop, OnGrid, Permute, Stack, Unsqueeze, View, Whole
from .window import AveragePool, Pool

__all__ = ["RULES", "Reduce", "Rule", "Values"]

_POINTWISE = (
    "abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or ceil celu "
    "clamp clamp_max clamp_min copysign cos cosh div elu eq erf exp expm1 floor floor_divide fmod "
    "ge gelu gt hardshrink hardsigmoid hardswish hardtanh hypot isnan le "
    "leaky_relu lerp log log10 log1p log2 logical_and logical_not logical_or logit lt "
    "masked_fill maximum minimum mish mul nan_to_num ne neg pow reciprocal relu6 remainder "
    "round rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink sqrt square sub "
    "tan tanh threshold trunc where xlogy "
    "__and__ __or__ __xor__ absolute acosh arccos arcsin arctan arctan2 asinh atanh bitwise_xor "
    "clip deg2rad digamma divide erfc erfinv exp2 fix fmax fmin frac greater greater_equal "
    "heaviside isneginf isposinf less less_equal lgamma logaddexp logaddexp2 logical_xor multiply "
    "negative not_equal rad2deg sgn signbit sinc special_erf special_expit special_xlogy subtract "
    "true_divide special_entr special_erfcx special_i0 special_i0e special_i1 special_i1e "
    "special_log_ndtr special_log1p special_xlog1py angle complex polar conj_physical "
    "__lshift__ __rshift__ bitwise_left_shift bitwise_right_shift "
    "fake_quantize_per_tensor_affine igamma igammac polygamma special_bessel_j0 "
    "special_bessel_j1"
)
_COPYING = {"isfinite": 2, "isinf": 1, "ldexp": 1, "log_sigmoid": 2, "special_ndtr": 3}
_ALONG = (
    "cummax cummin cumprod cumsum gather glu linalg_cross logcumsumexp sort take_along_dim topk"
)
_FOURIER = (
    "fft_fft fft_fft2 fft_fftn fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_irfft "
    "fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn"
)
_MATRICES = (
    "cholesky_solve linalg_cholesky linalg_cond linalg_det linalg_eig linalg_eigh linalg_eigvals "
    "linalg_eigvalsh linalg_inv linalg_matrix_exp linalg_pinv linalg_qr linalg_slogdet "
    "linalg_solve linalg_solve_triangular linalg_svd linalg_svdvals"
)
_RECURRENT = "gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell"
_REDUCTIONS = (
    "all amax amin any argmax argmin linalg_vector_norm max mean median min mode "
    "nanmedian norm prod std sum var"
)

_OTHERWISE = Opaque()


class _Table(dict[str, Rule]):
    def __missing__(self, op: str) -> Rule:
        return _OTHERWISE


RULES: dict[str, Rule] = _Table(
    {
        **dict.fromkeys(_POINTWISE.split(), Pointwise()),
        **{op: Pointwise(copies=copies) for op, copies in _COPYING.items()},
        **dict.fromkeys(_ALONG.split(), Along()),
        **dict.fromkeys(("log_softmax", "softmax"), Along(copies=1)),
        **dict.fromkeys(("scatter", "scatter_add"), Scatter()),
        **dict.fromkeys(_FOURIER.split(), Fourier()),
        **dict.fromkeys(_MATRICES.split(), Matrices()),
        **dict.fromkeys(("real", "imag"), Component()),
        **dict.fromkeys(_RECURRENT.split(), Recurrent()),
        "relu": Rectify(),
        "prelu": PerChannel(),
        "cat": Concatenate(),
        "stack": Stack(),
        "_native_batch_norm_legit_no_training": BatchNorm(),
        "normalize": Normalize(),
        "layer_norm": LayerNorm(),
        "linear": Linear(),
        **dict.fromkeys(("istft", "stft"), Spectrogram()),
        "convert": Convert(),
        "lookup": Lookup(),
        "grid_sampler": Sampled(),
        **dict.fromkeys(("bucketize", "isin", "searchsorted"), Beside()),
        "expand": Expand(),
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), Convolution()),
        **dict.fromkeys(
            ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), TransposedConvolution()
        ),
        **dict.fromkeys(("upsampled_conv2d", "upsampled_conv3d"), UpsampledConvolution()),
        **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), Pool(-math.inf)),
        **dict.fromkeys([f"max_pool_places{n}d" for n in (2, 3)], Places(-math.inf)),
        "unpool": Unpool(),
        **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), AveragePool()),
        **dict.fromkeys(
            [
                f"{op}{n}d"
                for op in ("upsample_nearest", "_upsample_nearest_exact")
                for n in (1, 2, 3)
            ],
            Nearest(),
        ),
        **dict.fromkeys(
            ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
            Separable(linear_taps),
        ),
        **dict.fromkeys(
            ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            Separable(adaptive_taps),
        ),
        **dict.fromkeys([f"adaptive_max_pool{n}d" for n in (1, 2, 3)], LargestOf(adaptive_taps)),
        "upsample_bicubic2d": Separable(cubic_taps),
        "_upsample_bilinear2d_aa": Separable(smooth_linear_taps),
        "_upsample_bicubic2d_aa": Separable(smooth_cubic_taps),
        "pad": Gather(pad_maps),
        "slice": Gather(slice_maps),
        "flip": Gather(flip_maps),
        "roll": Gather(roll_maps),
        "repeat": Gather(repeat_maps),
        "spread": Gather(spread_maps),
        "at": Gather(at_maps),
        **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), Permute()),
        **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), View()),
        "unsqueeze": Unsqueeze(),
        **dict.fromkeys(("squeeze", "select"), Drop()),
        "whole": Whole(),
        "on_grid": OnGrid(),
        "regained": OnGrid(),
        **dict.fromkeys(("matmul", "bmm", "mm"), MatMul()),
        "cdist": Distances(),
        "einsum": Einsum(),
        "scaled_dot_product_attention": Attention(),
        **dict.fromkeys(_REDUCTIONS.split(), Reduction()),
        "logsumexp": Reduction(copies=1),
        "kthvalue": Reduction(copies=1, ranks=True),
        **dict.fromkeys(("nanquantile", "quantile"), Reduction(copies=2, ranks=True)),
        "moments": Moments(),
        "global_var": Moments(),
        "gram": Gram(),
        "global_sum": Sum("sum"),
        "global_mean": Sum("mean"),
        "global_norm": Sum("norm"),
        "global_amax": Extreme(1),
        "global_amin": Extreme(-1),
    }
)
