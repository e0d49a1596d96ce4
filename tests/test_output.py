"""A Zarr that is being written does not open; open, MDIO and raw samples included."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import outcrop
from outcrop import journal, locks, patience
from outcrop import output as outputs
from outcrop.errors import (
    ArgumentError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SurveyError,
)
from outcrop.output import Output
from outcrop.targets import check_free, is_complete, is_unfinished

DATA = Path(__file__).parent / "data"


@pytest.fixture
def template() -> xr.Dataset:
    dims = ("inline", "crossline", "twt")
    empty = dask.array.zeros((4, 3, 8), dtype="f4", chunks=-1)
    coords = {d: (d, np.arange(n)) for d, n in zip(dims, empty.shape, strict=True)}
    return xr.Dataset({"amplitude": (dims, empty)}, coords, {"title": "a test"})


ENCODING = {"amplitude": {"chunks": (2, 3, 8)}}


def test_opens_only_once_it_is_committed(tmp_path, template):
    path = tmp_path / "a.zarr"
    output = Output.begin(path, template, ENCODING, {"a": 1})
    output.array("amplitude")[:2] = 1
    assert is_unfinished(path)
    assert not is_complete(path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(path)
    with pytest.raises(SurveyError, match="unfinished"):
        outcrop.open(path)
    output.array("amplitude")[2:] = 2
    output.commit({"more": [1, 2]})
    assert is_complete(path)
    found = outcrop.open(path)
    assert found.attrs == {"title": "a test", "more": [1, 2]}
    assert found.amplitude.to_numpy()[:, 0, 0].tolist() == [1, 1, 2, 2]
    assert not output.aside.exists()


def test_goes_on_where_it_stopped(tmp_path, template):
    path = tmp_path / "a.zarr"
    with Output.begin(path, template, ENCODING, {"shape": (2, 3)}) as first:
        assert not first.resumed
        first.array("amplitude")[:2] = 1
        first.finish("one")
        with (first.aside / "finished.txt").open("a") as journal:
            journal.write("tw")  # cut off while it was written
    with Output.begin(path, template, ENCODING, {"shape": [2, 3]}) as again:
        assert again.resumed
        assert again.finished == {"one"}
        assert (again.array("amplitude")[:2] == 1).all()
        again.finish("two")
    with Output.begin(path, template, ENCODING, {"shape": (2, 3)}) as third:
        assert "two" in third.finished


def test_another_record_does_not_resume(tmp_path, template):
    path = tmp_path / "a.zarr"
    with Output.begin(path, template, ENCODING, {"chunks": 2}) as output:
        output.finish("one")
    with pytest.raises(ResumeError, match=r"chunks: 2, now 3.*--overwrite"):
        Output.begin(path, template, ENCODING, {"chunks": 3})
    with Output.begin(path, template, ENCODING, {"chunks": 3}, overwrite=True) as output:
        assert output.finished == set()


def test_what_may_be_written_over(tmp_path, template, monkeypatch):
    path = tmp_path / "a.zarr"
    with Output.begin(path, template, ENCODING, {}) as output:
        output.commit()
    with pytest.raises(OutputExistsError, match="already exists"):
        check_free(path)
    check_free(path, overwrite=True)
    check_free(tmp_path / "new.zarr")
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "empty")  # which would be moved away
        for here in (".", ".."):
            with pytest.raises(OutputExistsError, match="is no name of its own"):
                check_free(here)
        with pytest.raises(ArgumentError, match="a path is empty"):
            check_free("")
    for overwrite in (False, True):  # it holds more than a Zarr
        with pytest.raises(OutputExistsError, match="folder of other things"):
            check_free(tmp_path, overwrite)


def test_a_link_is_followed(tmp_path, template):
    link, disk = tmp_path / "a.zarr", tmp_path / "disk"
    link.symlink_to(disk / "b.zarr")
    for run in (1, 2):
        with Output.begin(link, template, ENCODING, {"run": run}, overwrite=run == 2) as output:
            output.commit({"run": run})
        assert link.is_symlink()
        assert [p.name for p in disk.iterdir()] == ["b.zarr"]
        assert outcrop.open(link).attrs["run"] == run
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "disk"]


def test_a_killed_overwrite_is_gone_on_with(tmp_path, template, monkeypatch):
    """Killed while the old output is deleted: the path holds the new one, which is begun."""
    path = tmp_path / "a.zarr"
    with Output.begin(path, template, ENCODING, {"run": 1}) as output:
        output.commit()
    remove = outputs.remove

    def killed(where):
        if where.exists():
            raise KeyboardInterrupt
        remove(where)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            Output.begin(path, template, ENCODING, {"run": 2}, overwrite=True)
    assert is_unfinished(path)
    with Output.begin(path, template, ENCODING, {"run": 2}, overwrite=True) as output:
        output.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_what_was_to_be_overwritten_is_put_back(tmp_path, template, monkeypatch):
    """Where the new one does not come to its place: that is refused, or this process dies."""
    path, old = tmp_path / "a.zarr", tmp_path / ".a.zarr.old"
    with Output.begin(path, template, ENCODING, {"run": 1}) as output:
        output.commit()
    replace = os.replace

    def refused(source, target):
        if str(source).endswith(".begin"):
            raise PermissionError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(PermissionError):
            Output.begin(path, template, ENCODING, {"run": 2}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    os.replace(path, old)
    with pytest.raises(OutputExistsError, match="already exists"):
        Output.begin(path, template, ENCODING, {"run": 2})
    assert is_complete(path)
    shutil.copytree(path, old)
    with Output.begin(path, template, ENCODING, {"run": 2}, overwrite=True) as output:
        output.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_interrupted_as_it_takes_the_lock(tmp_path, template, monkeypatch):
    flock = fcntl.flock

    def interrupted(*arguments):
        flock(*arguments)
        monkeypatch.setattr(fcntl, "flock", flock)
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Output.begin(tmp_path / "a.zarr", template, ENCODING, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks(answer, tmp_path, template, monkeypatch):
    """As Lustre and NFS may be; one run at a time even so, and after one that was killed."""

    def refused(*arguments):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", refused)
    for name, seconds in (("BEAT", 0.05), ("DEAD", 0.5), ("SETTLE", 0.1)):
        monkeypatch.setattr(locks, name, seconds)
    path, begin = tmp_path / "a.zarr", partial(Output.begin, template=template, encoding=ENCODING)
    killed = begin(path, record={"run": 1})
    for refuse in (partial(begin, path, record={"run": 1}), partial(locks.check_untaken, path)):
        with pytest.raises(OutputExistsError, match="another process is writing it"):
            refuse()
    killed._lock.instead.over.set()
    with begin(path, record={"run": 1}) as output:
        with pytest.raises(OutputExistsError, match="is over"):
            killed.check()
        output.commit()
    assert is_complete(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_interrupted_while_zarr_writes(tmp_path, template, monkeypatch):
    """Which it does in a thread of its own: what that still writes must not stay."""
    writing = threading.Event()

    def slow(kind):
        put = kind.set

        async def late(*arguments, **options):
            writing.set()
            await asyncio.sleep(0.3)
            await put(*arguments, **options)

        monkeypatch.setattr(kind, "set", late)

    slow(LocalStore)
    slow(MemoryStore)

    def interrupt():
        writing.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Output.begin(tmp_path / "a.zarr", template, ENCODING, {})
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_over_writes_nothing(tmp_path, template):
    path = tmp_path / "a.zarr"
    with Output.begin(path, template, ENCODING, {}) as first:
        first.fence.check()
    with Output.begin(path, template, ENCODING, {}, overwrite=True) as second:
        with pytest.raises(OutputExistsError, match="this tile belongs to is over"):
            first.fence.check()
        second.fence.check()
        second.commit()
    with pytest.raises(OutputExistsError, match="is over"):
        second.fence.check()
    shutil.move(path, tmp_path / "elsewhere")
    with pytest.raises(OutcropError, match=r"a\.zarr: is not to be seen from "):
        second.fence.check()


def test_nothing_after_the_commit_fails_a_run(tmp_path, template, monkeypatch):
    path = tmp_path / "a.zarr"

    def refuse(*arguments):
        raise OutcropError("ServiceUnavailable")

    with Output.begin(path, template, ENCODING, {}) as output:
        monkeypatch.setattr(outputs, "remove", refuse)
        monkeypatch.setattr(outputs.zarr, "consolidate_metadata", refuse)
        output.commit()
    assert outcrop.open(path).amplitude.shape == (4, 3, 8)


def test_a_folder_that_fills_while_it_is_deleted(tmp_path, monkeypatch):
    """As by the last task of a worker that was given up."""
    (tmp_path / "a").mkdir()
    rmdir, full = os.rmdir, [OSError(errno.ENOTEMPTY, "Directory not empty")]

    def refuse(*arguments, **options):
        if full:
            raise full.pop()
        rmdir(*arguments, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    monkeypatch.setattr(patience, "WAITS", (0.0,))
    with pytest.warns(patience.StorageRefused, match="Directory not empty"):
        outputs.remove(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_torn_line(tmp_path, template, monkeypatch):
    path, append, count = tmp_path / "a.zarr", journal._append, []

    def full(file, size, data):
        count.append(data)
        if len(count) % 2:
            append(file, size, data[:2])
            raise OSError(28, "No space left on device")
        append(file, size, data)

    monkeypatch.setattr(journal, "_append", full)
    monkeypatch.setattr(patience, "WAITS", (0.0,))
    with Output.begin(path, template, ENCODING, {}) as output:
        for key in ("one", "two"):
            with pytest.warns(patience.StorageRefused, match="No space left"):
                output.finish(key)
    with Output.begin(path, template, ENCODING, {}) as again:
        assert again.finished == {"one", "two"}


def test_mdio(tmp_path):
    """A store that multidimio wrote of a part of F3, whose last trace is missing."""
    survey = outcrop.ingest(DATA / "segy/f3.sgy", tmp_path / "f3.zarr")
    part = survey.isel(inline=slice(4), crossline=slice(5), twt=slice(16)).load()
    part["amplitude"][3, 4], part["live"][3, 4] = 0, False
    found = outcrop.open(DATA / "mdio/f3.mdio")
    assert found.amplitude.dims == ("inline", "crossline", "twt")
    assert found.amplitude.dtype == np.float32
    assert found.amplitude.chunks is not None
    for name in ("amplitude", "live", "inline", "crossline"):
        np.testing.assert_array_equal(found[name], part[name])
    np.testing.assert_allclose(found.cdp_x, part.cdp_x.where(part.live))
    np.testing.assert_array_equal(found.twt, 4 * np.arange(16))  # multidimio ignores the delay
    assert found.twt.attrs["units"] == "ms"
    assert found.cdp_x.attrs["units"] == "m"
    network = torch.nn.ReLU().eval()
    made = outcrop.predict(network, DATA / "mdio/f3.mdio", tmp_path / "a.zarr").prediction
    np.testing.assert_array_equal(made, part.amplitude.clip(min=0))
    assert not made.live[3, 4]


def test_raw_samples(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 5, 9)).astype("<f4")
    path = tmp_path / "a.bin"
    values.tofile(path)
    survey = outcrop.open(path, (7, 5, 9))
    assert survey.amplitude.chunks is not None
    assert survey.amplitude.dims == ("inline", "crossline", "twt")
    np.testing.assert_array_equal(survey.amplitude, values)
    np.testing.assert_array_equal(survey.amplitude[2:4, 1, ::3], values[2:4, 1, ::3])
    with pytest.raises(SurveyError, match=r"1,260 bytes, and 7 × 5 × 8 float32 samples are 1,120"):
        outcrop.open(path, (7, 5, 8))
    with pytest.raises(SurveyError, match="inlines, crosslines, samples"):
        outcrop.open(path, (35, 9))
    with pytest.raises(SurveyError, match=r"outcrop ingest, or pass the shape"):
        outcrop.open(path)


def test_large_raw_samples_are_read_by_blocks(tmp_path):
    """Of a sparse file of 2 GB, one inline; the blocks are of whole inlines."""
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate(4 * 500 * 1000 * 1000)
        file.seek(4 * 300 * 1000 * 1000)
        file.write(np.ones(5, dtype="<f4").tobytes())
    survey = outcrop.open(path, (500, 1000, 1000))
    assert max(survey.amplitude.chunks[0]) * 4_000_000 <= 64 << 20
    assert survey.amplitude[300].sum() == 5


@pytest.mark.parametrize("what", ["other", "nothing", "folder"])
def test_what_is_no_survey(tmp_path, what):
    path = tmp_path / what
    if what == "other":
        xr.Dataset({"a": ("x", [1, 2])}).to_zarr(path, zarr_format=3, consolidated=False)
    elif what == "folder":
        path.mkdir()
    with pytest.raises(SurveyError, match=r"is no survey|does not exist|is no Zarr group"):
        outcrop.open(path)
