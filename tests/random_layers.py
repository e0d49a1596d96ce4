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
        if name == "lines, recurrent":  # of many weights
            self.recurrent = nn.ModuleList((nn.LSTM(4, 4), nn.GRU(4, 4)))
            self.cells = nn.ModuleList((nn.LSTMCell(4, 4), nn.GRUCell(4, 4)))
            for kind in ("tanh", "relu"):
                self.recurrent.append(nn.RNN(4, 4, nonlinearity=kind))
                self.cells.append(nn.RNNCell(4, 4, nonlinearity=kind))

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


def recurrent(x, p):
    """Along lines, and a step at their first points."""
    steps = x.movedim(-1, 0)
    made = sum(layer(steps)[0] for layer in p.recurrent)
    firsts = (cell(steps[0]) for cell in p.cells)
    return (made + sum(y[0] if isinstance(y, tuple) else y for y in firsts)).movedim(0, -1)


def set_parts(x, p):
    """In place, in a copy."""
    y = x.clone()
    y[:, :, :: p.a + 1] = 0.5
    y[:, 0] = x[:, 1]
    y[x > 1] = -1
    return y


def as_another(x, p):
    """In the shape of another, and what is written over before it is read."""
    y = torch.empty_like(x)
    y[:] = x.flatten(2).relu().reshape_as(x) + x.mean(1, keepdim=True).expand_as(x)
    y[:, :1] = 0.5
    return y + x[:, :2].tile((2, *(1,) * p.rank)) + x.flatten(1, 2).view_as(x)


def unpooled(x, p):
    """Largest values, where they were."""
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[p.rank]
    back = {2: F.max_unpool2d, 3: F.max_unpool3d}[p.rank]
    values, places = pool(x, p.a, return_indices=True)
    return back(values, places, p.a, output_size=x.shape)


def smooth(x, p):
    """Sections as batches where there are three dimensions, as these are of two."""
    images = x if p.rank == 2 else x.movedim(2, 1).flatten(0, 1)
    how = {"scale_factor": (1.5, 0.7, 2)[p.a - 1], "align_corners": p.b > 1}
    made = F.interpolate(images, **how, mode="bicubic")
    for mode in ("bicubic", "bilinear"):
        made = made + F.interpolate(images, **how, mode=mode, antialias=True)
    return made if p.rank == 2 else made.unflatten(0, (1, -1)).movedim(1, 2)


def matrices(x):
    """One at each point, of which that and more is computed."""
    y = torch.tanh(x)
    m = torch.einsum("bi...,bj...->b...ij", y, y) + torch.arange(1, 5, dtype=x.dtype).diag()
    of = torch.linalg
    made = of.inv(m) + of.cholesky(m) + of.pinv(m) + of.matrix_exp(-m) + of.qr(m)[1]
    made = made + of.solve(m, m @ m) + torch.cholesky_solve(m, of.cholesky(m))
    made = made + of.solve_triangular(m, m, upper=False) * of.cond(m)[..., None, None]
    made = made + (of.eigvals(m).real + of.eig(m)[0].real).sum(-1)[..., None, None]
    values = of.eigh(m)[0] + of.eigvalsh(m) + of.svdvals(m) + of.svd(m)[1] + made.sum(-1)
    made = (values + (of.det(m) + of.slogdet(m)[1])[..., None]).movedim(-1, 1)
    return made + of.cross(x[:, :3], y[:, 1:], dim=1).sum(1, keepdim=True)


def spectra(x):
    """There and back, along one axis or two."""
    of, n, two = torch.fft, x.shape[-1], x.shape[-2:]
    y = of.ifft(of.fft(x)) + of.ifft2(of.fft2(x)) + of.ifftn(of.fftn(x, dim=(2, 3)), dim=(2, 3))
    z = of.irfft2(of.rfft2(x), s=two) + of.irfftn(of.rfftn(x, dim=(-2, -1)), s=two, dim=(-2, -1))
    return y.real + y.conj().imag + z + of.irfft(of.rfft(x), n=n) + of.hfft(of.ihfft(x), n=n)


def windows(x, p):
    """Spectra of windows along the last axis, and back."""
    how = {"n_fft": 4, "hop_length": p.a, "window": torch.ones(4, dtype=x.dtype)}
    lines = x[:, 1].flatten(0, -2)
    z = torch.stft(lines, pad_mode="constant", return_complex=True, **how)
    return x * torch.istft(z / (1 + z.abs()), length=x.shape[-1], **how).view(x[:, :1].shape)


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
        for name in ("cumsum", "cumprod", "logcumsumexp", "softmax", "log_softmax")
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
    "no rule": lambda x, p: p.plain(x.roll(1)),
    # Lines, and small matrices
    "spectra": lambda x, p: spectra(x),
    "windows": lambda x, p: windows(x, p),
    "distances": lambda x, p: image(torch.cdist(tokens(x), p.linear.weight), x),
    "matrices": lambda x, p: matrices(x),
    "Fourier": lambda x, p: p.plain(
        torch.fft.irfft(torch.fft.rfft(x, dim=2) * 0.5, n=x.shape[2], dim=2)
    ),
    "matrix along an axis": lambda x, p: p.plain(
        torch.tanh(x @ torch.ones(x.shape[-1], x.shape[-1], dtype=x.dtype).tril())
    ),
    "attention along an axis": lambda x, p: F.scaled_dot_product_attention(
        x.movedim(1, -1).sin(), p.linear(x.movedim(1, -1)), x.movedim(1, -1)
    ).movedim(-1, 1),
    "norm of lines": lambda x, p: F.layer_norm(x, x.shape[-1:]),
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
    "set": lambda x, p: set_parts(x, p),
    "as another": lambda x, p: as_another(x, p),
    "joined along an axis": lambda x, p: torch.cat((x[:, :, p.a :], x[:, :, : p.a] * 2), 2),
    "fixed positions": lambda x, p: x[:, [2, 0, 1, 3]].index_select(-1, torch.tensor([1, 0, 1])),
    "table": lambda x, p: F.embedding(x.argmax(1), p.linear.weight).movedim(-1, 1),
    "warped": lambda x, p: F.grid_sample(
        x,
        torch.tanh(other(x)[:, : p.rank] - 1.25).movedim(1, -1),
        padding_mode=("zeros", "border", "reflection")[p.a - 1],
        align_corners=p.b > 1,
    ),
    "compared with a table": lambda x, p: (
        torch.bucketize(x, p.linear.weight[0].sort()[0])
        + torch.searchsorted(p.linear.weight[0].sort()[0], x)
        + torch.isin(x.round(), p.linear.weight[0].round())
    ).to(x.dtype),
    "places": lambda x, p: unpooled(x, p),
    "sorted places": lambda x, p: (
        x.gather(1, x.argsort(1))
        + x.scatter(1, x.argsort(1), x)
        + x.scatter_add(1, x.argsort(1), x)
    ),
    "of sorted": lambda x, p: (
        x.topk(2, 1)[0].repeat(1, 2, *(1,) * p.rank)
        + torch.take_along_dim(x, x.cummax(1)[1].clamp(max=3), 1)
        + x.cummin(2)[0]
    ),
    "ranks": lambda x, p: (
        x.quantile(0.3, -1, True)
        + x.nanquantile(0.5, 2, keepdim=True)
        + alike(x.kthvalue(2, 1, True)[0] + x.median(1, True)[0] + x.nanmedian(1, True)[0], x)
        + alike(x.round().mode(1, True)[0], x)
    ),
    "coordinates": lambda x, p: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype).expand_as(x),
    "special": lambda x, p: (
        sum(
            getattr(torch.special, name)(inside(x))
            for name in ["entr", "erfcx", "i0", "i0e", "i1", "i1e", "log_ndtr", "log1p", "ndtr"]
        )
        + torch.special.xlog1py(x, inside(x))
    ),
    "complex": lambda x, p: torch.complex(x, other(x)).angle() + torch.polar(x, other(x)).abs(),
    # Matrices
    "products over all": lambda x, p: alike(
        (x.flatten(2) @ other(x).flatten(2).mT).sum(1).view(1, 4, *(1,) * p.rank) / x[0, 0].numel(),
        x,
    ),
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
    "smooth resampling": lambda x, p: smooth(x, p),
    "nearest, exactly": lambda x, p: F.interpolate(
        x, scale_factor=(1.5, 2, 0.6)[p.a - 1], mode="nearest-exact"
    ),
    "adaptive largest": lambda x, p: {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[p.rank](
        x, p.b
    ),
    "constant pad": lambda x, p: F.pad(x, (p.a, -1) * p.rank, value=0.5),
    "upsampled": lambda x, p: p.plain(F.interpolate(x, scale_factor=2)),
    "lines": lines(lambda x, p: p.along_turned(F.avg_pool1d(F.max_pool1d(p.along(x), 3, 1, 1), 1))),
    "lines, largest": lines(
        lambda x, p: (
            sum(F.max_pool1d(x, 3, 1, 1, return_indices=True))
            + F.interpolate(
                F.adaptive_max_pool1d(x, (x.shape[-1] + 1) // 2),
                size=x.shape[-1],
                mode="nearest-exact",
            )
        )
    ),
    "lines, recurrent": lines(recurrent),
    "lines adapted": lines(lambda x, p: F.adaptive_avg_pool1d(x, 1).expand(x.shape)),
    "lines resampled": lines(
        lambda x, p: F.interpolate(
            F.interpolate(x, scale_factor=2), size=x.shape[-1], mode="linear"
        )
    ),
}
