"""What is told of a run, and the page about it: against what happened."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from distributed import Client, LocalCluster, WorkerPlugin
from typer.testing import CliRunner

import outcrop
from outcrop import events, patience
from outcrop.cli.main import app
from outcrop.cluster import connect, workers_there
from outcrop.engine import overlap
from outcrop.engine.survey_stores import PredictionStore
from outcrop.engine.tile import StageRunner
from outcrop.errors import OutcropError
from outcrop.progress import ProgressBar, track
from test_predict import make_survey
from test_volumes import Normed

HOW = {"tile": (16, 16, 16), "storage_mode": "disk"}


@pytest.fixture(scope="module")
def model():
    return Normed().eval()


@pytest.fixture(scope="module")
def survey():
    return make_survey((24, 20, 40))


class Page(HTMLParser):
    """Texts, the JSON, pictures, bars, and everything that a browser would fetch."""

    def __init__(self, path):
        super().__init__()
        self.fetched, self.pictures, self.bars, self.titles, self.cells = [], [], 0, [], []
        self.open, self.json, self.text = [], "", ""
        self.feed(Path(path).read_text())
        self.facts = json.loads(self.json)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open.append((tag, attrs))
        if tag == "img":
            self.pictures.append(attrs["src"])
        elif "src" in attrs or "href" in attrs:
            self.fetched.append(attrs)
        self.bars += attrs.get("class") == "tile"

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "script":
            assert attrs == {"type": "application/json", "id": "facts"}
            self.json += data
        elif tag == "title":
            self.titles.append(data)
        elif tag == "td":
            self.cells.append(data)
        else:
            self.text += data


def of(kind, heard):
    return [e for e in heard if isinstance(e, kind)]


def codec_threads():
    return zarr.config.get("threading.max_workers")


def set_clock(seconds):
    before = time.time
    overlap.time = SimpleNamespace(time=lambda: before() + seconds)


@pytest.fixture(scope="module")
def run(model, survey, tmp_path_factory):
    """One run on two workers, whose clocks are wrong, listened to in every way."""
    folder = tmp_path_factory.mktemp("run")
    heard, record = [], outcrop.Record()
    listeners = [heard.append, record, events.JsonLog(folder / "log.jsonl")]
    with connect("local", workers=2) as client:
        for worker, seconds in zip(workers_there(client), (-3600, 3600), strict=True):
            client.run(set_clock, seconds, workers=[worker])
        found = outcrop.predict(
            model, survey, folder / "o.zarr", client=client, listeners=listeners, **HOW
        )
        assert set(client.run(codec_threads).values()) == {1}
    outcrop.view.report(record, folder / "o.report.html", survey, found)
    return folder, heard, found


def test_events_are_what_happened(run, survey):
    _, heard, found = run
    (begin,), (end,) = of(events.Begin, heard), of(events.End, heard)
    assert heard[0] is begin
    assert heard[-1] is end
    assert end.error is None
    tiles = of(events.Tile, heard)
    assert begin.tiles == len(tiles) == sum(s["tiles"] for s in begin.stages)
    assert begin.voxels == survey.amplitude.size
    assert begin.provenance["plan_sha256"] == found.attrs["plan_sha256"]
    assert len({(t.stage, t.tile) for t in tiles}) == len(tiles)
    assert sum(t.share for t in tiles) == pytest.approx(1)
    assert [s.stage for s in of(events.Stage, heard)] == [1, 2]
    assert {w.workers for w in of(events.Workers, heard)} == {2}
    # Every voxel of the output was written once; the survey was read with halos, by two stages.
    last = [t for t in tiles if t.stage == len(begin.stages)]
    assert sum(t.written for t in last) == 4 * survey.amplitude.size
    assert sum(t.read for t in tiles) >= 2 * 4 * survey.amplitude.size
    for tile in tiles:
        assert begin.time <= tile.start <= tile.stop <= tile.time
        assert 0 < tile.reading + tile.computing + tile.writing <= tile.stop - tile.start + 1e-2
        assert 0 < tile.memory <= begin.peak_memory


def test_the_log_has_a_line_for_each_event(run):
    folder, heard, _ = run
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line.pop("event") for line in lines] == [type(e).__name__.lower() for e in heard]
    assert lines == json.loads(json.dumps([asdict(e) for e in heard]))


def test_the_page_says_what_happened(run, survey):
    folder, heard, found = run
    page, tiles = Page(folder / "o.report.html"), of(events.Tile, heard)
    assert not page.fetched
    assert page.bars == len(tiles)
    assert len([t for t in page.titles if t.startswith("stage ")]) == len(tiles)
    facts = page.facts
    assert facts["tiles"] == len(tiles)
    assert facts["voxels"] == survey.amplitude.size
    assert facts["seconds"] == pytest.approx(heard[-1].time - heard[0].time)
    assert facts["peak_memory"] == heard[0].peak_memory
    assert facts["memory"] == max(t.memory for t in tiles)
    for kind in ("read", "written"):
        assert facts[kind] == sum(getattr(t, kind) for t in tiles)
    assert {w["name"] for w in facts["workers"]} == {t.worker for t in tiles}
    for worker in facts["workers"]:
        own = [t for t in tiles if t.worker == worker["name"]]
        assert worker["tiles"] == len(own)
        assert worker["computing"] == pytest.approx(sum(t.computing for t in own), rel=1e-5)
        assert worker["name"] in page.cells
    for stage in facts["stages"]:
        assert stage["tiles"] == len([t for t in tiles if t.stage == stage["number"]])
    for key in ("weights_sha256", "plan_sha256", "input_sha256"):
        assert found.attrs[key] in page.cells
    assert "promised" in page.text
    (picture,) = page.pictures
    image = matplotlib.image.imread(
        io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,")))
    )
    assert min(image.shape[:2]) > 300
    assert np.ptp(image[..., :3]) > 0.5


def test_a_long_run_makes_a_small_page(tmp_path):
    record = outcrop.Record()
    stage = {"writes": ["y"], "tiles": 50_000, "tile": [8], "operations": 1.0, "seconds": 1.0}
    begin = {"finished": 0, "share": 0.0, "voxels": 10**9, "volumes": 1, "peak_memory": 100}
    record(
        events.Begin(
            output="<y>\udcfc.zarr", time=0.0, tiles=50_000, stages=[stage], provenance={}, **begin
        )
    )
    for n in range(50_000):
        start = 0.72 * n
        record(
            events.Tile(
                output="<y>\udcfc.zarr", volume=0, stage=1, tile=n, worker=f"w{n % 2}", start=start,
                stop=start + 0.72, reading=0, computing=0.72, writing=0, read=1, written=1,
                memory=50, share=1 / 50_000,
            )
        )  # fmt: skip
    record(events.End(output="<y>\udcfc.zarr", time=36_000.0, error="a <disk> was full"))
    outcrop.view.report(record, tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 100_000
    page = Page(tmp_path / "r.html")
    assert page.facts["tiles"] == 50_000
    assert page.facts["voxels"] == 10**9
    assert "a <disk> was full" in page.text
    assert page.cells.count("5 h 0 min") == 2
    assert "8 h" in page.text  # at the axis
    assert page.titles[0] == "<y>?.zarr"  # of a name that is no UTF-8


def test_a_run_that_goes_on_takes_as_long_as_its_last_tile():
    record, stage = outcrop.Record(), {"writes": ["y"], "tile": [8]}
    facts = {"tiles": 1, "finished": 0, "share": 0.0, "voxels": 9, "volumes": 1, "peak_memory": 9}
    for name in "ab":
        record(events.Begin(output=name, time=0.0, stages=[stage], provenance={}, **facts))
    record(events.End(output="a", time=1.0))
    spent = dict.fromkeys(("reading", "computing", "writing", "read", "written", "memory"), 0)
    where = {"output": "b", "volume": 0, "stage": 1, "tile": 0, "worker": "w", "share": 1.0}
    record(events.Tile(start=2.0, stop=5.0, **where, **spent))
    assert record.facts()["seconds"] == 5.0
    record(events.End(output="b", time=6.0))
    assert record.facts()["seconds"] == 6.0


def test_the_page_about_views_is_named_for_what_they_are_merged_to(tmp_path):
    record = outcrop.Record()
    facts = {"tiles": 1, "finished": 0, "share": 0.0, "voxels": 9, "volumes": 1, "peak_memory": 9}
    for name in ("out/o.zarr.steps/plain.zarr", "out/o.zarr.steps/turned-90.zarr"):
        record(events.Begin(output=name, stages=[], provenance={}, **facts))
    outcrop.view.report(record, tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert page.titles[0] == "o.zarr"
    assert "Stages" not in page.text  # of which none ran


def test_retries_and_what_stopped_a_run_are_told(model, survey, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.01, 0.01))
    write, count, heard, record = PredictionStore.write, [], [], outcrop.Record()

    def refusing(*arguments):
        count.append(1)
        if len(count) in (2, 3) or len(count) > 8:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(PredictionStore, "write", refusing)
    how = {"progress": True, **HOW}
    with pytest.warns(patience.StorageRefused), pytest.raises(OutcropError):
        outcrop.predict(model, survey, tmp_path / "o.zarr", listeners=[heard.append, record], **how)
    assert "No space left" in of(events.End, heard)[0].error
    assert len(of(events.Retry, heard)) == 5
    assert re.search(r"stage 2 of 2, 5 retries", capsys.readouterr().err)
    outcrop.view.report(record, tmp_path / "r.html", survey)
    page = Page(tmp_path / "r.html")
    assert page.facts["retries"] == 5
    assert "was not finished" in page.text
    done = page.facts["tiles"]
    assert 0 < done < of(events.Begin, heard)[0].tiles == page.facts["all_tiles"]
    assert f"tiles of {page.facts['all_tiles']}" in page.text

    # The same again counts, and shows, what is done.
    monkeypatch.setattr(PredictionStore, "write", write)
    done = len(of(events.Tile, heard))
    heard.clear()
    again = outcrop.Record()
    outcrop.predict(
        model, survey, tmp_path / "o.zarr", listeners=[heard.append, record, again], **how
    )
    assert record.facts() == again.facts()  # of the run before nothing
    begin = of(events.Begin, heard)[0]
    assert begin.finished == done
    assert len(of(events.Tile, heard)) == begin.tiles - done
    shown = capsys.readouterr().err
    assert f"resuming: {done} of {begin.tiles} tiles are done" in shown
    assert begin.share + sum(t.share for t in of(events.Tile, heard)) == pytest.approx(1)


def test_names_are_shown_as_they_are(capsys):
    with track("ingest a[red].sgy", 1, "B") as advance:
        advance(1)
    assert "ingest a[red].sgy" in capsys.readouterr().err


def test_without_a_terminal_there_are_lines_from_time_to_time(monkeypatch, capsys):
    with track("ingest", 4, "B") as advance:
        advance(1)
        assert not capsys.readouterr().err
        monkeypatch.setattr("outcrop.progress._EVERY", 0.0)
        advance(1)
        assert re.fullmatch(r"ingest .* 50% .*\n", capsys.readouterr().err)
        advance(2)
    assert capsys.readouterr().err.count("100%") == 1


def test_a_prediction_is_shown_to_its_end():
    facts = {"finished": 0, "share": 0.0, "voxels": 1, "volumes": 1, "peak_memory": 9}
    bar, shares = ProgressBar(), [0.1] * 10  # which are less than 1 by rounding
    bar(events.Begin(output="o", tiles=10, stages=[{}], provenance={}, **facts))
    spent = dict.fromkeys(("reading", "computing", "writing", "read", "written", "memory"), 0)
    for tile, share in enumerate(shares):
        where = {"output": "o", "volume": 0, "stage": 1, "tile": tile, "worker": "w"}
        bar(events.Tile(start=2.0, stop=5.0, share=share, **where, **spent))
    bar(events.End(output="o"))
    assert bar.bar.tasks[0].finished


def test_the_command_logs_and_reports(survey, tmp_path):
    survey.chunk(16).to_zarr(tmp_path / "s.zarr", zarr_format=3)
    command = [sys.executable, "-m", "outcrop.cli.main", "predict", "s.zarr", "o.zarr", "--model",
               "faultseg3d", "--weights", "seeded", "--log-json", "-"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert told[0] == "begin"
    assert told[-1] == "end"
    assert "o.report.html" in done.stderr
    page = Page(tmp_path / "o.report.html")
    assert page.facts["tiles"] == told.count("tile")
    assert "s.zarr" in page.cells  # what was read
    assert page.cells[page.cells.index("covers") + 1].startswith("inline ")  # of a part, which
    with pytest.raises(OutcropError, match=r"no/log: cannot be written"):
        events.JsonLog(tmp_path / "no" / "log")
    (tmp_path / "lines.sgy").write_text("C 1")
    with pytest.raises(OutcropError, match=r"lines\.sgy: holds something else"):
        events.JsonLog(tmp_path / "lines.sgy")
    (tmp_path / "cut").write_text('{"event": "beg')  # by a full disk
    for n in range(2):
        events.JsonLog(tmp_path / "cut")(events.Workers(output="o.zarr", workers=n))
    found = (tmp_path / "cut").read_text().splitlines()[1:]
    assert [json.loads(line)["workers"] for line in found] == [0, 1]
    full = events.JsonLog("/dev/full")
    with pytest.raises(OutcropError, match=r"/dev/full: cannot be written \(No space left"):
        full(events.Workers(output="o.zarr", workers=1))


def test_a_page_that_cannot_be_written(survey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutcropError, match=r"file/r\.html: .* cannot be written"):
        outcrop.view.report(outcrop.Record(), "file/r.html")
    survey.to_zarr("s.zarr", zarr_format=3)
    command = ["predict", "s.zarr", "o.zarr", "--model", "faultseg3d", "--weights", "seeded"]
    done = CliRunner().invoke(app, [*command, "--report", "file/r.html"])
    assert "--report file/r.html: " in str(done.exception)
    for page, says in (
        ("o.zarr", "--report o.zarr: lies within the output"),
        (str(tmp_path / "o.zarr" / "r.html"), "lies within the output"),
        ("s.zarr/zarr.json", "lies within the survey that is read"),
        ("lines.sgy", "--report lines.sgy: pages are written as .html; choose such a name"),
    ):
        (tmp_path / "lines.sgy").write_text("C 1")
        done = CliRunner().invoke(app, [*command, "--report", page])
        assert says in str(done.exception)
    (tmp_path / "pages").mkdir()
    done = CliRunner().invoke(app, [*command, "--report", "pages"])
    assert "--report pages: is a folder" in str(done.exception)
    assert not (tmp_path / "o.zarr").exists()


def test_a_page_about_lines_that_cannot_be_drawn(survey, tmp_path):
    found = survey.rename(amplitude="fault_probability").isel(inline=[0, 1, 5])
    outcrop.view.report(outcrop.Record(), tmp_path / "r.html", None, xr.Dataset())
    assert "not drawn: there is no volume in it" in Page(tmp_path / "r.html").text
    outcrop.view.report(outcrop.Record(), tmp_path / "r.html", None, found)
    with pytest.raises(OutcropError, match="prediction: is a DataArray; pass a Dataset"):
        outcrop.view.report(outcrop.Record(), tmp_path / "n.html", None, found.fault_probability)
    assert "not drawn: inline: does not go in equal steps" in Page(tmp_path / "r.html").text


def test_a_page_shows_probabilities_over_amplitudes(survey, tmp_path):
    probability = abs(survey.amplitude.rename("fault_probability"))
    probability /= probability.max()
    found = xr.Dataset({"fault": probability > 0.5, "fault_probability": probability})
    outcrop.view.report(outcrop.Record(), tmp_path / "r.html", survey, found)
    assert "Three sections of fault_probability" in (tmp_path / "r.html").read_text()


def test_a_log_that_nobody_reads_any_more(monkeypatch):
    def closed(*arguments):
        raise BrokenPipeError(32, "Broken pipe")

    log = events.JsonLog("-")
    monkeypatch.setattr(sys.stdout, "write", closed)
    with pytest.raises(OutcropError, match=r"the standard output: cannot be written \(Broken pipe"):
        log(events.Workers(output="o.zarr", workers=1))


def test_the_command_reports_what_stopped_it(survey, tmp_path, monkeypatch):
    survey.chunk(16).to_zarr(tmp_path / "s.zarr", zarr_format=3)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(patience, "WAITS", ())
    monkeypatch.setattr(PredictionStore, "write", full)
    command = ["predict", "s.zarr", "o.zarr", "--model", "faultseg3d", "--weights", "seeded"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, OutcropError)
    page = Page(tmp_path / "o.report.html")
    assert "o.zarr was not finished" in page.text
    assert page.facts["tiles"] == 0


def test_the_command_over_several_surveys(survey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.zarr", "b.zarr"]
    for n, name in enumerate(names):
        survey.roll(inline=n).chunk(16).to_zarr(name, zarr_format=3)
    command = ["predict", *names, "out", "--model", "faultseg3d", "--weights", "seeded"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "out: 2 predictions" in done.output
    page = Page("out.report.html")
    assert list(page.facts["outputs"]) == [f"out/{name}" for name in names]
    assert len(set(page.pictures)) == 2
    assert "Sections of b.zarr" in page.text
    alone = [*command[:2], "alone.zarr", *command[4:]]
    CliRunner().invoke(app, alone, catch_exceptions=False)
    xr.testing.assert_identical(
        xr.open_zarr("alone.zarr").load(), xr.open_zarr("out/a.zarr").load()
    )
    done = CliRunner().invoke(app, [*command, "--picks", "p.npz"])
    assert "--picks: not with 2 surveys" in str(done.exception)


class Watched(WorkerPlugin):
    """Writes down how many threads torch has while a tile is computed."""

    name = "watched"

    def __init__(self, path):
        self.path = str(path)

    def setup(self, worker):
        compute = StageRunner.compute

        def computing(*arguments):
            with open(self.path, "a") as seen:
                seen.write(f"{os.getpid()} {torch.get_num_threads()}\n")
            return compute(*arguments)

        StageRunner.compute = computing


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 2)])
def test_workers_keep_to_their_share_of_the_cores(workers, threads, model, survey, tmp_path):
    heard = []
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(Watched(tmp_path / "seen"))
        outcrop.predict(
            model, survey, tmp_path / "o.zarr", client=client, listeners=[heard.append], **HOW
        )
    lines = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == workers
    assert {int(count) for _, count in lines} == {threads}
    tiles = of(events.Tile, heard)
    for worker in {t.worker for t in tiles}:  # one tile at a time
        own = sorted((t.start, t.stop) for t in tiles if t.worker == worker)
        assert all(a[1] <= b[0] + 1e-3 for a, b in pairwise(own))
