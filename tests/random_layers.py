"""Small layers from four channels to four, which together use every operator there is a rule for.

Each is a function of an image, of the weights in a `Layer`, and of two small numbers.
"""

import torch
import torch.nn.functional as F
from torch import nn

SIDES = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


class Layer(nn.Module):
    """One of `LAYERS`, bounded, beside what it was given."""

    def __init__(self, rank, name, a, b):
        super().__init__()
        self.rank, self.name, self.a, self.b = rank, name, a, b
        conv, turned = SIDES[rank]
        self.plain = conv(4, 4, 3, padding=1)
        self.even = conv(4, 4, 2 * a, padding="same", dilation=b, groups=2)
        self.strided = conv(4, 4, a + 1, stride=a, padding=a)
        self.turned = turned(4, 4, a + b, stride=a, padding=b - 1)
        self.along = nn.Conv1d(4, 4, 3, padding=1)
        self.along_turned = nn.ConvTranspose1d(4, 4, 3, padding=1)
        self.linear, self.prelu, self.layer_norm = nn.Linear(4, 4), nn.PReLU(4), nn.LayerNorm(4)
        self.batch_norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank](4)
        self.batch_norm.running_mean.uniform_()
        self.batch_norm.running_var.uniform_(1, 2)

    def forward(self, x):
        y = LAYERS[self.name](x, self)
        if y.shape[2:] != x.shape[2:]:
            y = F.interpolate(y, size=x.shape[2:])
        return x + torch.tanh(y)


def inside(x):
    """Values where logarithms, roots, inverses and inverse sines are finite."""
    return 0.5 + 0.4 * torch.tanh(x)


def other(x):
    """Another image beside the first, nowhere 0."""
    return torch.tanh(x.flip(1)) + 1.25


def space(x):
    """Dimensions of the grid."""
    return tuple(range(2, x.ndim))


def alike(y, x):
    """As many channels, at as many points."""
    return y.to(x.dtype).expand(x.shape)


def tokens(x):
    """(batch, point, channel)."""
    return x.flatten(2).transpose(1, 2)


def image(t, x):
    """The way back."""
    return t.transpose(1, 2).reshape(x.shape)


def lines(function):
    """A function of lines along the last axis."""

    def on(x, p):
        apart = x.movedim(1, -2)
        y = function(apart.reshape(-1, 4, x.shape[-1]), p)
        return y.reshape(apart.shape).movedim(-2, 1)

    return on


def point(function, domain=inside):
    return lambda x, p: function(domain(x))


def pair(function):
    return lambda x, p: function(x, other(x)).to(x.dtype)


def truth(function):
    return lambda x, p: function(x > 0.1, other(x) > 1).to(x.dtype)


def over_channels(function):
    return lambda x, p: alike(function(x, 1), x)


def over_space(function):
    return lambda x, p: alike(function(x, space(x)), x)


def along(function):
    return lambda x, p: function(x, 1 + (p.a + p.b) % p.rank + 1)


def same(x):
    return x


def thrice(x):
    return 3 * x


UNARY = [
    "acos", "asin", "ceil", "cos", "cosh", "erf", "exp", "expm1", "log", "log10", "log1p",
    "log2", "logit", "neg", "reciprocal", "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "square",
    "tan", "tanh", "isfinite", "isinf", "isnan",
]  # fmt: skip
STEPS = ["abs", "atan", "floor", "round", "sign", "trunc", "nan_to_num"]
SMOOTH = [
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "logsigmoid", "mish", "relu", "relu6", "selu", "silu", "softplus",
    "softshrink", "softsign", "normalize",
]  # fmt: skip
BINARY = [
    "add", "atan2", "copysign", "div", "floor_divide", "fmod", "hypot", "maximum", "minimum",
    "mul", "remainder", "rsub", "sub", "eq", "ge", "gt", "le", "lt", "ne", "max", "min",
]  # fmt: skip
LOGICAL = ["logical_and", "logical_or", "bitwise_and", "bitwise_or", "eq", "ne"]
REDUCED = ["amax", "amin", "mean", "sum", "std", "var", "logsumexp"]

LAYERS = {
    **{name: point(getattr(torch, name)) for name in UNARY},
    **{name: point(getattr(torch, name), thrice) for name in STEPS},
    **{name: point(getattr(F, name), same) for name in SMOOTH},
    **{f"{name} of two": pair(getattr(torch, name)) for name in BINARY},
    **{f"{name} of truths": truth(getattr(torch, name)) for name in LOGICAL},
    **{
        f"{name} of channels": over_channels(
            lambda x, dim, f=getattr(torch, name): f(x, dim=dim, keepdim=True)
        )
        for name in (*REDUCED, "prod", "argmax", "argmin")
    },
    **{
        f"{name} of all": over_space(
            lambda x, dim, f=getattr(torch, name): f(x, dim=dim, keepdim=True)
        )
        for name in REDUCED[:-1]
    },
    **{
        f"{name} along an axis": along(
            lambda x, dim, f=getattr(torch, name): alike(f(x, dim=dim, keepdim=True), x)
        )
        for name in REDUCED
    },
    **{
        f"{name} along an axis": along(getattr(torch, name))
        for name in ("cumsum", "cumprod", "softmax", "log_softmax")
    },
    **{
        f"{name} of channels": lambda x, p, f=getattr(torch, name): f(x, 1)
        for name in ("cumsum", "cumprod", "softmax", "log_softmax")
    },
    # Points
    "glu": lambda x, p: F.glu(torch.cat((x, x.flip(1)), 1), 1),
    "not": lambda x, p: ((x > 0).logical_not() & ~(other(x) > 1)).to(x.dtype),
    "pow": lambda x, p: inside(x) ** (p.a + 0.5),
    "rsub": lambda x, p: 1 - x,
    "xlogy": lambda x, p: torch.xlogy(x, inside(x)),
    "addcmul": lambda x, p: torch.addcmul(x, other(x), x, value=0.3),
    "addcdiv": lambda x, p: torch.addcdiv(x, x, other(x), value=0.3),
    "lerp": lambda x, p: torch.lerp(x, other(x), 0.25 * p.a),
    "clamp": lambda x, p: x.clamp(-0.3, 0.2 * p.a).clamp_min(-0.2).clamp_max(0.5),
    "threshold": lambda x, p: F.threshold(x, 0.1, -1.0),
    "prelu": lambda x, p: p.prelu(x),
    "where": lambda x, p: torch.where(x > 0, other(x), -x),
    "masked_fill": lambda x, p: x.masked_fill(other(x) > 1.2, 0.5),
    "batch_norm": lambda x, p: p.batch_norm(x),
    # Channels
    "norm of channels": lambda x, p: alike(x.norm(dim=1, keepdim=True), x),
    "norm of all": lambda x, p: alike(x.norm(p=2, dim=space(x), keepdim=True), x),
    "any and all": lambda x, p: alike((x > 0.2).any(1, True) & ~(x > -0.2).all(1, True), x),
    "sort": lambda x, p: x.sort(1)[0] + 0.1 * x.sort(1, descending=True)[1],
    "max and min": lambda x, p: alike(x.max(1, True)[0] - x.min(1, True)[1], x),
    "layer_norm": lambda x, p: image(p.layer_norm(tokens(x)), x),
    # The whole volume
    "group_norm": lambda x, p: F.group_norm(x, 1 if p.a == 1 else 2),
    "instance_norm": lambda x, p: F.instance_norm(x),
    "all_norm": lambda x, p: F.layer_norm(x, x.shape[1:]),
    "adaptive": lambda x, p: {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[p.rank](
        x, 1 if p.a == 1 else p.b
    ),
    "attention of points": lambda x, p: image(
        F.scaled_dot_product_attention(tokens(x), tokens(x), p.linear(tokens(x))), x
    ),
    "points by points": lambda x, p: image(
        torch.bmm((torch.bmm(tokens(x), x.flatten(2)) / 4).softmax(-1), tokens(x)), x
    ),
    "no rule": lambda x, p: p.plain(torch.logcumsumexp(x, -1)),
    # Views
    "there and back": lambda x, p: x.permute(0, *space(x), 1).relu().movedim(-1, 1).contiguous(),
    "one more": lambda x, p: x.unsqueeze(2).sin().squeeze(2),
    "unflatten": lambda x, p: x.unflatten(1, (2, 2)).flip(2).flatten(1, 2),
    "flat": lambda x, p: (x.flatten(2) * 2).unflatten(2, x.shape[2:]),
    "view": lambda x, p: x.view(1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "stack": lambda x, p: torch.stack((x, other(x)), 2)[:, :, p.a % 2],
    "slices": lambda x, p: torch.cat((x[:, 2:], x[:, ::2]), 1),
    "every other": lambda x, p: x[..., :: p.b],
    "flip": lambda x, p: x.flip(2),
    "roll": lambda x, p: x.roll(p.a, -1),
    "repeat": lambda x, p: x[:, :2].repeat(1, 2, *(1,) * p.rank),
    "plane": lambda x, p: x[:, :, p.a : p.a + 1].expand(x.shape),
    "chunk": lambda x, p: torch.cat(x.chunk(2, 1)[::-1], 1),
    # Matrices
    "linear": lambda x, p: image(p.linear(tokens(x)), x),
    "matmul": lambda x, p: image(tokens(x) @ p.linear.weight, x),
    "mm": lambda x, p: image((tokens(x)[0].mm(p.linear.weight.t()))[None], x),
    "turned": lambda x, p: (x.flatten(2)[0].t() * 2).T[None].unflatten(2, x.shape[2:]),
    "turned matrix": lambda x, p: (p.linear.weight @ x[0].flatten(1)).reshape(x.shape),
    "einsum": lambda x, p: torch.einsum("bc...,dc->bd...", x, p.linear.weight),
    # Kernels
    "even": lambda x, p: p.even(x),
    "strided": lambda x, p: p.strided(x),
    "transposed": lambda x, p: p.turned(x),
    "max_pool": lambda x, p: {2: F.max_pool2d, 3: F.max_pool3d}[p.rank](
        x, 3, p.b, 1, min(p.a, (min(x.shape[2:]) + 1) // 2)
    ),
    "avg_pool": lambda x, p: {2: F.avg_pool2d, 3: F.avg_pool3d}[p.rank](
        x, 3, p.b, 1, p.a > 1, p.b > 1
    ),
    "larger": lambda x, p: (
        F.avg_pool2d(x, p.a)
        if p.rank == 2
        else F.interpolate(F.interpolate(x, scale_factor=p.a + 0.5), scale_factor=1 / p.b)
    ),
    "linear resampling": lambda x, p: F.interpolate(
        x,
        scale_factor=(1.5, 2, 0.6)[p.a - 1],
        mode={2: "bilinear", 3: "trilinear"}[p.rank],
        align_corners=p.b > 1,
    ),
    "constant pad": lambda x, p: F.pad(x, (p.a, -1) * p.rank, value=0.5),
    "upsampled": lambda x, p: p.plain(F.interpolate(x, scale_factor=2)),
    "lines": lines(lambda x, p: p.along_turned(F.avg_pool1d(F.max_pool1d(p.along(x), 3, 1, 1), 1))),
    "lines adapted": lines(lambda x, p: F.adaptive_avg_pool1d(x, 1).expand(x.shape)),
    "lines resampled": lines(
        lambda x, p: F.interpolate(
            F.interpolate(x, scale_factor=2), size=x.shape[-1], mode="linear"
        )
    ),
}
