"""The zoo's cards: what goes into each network and what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .card import AMPLITUDE, Card, InputCard, OutputCard, probability

_RGT = OutputCard("rgt", "relative geological time", "1", (0.0, 1.0), own_range=True, suffix="rgt")
_ANGLE = ("degree", (0.0, 180.0), 180.0)
# Those that others publish under other names of keys are there under ours.
_TORCHSEIS = "https://github.com/JintaoLee-Roger/torchseis"
# As in the data sets of Gao (2024), the angles of 2-D among them.
_GRID = "on the grid, where samples and traces are one unit apart"
_DIP = (
    f"{_GRID}: from the horizontal; below 90 towards where a strike 90 degrees larger points "
    "(the last crossline at strike 0), beyond 90 towards the other side"
)
_DIP_IN_SECTION = (
    f"{_GRID}: from the horizontal; below 90 towards the first trace of the section, beyond 90 "
    "towards the last"
)
_ONCE = "once, where the published script takes it twice, so that it writes 0.58 for 1"
_STRIKE = (
    f"{_GRID}: 0 from the first inline towards the last, 90 from the first crossline towards the "
    "last; not from north"
)


def _attributes(dims: int) -> tuple[OutputCard, ...]:
    """Outputs of the multi-task networks; the angles are 0 where there is no fault."""
    return (
        replace(_RGT, activation="sigmoid"),
        OutputCard("dhr", "denoised high-resolution image", "1", (-math.inf, math.inf),
                   suffix="dhr"),
        replace(probability("fault"), suffix="fsem"),
        OutputCard("fault_dip", "fault dip times fault probability", *_ANGLE,
                   suffix="fdip", activation="sigmoid",
                   comment=_DIP if dims == 3 else _DIP_IN_SECTION),
        OutputCard("fault_strike", "fault strike times fault probability", *_ANGLE,
                   suffix="fstrike", activation="sigmoid", comment=_STRIKE),
    )[: dims + 2]  # fmt: skip


def _classes(count: int) -> tuple[OutputCard, ...]:
    if count == 1:  # of which a softmax is 1 everywhere
        return (probability("class"),)
    return tuple(probability(f"class {i}", "softmax") for i in range(count))


def _mtl(name: str, dims: int, refine: bool) -> Card:
    """Card of one of the four multi-task networks."""
    attributes = _attributes(dims)
    return Card(
        name=name,
        task="refinement of structural and fault attributes"
        if refine
        else "relative geological time, denoised image and fault attributes",
        paper="Gao (2024), Geophysical Journal International 236(1), 565-592",
        doi="10.1093/gji/ggad424",
        published="https://github.com/lanl/mtl",
        inputs=tuple(
            InputCard(o.name, o.long_name, "half-turn", directed=True, dense=True)
            if o.units == "degree"
            else InputCard(o.name, o.long_name, "none", dense=True)
            for o in attributes
        )
        if refine
        # Its first norm takes any scale away; the root mean square guards against tiny amplitudes.
        else (InputCard("amplitude", "seismic amplitude", "rms"),),
        outputs=attributes,
        axes=("z", "crossline", "inline") if dims == 3 else ("z", "trace"),
        multiple=(1,) * dims,
        smallest=16,
        separate=refine,
        sections=dims == 2,
    )


def _fault(
    name: str,
    paper: str,
    doi: str,
    published: str,
    multiple: int,
    shipped: tuple[str, ...] = (),
) -> Card:
    return Card(
        name=name,
        task="fault probability",
        paper=paper,
        doi=doi,
        published=published,
        inputs=(AMPLITUDE,),
        outputs=(probability("fault"),),
        multiple=(multiple,) * 3,
        shipped=shipped,
    )


CARDS = {
    card.name: card
    for card in (
        _fault(
            "faultseg3d",
            "Wu, Liang, Shi & Fomel (2019), Geophysics 84(3), IM35-IM45",
            "10.1190/geo2018-0646.1",
            "https://github.com/xinwucwp/faultSeg",
            8,
            ("synthetic-v1",),
        ),
        _fault(
            "faultseg3dplus",
            "Li, Wu, Zhu, Ding & Wang (2024), Geophysics 89(5), N77-N91",
            "10.1190/geo2022-0778.1",
            "https://github.com/xinwucwp/faultSegPlus",
            16,
        ),
        Card(
            name="karstseg3d",
            task="karst probability",
            paper="Wu, Yan, Qi & Zeng (2020), JGR Solid Earth 125(9), e2020JB019685",
            doi="10.1029/2020JB019685",
            published="https://github.com/xinwucwp/KarstSeg3D",
            inputs=(AMPLITUDE,),
            outputs=(probability("karst"),),
            multiple=(16, 16, 16),
        ),
        Card(
            name="faultssl",
            task="fault probability",
            paper="Dou, Li, Dong & Xiao (2024), Geophysics 89(3), M79-M91",
            doi="10.1190/geo2023-0550.1",
            published=_TORCHSEIS,
            inputs=(InputCard("amplitude", "seismic amplitude", "zscore-clip-01"),),
            outputs=(probability("fault"),),
            multiple=(16, 16, 16),
            smallest=32,  # its norms need two points on the coarsest grid
        ),
        Card(
            name="bi21rgt3d",
            task="relative geological time",
            paper="Bi, Wu, Geng & Li (2021), JGR Solid Earth 126(9), e2021JB021882",
            doi="10.1029/2021JB021882",
            published=_TORCHSEIS,
            inputs=(AMPLITUDE,),
            outputs=(_RGT,),
            multiple=(8, 8, 8),
            smallest=16,
        ),
        Card(
            name="deepismnet",
            task="implicit structural model",
            paper="Bi, Wu, Li, Chang & Yong (2022), Geoscientific Model Development 15(17), "
            "6841-6861",
            doi="10.5194/gmd-15-6841-2022",
            published=_TORCHSEIS,
            inputs=(
                InputCard(
                    "horizons", "relative geological time, 0 to 1, of horizons, 0 elsewhere", "none"
                ),
                *(
                    InputCard(
                        f"normal_{axis}",
                        f"with use_norm: layers' unit normal on horizons, {along}, 0 elsewhere",
                        "none",
                        directed=True,
                    )
                    for axis, along in (
                        ("z", "downwards"),
                        ("crossline", "along increasing crosslines"),
                        ("inline", "along increasing inlines"),
                    )
                ),
                InputCard("faults", "1 on interpreted faults, 0 elsewhere", "none"),
            ),
            outputs=(
                OutputCard(
                    "scalar_field",
                    "implicit structural scalar field",
                    "1",
                    (-math.inf, math.inf),
                ),
            ),
            smallest=16,
        ),
        Card(
            name="channelseg3d",
            task="channel probability",
            paper="Gao, Wu & Liu (2021), Geophysics 86(4), IM73-IM83",
            doi="10.1190/geo2020-0572.1",
            published=_TORCHSEIS,
            inputs=(InputCard("amplitude", "seismic amplitude", "minmax"),),
            outputs=(None, probability("channel", "softmax")),
            axes=("inline", "crossline", "z"),
            multiple=(16, 16, 16),
            activation="softmax",
        ),
        Card(
            name="wang25channel",
            task="channel and fault probability",
            paper="Wang, Wu & Zhang (2025), Earth System Science Data 17(7), 3447-3471",
            doi="10.5194/essd-17-3447-2025",
            published=_TORCHSEIS,
            inputs=(AMPLITUDE,),
            outputs=(
                None,
                replace(probability("fault", "softmax"), comment=_ONCE),
                replace(probability("channel", "softmax"), comment=_ONCE),
            ),
            multiple=(8, 8, 8),
        ),
        Card(
            name="gem",
            task="whatever the prompt shows, through the volume",
            paper="Dou, Wu et al. (2025), arXiv:2507.00419",
            doi="10.48550/arXiv.2507.00419",
            published="https://douyimin.github.io/GEM",
            inputs=(
                InputCard(
                    "amplitude",
                    "seismic amplitude, scaled as for FaultSSL of the same author: how GEM's is, "
                    "was not published",
                    "zscore-clip-01",
                ),
                InputCard("prompt", "interpreted values, 0 elsewhere", "none"),
                InputCard("prompt", "1 where there is a prompt", "mask"),
            ),
            outputs=(
                OutputCard(
                    "property",
                    "property that the prompt shows",
                    "1",
                    (-1.0, 1.0),
                    activation="tanh",
                ),
            ),
            multiple=(16, 16, 16),
            smallest=48,
        ),
        Card(
            name="segformer3d",
            task="segmentation into classes, by your own weights",
            paper="Perera, Navard & Yilmaz (2024), CVPR Workshops, 4981-4988",
            doi="10.1109/CVPRW63382.2024.00503",
            published="https://github.com/OSUPCVLab/SegFormer3D",
            inputs=(AMPLITUDE,),
            outputs=_classes(3),
            multiple=(32, 32, 32),
            activation="softmax",
        ),
        _mtl("mtl-infer-2d", 2, refine=False),
        _mtl("mtl-infer-3d", 3, refine=False),
        _mtl("mtl-refine-2d", 2, refine=True),
        _mtl("mtl-refine-3d", 3, refine=True),
        Card(
            name="unet25d",
            task="fault probability, section by section with their neighbours",
            paper="outcrop's own layout; parts after Ronneberger, Fischer & Brox (2015), MICCAI",
            doi="10.1007/978-3-319-24574-4_28",
            published="none; train your own",
            inputs=(
                InputCard("amplitude", "seismic amplitude", "log8"),
                *(InputCard("", f"position along axis {i}", "position", i) for i in range(3)),
            ),
            outputs=(probability("fault"),),
            axes=("inline", "z", "crossline"),
            multiple=(1, 8, 8),
            sections=True,
        ),
    )
}


def card_of(
    name: str,
    *,
    tasks: Sequence[str] | None = None,
    use_norm: bool = False,
    in_channels: int = 1,
    num_classes: int | None = None,
    levels: int | None = None,
    version: str | None = None,
    **_: object,
) -> Card:
    """Return the card of a network built with these of its constructor's options.

    Parameters
    ----------
    name : str
        In the zoo.
    tasks : sequence of str, optional
        Of the multi-task networks: outputs of others are left out.
    use_norm : bool
        Of DeepISMNet: the inputs that are normals, too.
    in_channels : int
        Of SegFormer3D: the second volume and those after it are called input_2, input_3, ...
    num_classes : int, optional
        Channels that come out, where that can be chosen.
    levels : int, optional
        Of the network of sections: resolutions, each half of the one before.
    version : str, optional
        Of FaultSeg3D: its first weights were trained on volumes turned and scaled otherwise.
    """
    card = CARDS[name]
    if version == "2018":
        amplitude = replace(AMPLITUDE, normalization="minmax-255")
        card = replace(card, inputs=(amplitude,), axes=("inline", "crossline", "z"))
    if tasks is not None:
        faults = ("fsem", "fdip", "fstrike")
        suffixes = [s for task in tasks for s in (faults if task == "fault" else (task,))]
        card = replace(card, outputs=tuple(o for o in card.outputs if o and o.suffix in suffixes))
    if name == "deepismnet" and not use_norm:
        card = replace(card, inputs=tuple(i for i in card.inputs if not i.directed))
    if in_channels > 1:
        more = (InputCard(f"input_{i}", f"volume {i}", "zscore") for i in range(2, in_channels + 1))
        card = replace(card, inputs=(*card.inputs, *more))
    if num_classes is not None and num_classes != len(card.outputs):
        activation = "softmax" if num_classes > 1 else "sigmoid"
        card = replace(card, outputs=_classes(num_classes), activation=activation)
    if levels is not None:
        card = replace(card, multiple=(1, 2 ** (levels - 1), 2 ** (levels - 1)))
    return card
