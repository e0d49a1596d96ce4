"""Pictures: what is drawn, where, and how little is read for it."""

import io
import sys
from pathlib import Path

import dask.array
import matplotlib.image
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from command_line import outcrop_command
from outcrop import OutcropError
from outcrop.arrays import spoken
from outcrop.errors import ArgumentError, SurveyError
from outcrop.graph import capture
from outcrop.horizons import horizons
from outcrop.planner import make_plan
from outcrop.survey import open as open_survey
from outcrop.training.synthetic import synthetic_survey
from outcrop.view import draw_gathers, draw_models, draw_plan, sections, surfaces

SHAPE = (24, 30, 40)


@pytest.fixture(scope="module")
def survey():
    """A survey with bins of 25 m by 12.5 m and a missing corner."""
    made = synthetic_survey(SHAPE, seed=1, faults=3)
    live = np.ones(SHAPE[:2], bool)
    live[:8, :10] = False
    i, j = np.indices(SHAPE[:2])
    dims = ("inline", "crossline")
    hidden = np.where(live, 0.0, np.nan)
    made = made.assign_coords(
        live=(dims, live),
        cdp_x=(dims, 20.0 * i + 7.5 * j + hidden),
        cdp_y=(dims, 15.0 * i - 10.0 * j + hidden),
    )
    made["amplitude"] = made.amplitude.where(made.live, 0.0)
    return made


def panels(figure):
    return figure.axes[:3]


def drawn(ax, n=0):
    return ax.get_images()[n].get_array()


def test_the_three_sections_are_where_they_are_said_to_be(survey):
    amplitude = survey.amplitude
    figure = sections(amplitude, inline=1004, crossline=2011, twt=1040)
    over_inline, over_crossline, time_slice = panels(figure)
    np.testing.assert_array_equal(
        drawn(over_inline).filled(0), amplitude.sel(inline=1004).transpose("twt", "crossline")
    )
    np.testing.assert_array_equal(
        drawn(over_crossline).filled(0), amplitude.sel(crossline=2011).transpose("twt", "inline")
    )
    np.testing.assert_array_equal(drawn(time_slice).filled(0), amplitude.sel(twt=1040))
    assert over_inline.get_title() == "inline 1004"
    assert over_crossline.get_title() == "crossline 2011"
    assert time_slice.get_title() == "TWT 1040 ms"
    assert (over_inline.get_xlabel(), over_inline.get_ylabel()) == ("crossline", "TWT (ms)")
    assert (time_slice.get_xlabel(), time_slice.get_ylabel()) == ("crossline", "inline")
    # Time grows downwards, inlines upwards, and a sample's centre is its coordinate.
    assert over_inline.get_ylim() == (1000 + 39.5 * 4, 998)
    assert over_inline.get_xlim() == (2000, 2060)
    assert time_slice.get_ylim() == (1000.5, 1024.5)


def test_an_overlay_of_a_part_lies_where_it_belongs(survey):
    part = survey.fault.astype(np.float32).isel(
        inline=slice(2, 9), crossline=slice(5, 31), twt=slice(3, 20)
    )
    whole = xr.full_like(survey.amplitude, 0).where(False)
    whole.loc[{d: part[d] for d in part.dims}] = part
    for found, due in zip(
        panels(sections(survey.amplitude, part)),
        panels(sections(survey.amplitude, whole, **{
            d: part[d][part.sizes[d] // 2].item() for d in part.dims
        })),
        strict=True,
    ):  # fmt: skip
        top, expected = (ax.get_images()[1].get_array() for ax in (found, due))
        np.testing.assert_array_equal(top.mask, expected.mask)
        assert not top.mask.all()
        assert found.get_title() == due.get_title()
        (box,) = found.patches  # where it ends
        for name, ends in (
            (found.get_xlabel(), box.get_bbox().intervalx),
            (found.get_ylabel(), box.get_bbox().intervaly),
        ):
            values = part[name.split()[0].lower()].values
            half = (values[1] - values[0]) / 2
            assert sorted(ends) == [values[0] - half, values[-1] + half]
        assert not due.patches
    apart = sections(survey.amplitude, part, inline=survey.inline[-1].item())
    assert panels(apart)[0].get_images()[1].get_array().mask.all()
    assert [len(ax.patches) for ax in panels(apart)] == [0, 1, 1]
    assert panels(sections(survey.amplitude, part[:, :, 3:4]))[0].patches[0].get_height() == 4
    with pytest.raises(SurveyError, match="overlay: its inline is not the seismic's"):
        sections(survey.amplitude, part.assign_coords(inline=part.inline + 0.5))
    with pytest.raises(SurveyError, match="overlay: its twt is not the seismic's"):
        sections(survey.amplitude, part.isel(twt=slice(None, None, -1)))


def test_traces_beside_a_missing_one_are_drawn_whole(survey):
    few = survey.drop_vars("live").isel(inline=slice(0, 5), crossline=slice(0, 6)).copy(deep=True)
    few.amplitude.values[2, 3] = np.nan
    found = horizons(few.rgt, [0.5])
    for figure in (sections(few.amplitude), surfaces(few.amplitude, found)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = figure.axes[0].get_images()[0].make_image(canvas.get_renderer())[0]
        blank = (image[image.shape[0] // 2, :, 3] == 0).mean()
        assert blank == pytest.approx(1 / 6, abs=0.01)


def test_missing_traces_are_blank_and_colours_are_symmetric(survey):
    figure = sections(survey.amplitude, inline=1004, crossline=2011, twt=1040)
    over_inline, over_crossline, time_slice = panels(figure)
    np.testing.assert_array_equal(drawn(time_slice).mask, ~survey.live.values)
    assert drawn(over_inline).mask[:, :10].all()
    assert not drawn(over_inline).mask[:, 10:].any()
    image = over_crossline.get_images()[0]
    values = np.abs(np.concatenate([drawn(ax).compressed() for ax in panels(figure)]))
    assert image.norm.vmax == pytest.approx(np.percentile(values, 99))
    assert image.norm.vmin == -image.norm.vmax


def test_colours_of_what_is_never_negative_begin_at_its_least(survey):
    image = panels(sections(survey.rgt))[0].get_images()[0]
    drawn_ = np.concatenate([drawn(ax).compressed() for ax in panels(sections(survey.rgt))])
    assert (image.norm.vmin, image.norm.vmax) == (drawn_.min(), drawn_.max())
    rounded = survey.rgt - float(drawn_.min()) - 1e-9  # as what is brought to its own range may be
    assert panels(sections(rounded))[0].get_images()[0].norm.vmin == pytest.approx(0, abs=1e-6)
    dip = survey.rgt * 90
    dip.attrs["valid_range"], dip.encoding["scale_factor"] = [0.0, 1.0], 180.0
    image = panels(sections(dip))[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (0, 180)
    steep = dip.where(dip > 45)  # as xarray computes it: the range stays, what it is of does not
    assert steep.attrs["valid_range"] == [0.0, 1.0]
    drawn_ = np.concatenate([drawn(ax).compressed() for ax in panels(sections(steep))])
    image = panels(sections(steep))[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (drawn_.min(), drawn_.max())


@pytest.mark.parametrize("first", [1001, 10_001_001])
def test_numbers_of_lines_are_whole(survey, first):
    many = survey.assign_coords(inline=survey.inline + first - 1001)
    found = horizons(many.rgt, [0.125, 0.6])
    for figure in (sections(many.amplitude), surfaces(many.amplitude, found)):
        figure.draw_without_rendering()
        assert figure.axes[0].get_title() == f"inline {first + 12}"
        for ax in figure.axes[:3]:
            assert ax.xaxis.get_offset_text().get_text() == ""
            assert ax.yaxis.get_offset_text().get_text() == ""
    few = panels(sections(many.amplitude[:4]))[2].get_yticks()
    np.testing.assert_array_equal(few, few.round())
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0.125", "0.6"]
    with pytest.raises(SurveyError, match=f"inline 5: .* has {first} to {first + 23}$"):
        sections(many.amplitude, inline=5)


def test_coordinates_are_told_without_noise():
    told = [spoken(v) for v in (np.int32(12345678), 1234567.0, np.float32(1004.1), 12350.25, "a")]
    assert told == ["12345678", "1234567", "1004.1", "12350.25", "a"]


def test_horizons_are_drawn_on_the_lines_that_are_there(survey):
    found = horizons(survey.rgt, [0.3, 0.6])
    (name,) = found.data_vars
    part = survey.amplitude.isel(inline=slice(10, 20), crossline=slice(4, None))
    section, surface = surfaces(part, found).axes[:2]
    assert surface.get_aspect() == pytest.approx(25.0 / 6.25)  # to scale
    assert section.get_title() == "inline 1016"
    for line, level in zip(section.lines, found[name], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), level.sel(inline=1016)[4:])
    many = surfaces(survey.amplitude, horizons(survey.rgt, np.linspace(0.1, 0.9, 17))).axes[0]
    assert len({tuple(line.get_color()) for line in many.lines}) == 17
    names = [text.get_text() for text in many.get_legend().get_texts()]
    assert names == ["0.1", "0.25", "0.4", "0.55", "0.7", "0.85"]  # which hide less
    with pytest.raises(SurveyError, match="horizons: have no inline 1010, which the seismic has"):
        surfaces(survey.amplitude.isel(inline=slice(2, None)), found.isel(inline=slice(9)))


def test_horizons_of_a_part_are_drawn_where_it_lies(survey):
    part = survey.isel(inline=slice(10, 20), crossline=slice(4, 14))
    found = horizons(part.rgt, 0.5)
    section, surface = surfaces(survey.amplitude, found).axes[:2]
    assert section.get_title() == "inline 1016"
    line = np.full(survey.sizes["crossline"], np.nan)
    line[4:14] = found.horizon_twt[0, 5]
    np.testing.assert_array_equal(section.lines[0].get_ydata(), line)
    image = drawn(surface).filled(np.nan)
    assert image.shape == survey.live.shape
    np.testing.assert_array_equal(image[10:20, 4:14], found.horizon_twt[0])
    assert np.isfinite(image).sum() == found.horizon_twt.notnull().sum()
    (around,) = surface.patches
    assert around.get_bbox().get_points().tolist() == [[2008, 1010.5], [2028, 1020.5]]


def test_pictures_of_few_lines_are_no_wider_than_others(survey):
    few = survey.isel(inline=slice(3))
    figure = surfaces(few.amplitude, horizons(few.rgt, [0.3, 0.5, 0.7]))
    maps = figure.axes[1:4]
    assert len({ax.get_position().x0 for ax in maps}) == 1  # below one another
    assert figure.get_figwidth() < 13
    assert sections(few.amplitude).get_figwidth() < 19


def test_each_horizon_is_a_map_once_and_missing_traces_are_blank(survey):
    turned = survey.isel(crossline=slice(None, None, -1)).isel(inline=slice(4, 5))  # a 2-D line
    figure = surfaces(turned.amplitude, horizons(turned.rgt, [0.3, 0.6]))
    section, *maps = figure.axes[:3]
    assert [ax.get_title() for ax in figure.axes[1:3]] == [
        "relative time 0.3",
        "relative time 0.6",
    ]
    assert len(figure.axes) == 5  # with a colour bar each
    np.testing.assert_array_equal(drawn(section).mask[0], ~turned.live.values[0])
    for ax in maps:
        np.testing.assert_array_equal(drawn(ax).mask[0], ~turned.live.values[0])
        assert ax.get_xlim() == section.get_xlim() == (2060, 2000)
        assert ax.get_ylim() == (1004.5, 1005.5)
    crossline = survey.isel(crossline=[20])
    found = horizons(crossline.rgt, 0.4)
    section, surface, bar = surfaces(crossline.amplitude, found.isel(horizon=0)).axes
    assert (section.get_title(), section.get_xlabel()) == ("crossline 2041", "inline")
    np.testing.assert_array_equal(section.lines[0].get_ydata(), found.horizon_twt[0, :, 0])
    assert list(surface.get_xticks()) == [2041]
    assert bar.get_ylabel() == "TWT (ms)"
    assert bar.yaxis_inverted()


def test_overlay_above_its_threshold_alone(survey):
    probability = (survey.fault * 0.6 + survey.rgt * 0.3).drop_vars("live")
    probability[:8, :10] = 1.0  # where there is no trace
    probability.attrs["long_name"] = "fault probability"
    amplitude = survey.amplitude.assign_attrs(units="Pa")
    figure = sections(amplitude, probability, threshold=0.7)
    expected = probability.sel(twt=probability.twt[20]).where(survey.live).values
    shown = drawn(panels(figure)[2], 1)
    np.testing.assert_array_equal(~shown.mask, expected >= 0.7)
    names = [ax.get_ylabel() for ax in figure.axes[3:]]
    assert names == ["fault probability", "seismic amplitude (Pa)"]


def test_order_of_dimensions_does_not_matter(survey):
    turned = survey.transpose("twt", "crossline", "inline")
    one, other = (sections(s.amplitude, s.fault) for s in (survey, turned))
    for a, b in zip(panels(one), panels(other), strict=True):
        for n in (0, 1):
            np.testing.assert_array_equal(drawn(a, n), drawn(b, n))


def test_maps_are_to_scale(survey):
    # 25 m to an inline number; 12.5 m to two crossline numbers.
    assert panels(sections(survey.amplitude))[2].get_aspect() == pytest.approx(25.0 / 6.25)
    plain = survey.drop_vars(["cdp_x", "cdp_y"])
    assert panels(sections(plain.amplitude))[2].get_aspect() == pytest.approx(2.0)
    metres = {d: (d, survey[d].values * 12.5, {"units": "m"}) for d in ("inline", "crossline")}
    model = panels(sections(plain.assign_coords(metres).amplitude))  # whose axes are its own
    assert model[2].get_aspect() == pytest.approx(1.0)
    assert model[2].get_xlabel() == "crossline (m)"
    assert model[0].get_title().endswith(" m")
    # Degrees at 60° north, where one of longitude is half as long.
    degree = {"units": "degree"}
    x = (survey.cdp_x / 50_000).assign_attrs(degree)
    y = (survey.cdp_y / 100_000 + 60 - survey.cdp_y.mean() / 100_000).assign_attrs(degree)
    found = panels(sections(survey.assign_coords(cdp_x=x, cdp_y=y).amplitude))[2].get_aspect()
    assert found == pytest.approx(25.0 / 6.25, rel=1e-4)


@pytest.mark.parametrize("kept", ["lines", "inline", "crossline"])
def test_maps_are_to_scale_whatever_lines_are_there(survey, kept):
    volume = survey.amplitude
    if kept == "lines":  # without the middle ones
        middle = (volume.inline == volume.inline[12]) | (volume.crossline == volume.crossline[15])
        for name in ("cdp_x", "cdp_y"):
            volume = volume.assign_coords({name: volume[name].where(~middle)})
        expected = 25.0 / 6.25
    else:  # one line: its bins are taken for square
        volume = volume.isel({kept: [12]})
        expected = 12.5 / 6.25 if kept == "inline" else 25.0 / 25.0
    time_slice = panels(sections(volume))[2]
    assert time_slice.get_aspect() == pytest.approx(expected)
    if kept == "crossline":
        assert list(time_slice.get_xticks()) == [volume.crossline.item()]


def test_maps_of_few_lines_are_wide_enough_to_be_seen(survey):
    one = survey.amplitude.isel(inline=[12]).drop_vars(["cdp_x", "cdp_y"])
    line = xr.concat([one.assign_coords(crossline=one.crossline + 60 * i) for i in range(9)],
                     "crossline")  # fmt: skip
    narrow = line.rename(inline="crossline", crossline="inline")
    for volume, ratio in ((line, 0.02), (narrow, 50)):
        time_slice = panels(sections(volume))[2]
        (left, right), (low, high) = time_slice.get_xlim(), time_slice.get_ylim()
        assert time_slice.get_aspect() * (high - low) / (right - left) == pytest.approx(ratio)
    few = panels(sections(survey.amplitude.drop_vars(["cdp_x", "cdp_y"])[:, 14:17]))[2]
    assert list(few.get_xticks()) == [survey.crossline[15]]  # two would run into each other


def test_thin_faults_are_drawn_whole_where_samples_share_a_pixel():
    amplitude = xr.DataArray(
        np.random.default_rng(0).normal(size=(1, 1500, 1600)).astype(np.float32),
        dims=("inline", "crossline", "twt"),
        coords={"inline": [1], "crossline": np.arange(1500), "twt": np.arange(1600)},
    )
    fault = (amplitude.crossline - amplitude.twt == 0).expand_dims(inline=[1])
    amplitude[0, 3, :4], amplitude[0, 4, 0] = np.nan, np.nan
    figure = sections(amplitude, fault)
    image = drawn(panels(figure)[0])  # of means of two samples below each other
    expected = np.nanmean(amplitude[0, 4:].to_numpy().T.reshape(800, 2, 1496), axis=1)
    np.testing.assert_allclose(image[:, 4:], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.argwhere(image.mask), [[0, 3], [1, 3]])
    drawn_ = io.BytesIO()
    figure.savefig(drawn_)
    drawn_.seek(0)
    panel = panels(figure)[0].get_window_extent()
    left, right = int(panel.x0) + 3, int(panel.x1) - 3
    red = matplotlib.image.imread(drawn_)[:, left:right] @ [1, -1, 0, 0] > 0.5
    assert red.any(axis=0).mean() > 0.99  # but where the crossline is cut


def test_classes_are_drawn_as_they_are():
    rows, columns = np.indices((1600, 1500))
    classes = ((columns // 5 + rows // 400) % 5).astype(np.float32)
    volume = xr.DataArray(
        classes[None],
        dims=("inline", "twt", "crossline"),
        coords={"inline": [1], "twt": np.arange(1600), "crossline": np.arange(1500)},
    )
    figure = sections(volume)
    image = panels(figure)[0].get_images()[0]
    assert image.get_array().shape[0] == 800  # of two samples below each other, one
    assert set(np.unique(image.get_array())) == {0, 1, 2, 3, 4}
    assert image.get_interpolation() == "nearest"
    assert all(float(tick).is_integer() for tick in figure.axes[-1].get_yticks())
    for other in (volume > 2, volume * 100, volume + 0.5):
        image = panels(sections(other))[0].get_images()[0]
        assert image.get_interpolation() == "bilinear"


def test_only_three_sections_are_read(survey):
    class Recorded:
        """An array on disk, as it were, that remembers what was read of it."""

        shape, dtype, ndim = SHAPE, np.dtype(np.float32), 3
        voxels = 0

        def __getitem__(self, key):
            block = survey.amplitude.values[key]
            self.voxels += block.size
            return block

    source = Recorded()
    lazy = dask.array.from_array(source, chunks=(4, 5, 8), meta=np.empty((0, 0, 0), np.float32))
    sections(survey.amplitude.copy(data=lazy))
    cut = (1 / 6, 1 / 6, 1 / 5)  # of the blocks along each axis
    assert source.voxels <= sum(cut) * np.prod(SHAPE)


def test_picture_is_written_without_pyplot(survey, tmp_path, monkeypatch):
    path = tmp_path / "new" / "s.png"
    amplitude = survey.amplitude.assign_attrs(long_name=r"$\amplitude$")  # no mathematics
    sections(amplitude, survey.fault, path=path, title="line_$1_$x.sgy")
    image = matplotlib.image.imread(path)
    assert image.shape[1] > image.shape[0] > 400
    assert image[..., :3].std() > 0.05
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    with pytest.raises(OutcropError, match=r"s\.xyz.*png"):
        sections(survey.amplitude, path=tmp_path / "s.xyz")
    with pytest.raises(OutcropError, match=r"s\.png/t\.png: cannot be written \(.+\); choose"):
        sections(survey.amplitude, path=path / "t.png")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(OutcropError, match=r"d\.png: is a folder; name a file"):
        sections(survey.amplitude, path=tmp_path / "d.png")
    for name in ("s.pgf", "s.raw"):  # for LaTeX; which a volume has here
        with pytest.raises(OutcropError, match=f"{name}: no such format"):
            sections(survey.amplitude, path=tmp_path / name)

    def full(figure, where, **how):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OutcropError, match=r"s\.png: cannot be written \(No space left"):
        sections(survey.amplitude, path=path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["s.png"]


def test_the_command_draws_what_it_is_told(survey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probability = survey.fault.astype(np.float32).rename("fault_probability")
    mask = survey.fault.astype(bool).rename("fault")
    xr.merge([probability, mask]).to_zarr("p.zarr", zarr_format=3)
    two = {"fault_probability": probability, "karst_probability": probability}
    xr.Dataset(two).to_zarr("two.zarr", zarr_format=3)
    xr.concat([survey[["amplitude"]]] * 2, xr.DataArray([100, 300], dims="offset", name="offset")
              ).to_zarr("g.zarr", zarr_format=3)  # fmt: skip

    def call(*words):
        done = outcrop_command("view", *words)
        assert done.stdout == ("" if done.returncode else f"{words[1]}\n")
        return done.stderr

    at = ("--inline", 1004, "--crossline", 2011, "--twt", 1040)
    assert not call("g.zarr", "found.png", "--select", "offset=250", "--overlay", "p.zarr", *at)
    sections(survey.amplitude, probability, inline=1004, crossline=2011, twt=1040, path="due.png",
             title="offset 300")  # fmt: skip
    assert Path("found.png").read_bytes() == Path("due.png").read_bytes()
    for words, says in (
        (("g.zarr", "s.doc"), "s.doc: no such format"),
        (("p.zarr", "s.png"), "p.zarr: volumes: fault, fault_probability; name one"),
        (("g.zarr", "s.png"), "amplitude is a stack over offset, 100 to 300; choose one with --se"),
        (("g.zarr", "s.png", "--select", "angle=3"), "--select angle=3: g.zarr: amplitude has off"),
        (("g.zarr", "s.png", "--select", "offset=near"), "--select offset=near: give a number"),
        (
            ("g.zarr", "p.zarr/s.png", "--overlay", "p.zarr", "--select", "offset=100"),
            "p.zarr/s.png: lies within",
        ),
        (
            ("g.zarr", "s.png", "--overlay", "two.zarr", "--select", "offset=100"),
            "two.zarr: has fault_probability, karst_probability; choose one with --overlay-var",
        ),
        (("g.zarr", "s.png", "--overlay-variable", "x"), "--overlay-variable: only with --overlay"),
        (("g.zarr", "s.png", "--threshold", 0.6), "--threshold: only with --overlay"),
    ):
        assert says in call(*words)
    assert not Path("s.png").exists()
    done = outcrop_command("plan", "g.zarr", "--model", "faultseg3d", "--draw", "g.zarr/s.png")
    assert "g.zarr/s.png: lies within the survey" in done.stderr


def test_depth_surveys(survey):
    deep = survey.rename(twt="depth")
    deep = deep.assign_coords(depth=("depth", deep.depth.values, {"units": "m"}))
    figure = sections(deep.amplitude, depth=1083)
    assert panels(figure)[0].get_ylabel() == "depth (m)"
    assert panels(figure)[2].get_title() == "depth 1084 m"
    with pytest.raises(SurveyError, match="depth"):
        sections(deep.amplitude, twt=1040)


def test_raw_samples_are_counted(survey, tmp_path):
    survey.amplitude.to_numpy().astype("<f4").tofile(tmp_path / "raw.bin")
    raw = open_survey(tmp_path / "raw.bin", survey.amplitude.shape).amplitude
    figure = sections(raw, twt=7)
    assert panels(figure)[0].get_ylabel() == "sample"
    assert panels(figure)[2].get_title() == "sample 7"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: sections(s.amplitude, inline=5), "inline 5.*1001 to 1024"),
        (lambda s: sections(s.amplitude, twt=5000), "twt 5000.*1000 to 1156"),
        (lambda s: sections(s.amplitude, s.fault.assign_coords(inline=s.inline + 3)), "inline"),
        (lambda s: sections(s.amplitude.isel(inline=[0, 1, 2, 9])), "inline: .*equal steps"),
        (lambda s: sections(s.amplitude.isel(crossline=[1, 1])), "crossline: .*equal steps"),
        (lambda s: sections(s.amplitude.isel(twt=[0, 1, 5])), "twt: .*equal steps"),
        (lambda s: sections(s.amplitude.isel(twt=0)), "dimensions"),
        (lambda s: sections(xr.concat([s.amplitude] * 2, "offset")), "offset"),
        (lambda s: surfaces(s.amplitude[0], horizons(s.rgt, [0.5])), "seismic: has dimensions"),
    ],
)
def test_what_cannot_be_drawn_is_named(survey, call, says):
    with pytest.raises(SurveyError, match=says):
        call(survey)


def test_unknown_colours_are_named(survey):
    with pytest.raises(ArgumentError, match="cmap 'nocmap'"):
        sections(survey.amplitude, cmap="nocmap")


def test_a_volume_of_one_value_has_one_colour(survey):
    for value in (0, 7):
        figure = sections(survey.amplitude * 0 + value)
        limits = {ax.get_images()[0].get_clim() for ax in panels(figure)}
        assert limits == {(value - 1, value + 1)}
    sparse = survey.amplitude * 0
    sparse[0, 15, 0], sparse[12, 15, 20] = 1, -4  # of what is drawn hardly anything
    assert panels(sections(sparse))[0].get_images()[0].get_clim() == (-4, 4)
    spiked = survey.amplitude.copy()
    spiked[12, 15, 20] = 1e30  # what some programs write for no value
    assert panels(sections(spiked))[0].get_images()[0].norm.vmax < 10


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: sections(s), "seismic: is a Dataset; pass a DataArray, such as survey.ampl"),
        (lambda s: sections(s.amplitude, s.fault.to_numpy()), "overlay: is a ndarray"),
        (lambda s: surfaces(s, horizons(s.rgt, [0.5])), "seismic: is a Dataset"),
        (lambda s: surfaces(s.amplitude, s.rgt), "horizons: are none; pass what"),
        (
            lambda s: surfaces(s.amplitude.rename(twt="depth"), horizons(s.rgt, [0.5])),
            "horizons: have no horizon_depth",
        ),
        (lambda s: sections(s.amplitude[:0]), "seismic: holds nothing"),
        (lambda s: sections(s.amplitude, s.fault, threshold=50), "threshold 50: .*0 to 1"),
        (lambda s: sections(s.amplitude, s.fault * 100), "overlay: holds 100; .* 0 to 1"),
    ],
)
def test_what_is_no_volume_is_named(survey, call, says):
    with pytest.raises(ArgumentError, match=says):
        call(survey)


def test_dead_traces_and_missing_receivers_are_blank():
    rng = np.random.default_rng(0)
    observed = xr.DataArray(
        rng.normal(size=(6, 9)).astype("f4"),
        dims=("receiver", "time"),
        coords={"time": 0.01 * np.arange(9)},
    )
    modelled = 0.5 * observed
    observed[2] = 0  # a dead channel
    observed[5] = modelled[5] = 0  # no receiver
    figure = draw_gathers({"observed": observed, "modelled": modelled})
    images = {ax.get_title(): ax.images[0] for ax in figure.axes[:3]}
    for title, blank in (("observed", [2, 5]), ("modelled", [5]), ("observed − modelled", [2, 5])):
        mask = np.isin(np.arange(6), blank)
        np.testing.assert_array_equal(images[title].get_array().mask, np.tile(mask, (9, 1)))
    apart = np.delete((observed - modelled).to_numpy(), [2, 5], axis=0)
    assert images["observed − modelled"].norm.vmax == pytest.approx(
        np.percentile(np.abs(apart), 99)
    )
    silent = draw_gathers({"observed": 0 * observed, "modelled": 0 * observed})
    assert silent.axes[0].images[0].get_clim() == (-1, 1)
    alone = draw_gathers({"observed": observed})
    assert [ax.get_title() for ax in alone.axes] == ["observed", ""]  # with its colour bar


def test_depth_of_models_goes_downwards_in_any_order_of_axes():
    axes = {"inline": 10.0 * np.arange(6), "crossline": 10.0 * np.arange(5), "depth": np.arange(4)}
    start = xr.DataArray(np.full((6, 5, 4), 2000.0), axes)
    start[0, 0, 0] = np.nan
    found = start.copy()
    found[4, 3, 2] = 2300
    figure = draw_models({"start": start, "found": found})
    images = {ax.get_title(): ax.images[0].get_array() for ax in figure.axes if ax.images}
    np.testing.assert_array_equal(images["found, inline 40 m"], found[4].T)  # of the change
    np.testing.assert_array_equal(images["found, crossline 30 m"], found[:, 3].T)
    (alone,) = (ax for ax in draw_models({"start": start[0]}).axes if ax.images)
    assert (alone.get_title(), alone.get_ylabel()) == ("start", "depth (m)")


class Deep(nn.Module):
    """Global values and stored tensors in numbers."""

    def __init__(self, depth):
        super().__init__()
        layers = ((nn.Conv3d(2, 2, 3, padding=1), nn.InstanceNorm3d(2)) for _ in range(depth))
        self.layers = nn.Sequential(nn.Conv3d(1, 2, 1), *(m for pair in layers for m in pair))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("depth", [0, 3, 40])
def test_every_stored_tensor_of_a_plan_is_drawn(depth, tmp_path):
    graph, _ = capture(Deep(depth).eval(), [torch.zeros(1).expand(1, 1, 64, 64, 64)])
    plan = make_plan(graph, memory=10**9, storage_mode="disk")
    figure = draw_plan(plan, tmp_path / "plan.png")
    tensors, _, time = figure.axes
    assert len(tensors.patches) == len(plan.places) + 2  # with input and output
    shown = {text.get_text() for text in tensors.get_legend().get_texts()}
    assert shown == {"input", "output", *plan.places.values()}
    assert len(time.patches) == len(plan.stages)
    assert (time.get_xticks() % 1 == 0).all()
    assert matplotlib.image.imread(tmp_path / "plan.png").std() > 0
    with pytest.raises(OutcropError, match="no such format"):
        draw_plan(plan, tmp_path / "plan.doc")
