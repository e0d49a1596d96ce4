"""What breaks while a prediction is made, on one machine and on a cluster of real processes."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from distributed import Client, LocalCluster, WorkerPlugin
from torch import nn

import outcrop
from outcrop import patience, tasks
from outcrop.cluster import Tls, connect, workers_there
from outcrop.engine.crew import check_versions, check_workers
from outcrop.engine.globals import GlobalStore
from outcrop.engine.stores import ArrayStore
from outcrop.engine.survey_stores import PredictionStore, SurveyStore
from outcrop.engine.tile import StageRunner
from outcrop.engine.worker import Job, Network
from outcrop.engine.zarr_store import ZarrStore
from outcrop.errors import (
    MemoryBudgetError,
    NonFiniteError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SurveyError,
)
from outcrop.events import Retry, Stage, Tile
from outcrop.graph import RULES, Box, Reduce, capture
from outcrop.models.card import AMPLITUDE, Card, OutputCard
from test_predict import make_survey

# Several stages, global values among them, over enough tiles that faults hit in the middle.
HOW = {"tile": (8, 8, 8), "storage_mode": "disk"}


class Normed(nn.Module):
    """Two instance norms, three resolutions: four stages, and more states than merge at once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.first, self.second = nn.InstanceNorm3d(4), nn.InstanceNorm3d(4)
        self.last = nn.Conv3d(4, 1, 1)

    def forward(self, x):
        x = torch.relu(self.first(self.a(x)))
        down = torch.relu(self.second(self.b(torch.max_pool3d(x, 2))))
        up = nn.functional.interpolate(down, size=x.shape[2:], mode="nearest")
        return torch.sigmoid(self.last(x + up))


@pytest.fixture(scope="module")
def model():
    return Normed().eval()


@pytest.fixture(scope="module")
def survey():
    return make_survey((32, 40, 48))


@pytest.fixture(scope="module")
def calm(model, survey, tmp_path_factory):
    """What an undisturbed cluster gives."""
    with connect("local", workers=2) as client:
        path = tmp_path_factory.mktemp("calm") / "o.zarr"
        return outcrop.predict(model, survey, path, client=client, **HOW).load()


def lines(path):
    journal = path / "unfinished" / "finished.txt"
    return len(journal.read_text().split()) if journal.exists() else 0


def wait_for(there, seconds=120.0):
    """Wait until something is so; an AssertionError if that takes too long."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


def same(found, calm):
    xr.testing.assert_identical(found.load().drop_attrs(), calm.drop_attrs())


# On a cluster


def test_cluster_gives_what_one_process_gives(model, survey, calm, tmp_path):
    with torch.no_grad():
        alone = outcrop.predict(model, survey, tmp_path / "o.zarr", **HOW)
    # By another plan, perhaps: a cluster's store is slower or faster.
    np.testing.assert_allclose(alone.prediction, calm.prediction, atol=1e-6)


@pytest.mark.parametrize("after", [5, 260])
def test_all_workers_killed_and_new_ones_join(after, model, survey, calm, tmp_path):
    """At the beginning, in the middle and near the end, reductions among it: the same bits."""
    written = []
    with connect("local", workers=2) as client:
        before = set(client.run(os.getpid).values())

        def kill(event):
            if isinstance(event, Tile):
                written.append(event)
                for pid in before if len(written) == after else ():
                    os.kill(pid, signal.SIGKILL)

        how = {**HOW, "client": client, "listeners": [kill]}
        found = outcrop.predict(model, survey, tmp_path / "o.zarr", **how)
        assert not before & set(client.run(os.getpid).values())
    same(found, calm)


def test_a_lost_worker_comes_back_however_long_that_takes():
    """Dask closes for good what is not back by then, even if it was lost again meanwhile."""
    impatient = {"distributed.deploy.lost-worker-timeout": "0.1s"}
    with dask.config.set(impatient), connect("local", workers=1) as client:
        (before,) = client.run(os.getpid).values()
        os.kill(before, signal.SIGKILL)
        pids = partial(client.run, os.getpid, on_error="ignore")
        wait_for(lambda: {*pids().values()} - {before})


class Stuck(WorkerPlugin):
    """Blocks the first worker that comes to a place, and writes down its process."""

    def __init__(self, place, marker):
        self.name, self.place, self.marker = f"stuck in a {place}", place, str(marker)

    def setup(self, worker):
        def block():
            try:
                mark = os.open(self.marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.write(mark, str(os.getpid()).encode())
            os.close(mark)
            time.sleep(600)

        def after(function):
            def call(*arguments):
                result = function(*arguments)
                block()
                return result

            return call

        def halfway(function):
            def call(store, box, value):
                half = box.shape[0] // 2
                stop = (box.start[0] + half, *box.stop[1:])
                function(store, Box(box.start, stop), value[:, :, :half])
                block()
                function(store, box, value)

            return call

        kind, name, change = {
            "tile": (StageRunner, "_kept", after),  # evaluated, and nothing kept of it
            "write": (PredictionStore, "write", halfway),
            "write between stages": (ZarrStore, "write", halfway),
            "reduction": (GlobalStore, "_merged", after),
        }[self.place]
        setattr(kind, name, change(getattr(kind, name)))


def kill_marked(marker):
    wait_for(lambda: marker.exists() and marker.read_text())
    os.kill(int(marker.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def client():
    with connect("local", workers=2) as made:
        yield made


@pytest.mark.parametrize("place", ["tile", "write", "write between stages", "reduction"])
def test_a_worker_killed_in_the_middle(place, client, model, survey, calm, tmp_path):
    marker, heard = tmp_path / "marker", []
    client.wait_for_workers(2)
    client.register_plugin(Stuck(place, marker))
    killer = threading.Thread(target=kill_marked, args=(marker,), daemon=True)
    killer.start()
    path = tmp_path / "o.zarr"
    found = outcrop.predict(model, survey, path, client=client, listeners=[heard.append], **HOW)
    killer.join()
    client.unregister_worker_plugin(f"stuck in a {place}")
    same(found, calm)
    retries = [e for e in heard if isinstance(e, Retry)]
    assert len(retries) == 1
    assert "was lost" in retries[0].message
    assert (retries[0].tiles > 0) == (place != "reduction")
    tiles = [(e.stage, e.tile) for e in heard if isinstance(e, Tile)]
    assert len(tiles) == len(set(tiles)) == heard[0].tiles


@pytest.mark.parametrize(
    ("place", "named"),
    [("tile", "stage 1, tile"), ("reduction", "global values of stage 1")],
)
def test_what_kills_every_worker_is_named(place, named, client, model, survey, tmp_path):
    marker, scheduler = tmp_path / "marker", client.cluster.scheduler
    client.wait_for_workers(1)
    client.register_plugin(Stuck(place, marker))
    killer = threading.Thread(target=kill_marked, args=(marker,), daemon=True)
    killer.start()
    patience, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        with pytest.raises(OutcropError, match=f"^{named}.*: 1 workers were lost.*--memory"):
            outcrop.predict(model, survey, tmp_path / "o.zarr", client=client, **HOW)
    finally:
        scheduler.allowed_failures = patience
        killer.join()
        client.unregister_worker_plugin(f"stuck in a {place}")


@contextlib.contextmanager
def after_a_warning(caught, do, *arguments):
    """Do something some time after the first warning of the block."""

    def wait():
        wait_for(lambda: len(caught))
        time.sleep(0.5)  # in which no other may come
        do(*arguments)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_after_the_last_tile_costs_nothing(sign, client, tmp_path, monkeypatch):
    """When workers are told that it is over."""
    monkeypatch.setattr(tasks, "_LOOK", 0.2)
    client.wait_for_workers(2)
    small, written, pids = make_survey((16, 16, 16)), [], client.run(os.getpid)

    def lose(event):
        if isinstance(event, Tile):
            written.append(event.worker)
            if len(written) == 8:
                os.kill(pids[event.worker], sign)

    start = time.monotonic()
    how = {"tile": (8, 8, 8), "storage_mode": "none", "client": client, "listeners": [lose]}
    outcrop.predict(nn.Conv3d(1, 1, 1).eval(), small, tmp_path / "o.zarr", **how)
    assert len(written) == 8
    assert time.monotonic() - start < 60
    if sign == signal.SIGSTOP:
        monkeypatch.setattr("outcrop.engine.crew._SILENT", 0.5)
        said = f"worker {written[-1]}: gives no answer: waiting"
        with (
            pytest.warns(UserWarning, match=said) as caught,
            after_a_warning(caught, os.kill, pids[written[-1]], signal.SIGCONT),
        ):
            check_versions(client)


def test_a_worker_lost_when_it_is_told_of_a_job(client, monkeypatch):
    monkeypatch.setattr(tasks, "_LOOK", 0.2)
    client.wait_for_workers(2)
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
    name = tasks.name_of_plugin(client)
    tasks.register(client, name, Full(False))
    assert all(client.run(lambda dask_worker: name in dask_worker.plugins).values())
    tasks.unregister(client, name)
    client.wait_for_workers(2)


def test_a_worker_that_does_not_see_what_lies_between_stages(tmp_path):
    """Which would make folders of its own, and the tiles in them be missed at the end."""
    places = SimpleNamespace(plan=SimpleNamespace(places={"x": "disk"}), folder=tmp_path / "none")
    job = Job("j", "n", places)
    job.stores = {}
    with pytest.raises(OutcropError, match=r"none: is not to be seen from .*the same on every"):
        job._store(None, "x")
    assert not list(tmp_path.iterdir())


class Chain(nn.Module):
    """Two norms in a row: what the first gives is removed before the third stage."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)
        self.first, self.second = nn.InstanceNorm3d(2), nn.InstanceNorm3d(2)
        self.c = nn.Conv3d(2, 1, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.first(self.a(x)))
        return self.c(torch.relu(self.second(self.b(x))))


class Stop(Exception):  # noqa: N818
    pass


def stopping(stage, tiles=3):
    """Return a listener that stops a run in a stage."""
    heard = []

    def stop(event):
        if isinstance(event, Tile) and event.stage == stage:
            heard.append(event)
            if len(heard) == tiles:
                raise Stop

    return stop


@pytest.mark.parametrize("where", ["this process", "a cluster"])
def test_stopped_in_every_stage_of_a_chain_of_norms(where, client, tmp_path):
    chain, small = Chain().eval(), make_survey((16, 16, 16))
    how = {**HOW, "client": client if where == "a cluster" else None}
    expected = outcrop.predict(chain, small, tmp_path / "calm.zarr", **how)
    assert len(outcrop.plan(chain, small, **HOW).stages) == 3
    path = tmp_path / "o.zarr"
    for stage in (1, 2, 3):
        with pytest.raises(Stop):
            outcrop.predict(chain, small, path, listeners=[stopping(stage)], **how)
    same(outcrop.predict(chain, small, path, **how), expected.load())


def test_begun_in_process_and_not_gone_on_with_by_a_cluster(client, tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    plan = outcrop.plan(chain, small, **HOW)
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, plan=plan, listeners=[stopping(2)])
    with pytest.raises(ResumeError, match="executor: 'this process', now 'a cluster'"):
        outcrop.predict(chain, small, path, plan=plan, client=client)


@pytest.mark.parametrize("first", ["in process", "on a cluster"])
def test_what_stores_nothing_goes_on_anywhere(first, client, tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    how = {"storage_mode": "none", "tile": (8, 8, 8)}
    expected = outcrop.predict(chain, small, tmp_path / "calm.zarr", **how)
    clients = [None, client] if first == "in process" else [client, None]
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, client=clients[0], listeners=[stopping(2)], **how)
    found = outcrop.predict(chain, small, path, client=clients[1], **how)
    assert np.abs(found.prediction - expected.prediction).max() < 1e-5


def test_other_options_are_named_where_a_run_cannot_go_on(tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, listeners=[stopping(2)], **HOW)
    with pytest.raises(ResumeError, match=r"options were storage_mode='disk'$") as caught:
        outcrop.predict(chain, small, path, tile=HOW["tile"], storage_mode="none")
    assert "executor" not in str(caught.value)


def test_workers_leave_ctrl_c_to_the_client(client):
    before = client.run(os.getpid)
    for pid in before.values():
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert client.run(os.getpid) == before


RUN = """
import sys
sys.path.insert(0, {tests!r})
import torch, outcrop
from outcrop.cluster import connect
from test_faults import HOW, Normed, make_survey
if __name__ == "__main__":
    try:
        with connect({cluster!r}) as client:
            outcrop.predict(Normed().eval(), make_survey((32, 40, 48)), {path!r}, client=client,
                            **HOW)
    except outcrop.OutcropError as error:
        sys.exit(str(error))
"""


def start(path, cluster):
    code = RUN.format(tests=str(Path(__file__).parent), path=str(path), cluster=cluster)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def scheduler(folder):
    """Start a scheduler and two workers as a batch system would."""
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    base = [sys.executable, "-m", "dask"]
    processes = [
        subprocess.Popen(
            [*base, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(file)], **quiet,
        )
    ]  # fmt: skip
    wait_for(file.exists)
    processes += [
        subprocess.Popen(
            [*base, "worker", "--scheduler-file", str(file), "--nthreads", "1",
             "--no-dashboard", "--host", "127.0.0.1"], **quiet,
        )
        for _ in range(2)
    ]  # fmt: skip
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=120)
    return str(file), processes


def stop(processes):
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def test_scheduler_lost_and_client_killed(model, survey, calm, tmp_path):
    """Both end the command; the same command again computes what is left alone."""
    path = tmp_path / "o.zarr"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    file, processes = scheduler(tmp_path / "one")
    try:
        run = start(path, file)
        wait_for(lambda: lines(path) >= 40 or run.poll() is not None)
        assert run.poll() is None
        processes[0].kill()
        message = run.communicate(timeout=120)[1].strip().splitlines()[-1]
        assert run.returncode == 1
        assert "the same command goes on" in message
    finally:
        stop(processes)
    done = lines(path)
    assert done >= 40
    file, processes = scheduler(tmp_path / "two")
    try:
        run = start(path, file)
        wait_for(lambda: lines(path) >= done + 40 or run.poll() is not None)
        assert run.poll() is None
        run.kill()
        run.wait()
        done = (path / "unfinished" / "finished.txt").read_text().split("\n")[:-1]
        heard = []
        with connect(file) as client:
            found = outcrop.predict(
                model, survey, path, client=client, listeners=[heard.append], **HOW
            )
            left = client.run(lambda dask_worker: [*dask_worker.plugins])
            assert not [n for names in left.values() for n in names if n.startswith("outcrop")]
    finally:
        stop(processes)
    same(found, calm)
    assert len(done) == len(set(done)) == heard[0].finished >= 80
    again = {f"0:{e.stage - 1}:{e.tile}" for e in heard if isinstance(e, Tile)}
    assert not again & set(done)
    assert len(again) + len(done) == heard[0].tiles


def test_tls(model, survey, calm, tmp_path):
    """Scheduler, workers and client talk encrypted; who shows nothing gets nowhere."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=outcrop", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    with connect("local", 1, Tls(cert, cert, key)) as client:
        address = client.scheduler_info()["address"]
        assert address.startswith("tls://127.0.0.1:")
        assert all(w.startswith("tls://127.0.0.1:") for w in workers_there(client))
        found = outcrop.predict(model, survey, tmp_path / "o.zarr", client=client, **HOW)
        with pytest.raises(OutcropError, match="--tls-ca"), connect(address):
            pass
        host, port = address.removeprefix("tls://").split(":")
        stranger = ssl.create_default_context(cafile=cert)
        stranger.check_hostname = False
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            pytest.raises(ssl.SSLError, match="certificate required"),
            stranger.wrap_socket(plain) as wrapped,
        ):
            wrapped.recv(1)
    same(found, calm)
    for address, shown, said in (
        ("tls://127.0.0.1:1", None, "pass --tls-ca"),
        ("tcp://127.0.0.1:1", Tls(cert, cert, key), "does not encrypt"),
    ):
        (tmp_path / "s.json").write_text(json.dumps({"address": address}))
        with (
            pytest.raises(OutcropError, match=said),
            connect(str(tmp_path / "s.json"), tls=shown),
        ):
            pass
    with pytest.raises(OutcropError, match=r"none\.pem: not found"):
        connect("local", 1, Tls(tmp_path / "none.pem", cert, key)).__enter__()


def pretend(name, value):
    from outcrop.engine import crew

    setattr(crew, name, lambda *_: value)


def test_workers_that_do_not_suit_are_named(model, survey, tmp_path):
    plan = outcrop.plan(model, survey, **HOW)
    small = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "400MB"}
    with (
        LocalCluster(host="127.0.0.1", dashboard_address=None, **small) as cluster,
        Client(cluster) as client,
    ):
        how = {"client": client, "plan": replace(plan, peak_memory=10**9)}
        with pytest.raises(MemoryBudgetError, match=r"worker tcp://127.*the plan takes 1 GB"):
            outcrop.predict(model, survey, tmp_path / "o.zarr", **how)
    with connect("local", workers=1) as client:
        check_workers(client, plan)
        alike = np.broadcast_to(np.float32(0), (8192, 8192, 8192))  # which takes no memory itself
        lines = {d: np.arange(8192) for d in ("inline", "crossline", "twt")}
        large, point = xr.DataArray(alike, lines, [*lines]), nn.Conv3d(1, 1, 1).eval()
        with pytest.raises(MemoryBudgetError, match=r"to send its 2\.199 TB to each .* its Zarr"):
            outcrop.predict(point, large, tmp_path / "o.zarr", client=client)
        client.run(pretend, "versions", {"outcrop": outcrop.__version__, "torch": "1.0"})
        with pytest.raises(OutcropError, match=r"worker tcp://127.*has torch 1\.0, here it is 2"):
            outcrop.predict(model, survey, tmp_path / "o.zarr", client=client, **HOW)


# Anywhere


def states_gone(path):
    """Half of them, and one is cut off."""
    states = sorted((path / "unfinished").rglob("*.state"))
    for state in states[::2]:
        state.unlink()
    states[1].write_bytes(b"")


def stored_cut_off(path):
    for file in (path / "unfinished" / "stored").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


@pytest.mark.parametrize(("stage", "harm"), [(1, states_gone), (3, stored_cut_off)])
@pytest.mark.parametrize("on_cluster", [False, True])
def test_what_tiles_gave_and_is_gone_is_evaluated_again(stage, harm, on_cluster, tmp_path, client):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    how = {**HOW, "client": client if on_cluster else None}
    calm = outcrop.predict(chain, small, tmp_path / "calm.zarr", **how).load()
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, listeners=[stopping(stage, 5)], **how)
    harm(path)
    with (
        pytest.warns(UserWarning, match=r"unfinished/stored/.*tiles gave is gone; they are eval"),
        pytest.raises(Stop),
    ):
        outcrop.predict(chain, small, path, listeners=[stopping(1, 1)], **how)
    # That it is gone is known from then on, whatever lies there.
    same(outcrop.predict(chain, small, path, **how), calm)


@pytest.mark.parametrize(("mode", "on_cluster"), [("disk", True), ("none", False)])
def test_parts_of_the_output_that_are_gone_are_evaluated_again(mode, on_cluster, tmp_path, client):
    """In the middle of the last stage, and after it, when all that it read is removed."""
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    channels = (OutputCard("fault_probability", "p", "1", (0.0, 1.0)),)
    chain.card = Card("chain", "", "", "", "", (AMPLITUDE,), channels)
    how = {"tile": (8, 8, 8), "storage_mode": mode, "threshold": 0.5}
    how["client"] = client if on_cluster else None
    calm = outcrop.predict(chain, small, tmp_path / "calm.zarr", **how).load()

    def at_the_end(event):
        if isinstance(event, Stage) and event.stage == 3:
            raise Stop

    def objects(name):
        return sorted(p for p in (path / name / "c").rglob("*") if p.is_file())

    # What workers still wrote after the fifth is not noted, and not missed.
    for stop, count in ((stopping(3, 5), "[1-4]"), (at_the_end, "4")):
        with pytest.raises(Stop):
            outcrop.predict(chain, small, path, listeners=[stop], **how)
        objects("fault_probability")[1].write_bytes(b"")
        objects("fault_probability")[0].unlink()
        objects("fault")[2].unlink()
        notes = path / "unfinished" / "checksums"
        (notes / objects("fault_probability")[3].relative_to(path)).write_bytes(b"")
        with open(path / "unfinished" / "finished.txt", "ab") as journal:
            journal.write(b"\0\xff\n0:0:999999\n0:9:0\n")  # as a machine that lost power leaves it
        with (
            pytest.warns(UserWarning, match=rf"o\.zarr: what {count} tiles gave is gone"),
            pytest.raises(Stop),
        ):
            outcrop.predict(chain, small, path, listeners=[stopping(3, 2)], **how)
    same(outcrop.predict(chain, small, path, **how), calm)
    assert outcrop.verify(path).damage == ()


def test_a_cluster_that_stopped_while_it_merged_goes_on_elsewhere(tmp_path):
    """States of all levels are there, of none all."""
    node = SimpleNamespace(op="norm_stats", attrs={})
    states = [torch.rand(3, 4, dtype=torch.float64) for _ in range(300)]
    made = []
    for name, merged in (("whole", ()), ("part", (1, 3))):
        store = GlobalStore(node, torch.float32, folder=tmp_path / name)
        store._merged = sum
        for n, state in enumerate(states):
            store.put(n, state, 300)
        groups = next(iter(store.levels(300)))[1]
        for i in merged:
            store.merge(0, groups[i])
        assert store.lost((n, None) for n in range(300)) == set()
        made.append(torch.stack(store._states(300)).sum(0))
    torch.testing.assert_close(*made)
    for n in (5, 70):
        store._state(0, n).unlink()
    assert store.lost((n, None) for n in range(300)) == {5}
    with pytest.raises(ResumeError, match=r"0-5\.state: gone; run the same command again"):
        store._states(300)
    store._state(0, 5).write_bytes(b"x")
    with pytest.raises(ResumeError, match=r"0-5\.state: is damaged; delete that file"):
        store._states(300)


def test_two_runs_into_one_output(model, survey, tmp_path, monkeypatch):
    path, began, go_on = tmp_path / "o.zarr", threading.Event(), threading.Event()
    write = PredictionStore.write

    def slowly(*arguments):
        began.set()
        go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(PredictionStore, "write", slowly)
    first = threading.Thread(target=outcrop.predict, args=(model, survey, path), kwargs=HOW)
    first.start()
    began.wait(60)
    unread = survey * np.nan  # which would be refused once it is read
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="another process is writing it"):
            outcrop.predict(model, unread, path, overwrite=overwrite, **HOW)
    go_on.set()
    first.join()
    assert xr.open_zarr(path).prediction.shape == (32, 40, 48)
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]


def test_a_store_that_refuses_for_a_moment_is_asked_again(model, survey, tmp_path, monkeypatch):
    calm = outcrop.predict(model, survey, tmp_path / "calm.zarr", **HOW)
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.01, 0.01))
    refused = []

    def refusing(function):
        def call(*arguments):
            refused.append(function)
            if len(refused) % 7 == 3:
                raise OSError(28, "No space left on device")
            return function(*arguments)

        return call

    for kind, name in ((PredictionStore, "write"), (SurveyStore, "read")):
        monkeypatch.setattr(kind, name, refusing(getattr(kind, name)))
    with pytest.warns(patience.StorageRefused, match="No space left on device; trying again"):
        found = outcrop.predict(model, survey, tmp_path / "o.zarr", **HOW)
    same(found, calm.load())


def test_a_store_that_refuses_for_good(model, survey, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.01, 0.01))
    path, write, count = tmp_path / "o.zarr", PredictionStore.write, []

    def full(*arguments):
        count.append(1)
        if len(count) > 20:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(PredictionStore, "write", full)
    with (
        pytest.warns(patience.StorageRefused),
        pytest.raises(OutcropError, match=r"no space left .* goes on where it stopped"),
    ):
        outcrop.predict(model, survey, path, **HOW)
    done = lines(path)
    assert done >= 19
    monkeypatch.setattr(PredictionStore, "write", write)
    found = outcrop.predict(model, survey, path, **HOW)
    assert np.isfinite(found.prediction.values).all()


def test_what_is_full_is_named(model, survey, tmp_path, monkeypatch):
    """Which may be another disk than that of the output."""
    monkeypatch.setattr(patience, "WAITS", ())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OutcropError, match=r"scratch/.*: no space left .* goes on where it"):
        outcrop.predict(
            model, survey, tmp_path / "o.zarr", storage_path=tmp_path / "scratch", **HOW
        )


def test_a_store_of_workers_that_is_full_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrayStore, "write", full)
    box = Box((0, 0, 0), (4, 4, 4))
    store = ZarrStore(tmp_path / "x", (1, 1, 4, 4, 4), 3, torch.float32, box, (4, 4, 4))
    with pytest.raises(OSError, match="No space left") as caught:
        store.write(box, torch.zeros(1, 1, 4, 4, 4))
    assert pickle.loads(pickle.dumps(caught.value)).filename == str(tmp_path / "x")


def test_a_run_that_is_overwritten_leaves_nothing_elsewhere(tmp_path):
    chain, small, scratch = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "scratch"
    scratch.mkdir()
    how = {**HOW, "storage_path": scratch}
    for name in ("a", "b"):
        with pytest.raises(Stop):
            outcrop.predict(chain, small, tmp_path / name, listeners=[stopping(2)], **how)
    assert len(list(scratch.iterdir())) == 2
    how["tile"] = (4, 8, 8)
    outcrop.predict(chain, small * 2, tmp_path / "a", overwrite=True, **how)
    assert len(list(scratch.iterdir())) == 1
    outcrop.predict(chain, small, tmp_path / "b", **{**how, **HOW})
    assert not list(scratch.iterdir())


class Full(WorkerPlugin):
    """The disk of a worker that refuses now and then, or for good from some point."""

    name = "full"

    def __init__(self, for_good):
        self.for_good = for_good

    def setup(self, worker):
        self.before, count = (PredictionStore.write, patience.WAITS), []

        def write(*arguments):
            count.append(1)
            if len(count) > 20 if self.for_good else len(count) % 7 == 3:
                raise OSError(28, "No space left on device")
            self.before[0](*arguments)

        PredictionStore.write, patience.WAITS = write, (0.01, 0.01, 0.01)

    def teardown(self, worker):
        PredictionStore.write, patience.WAITS = self.before


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.filterwarnings("ignore::outcrop.patience.StorageRefused")
def test_disks_of_workers_that_refuse(for_good, client, model, survey, calm, tmp_path):
    path, heard = tmp_path / "o.zarr", []
    how = {**HOW, "client": client, "listeners": [heard.append]}
    client.register_plugin(Full(for_good))
    try:
        if for_good:
            said = r"o.zarr, on tcp://.*: no space left .* goes on where it stopped"
            with pytest.raises(OutcropError, match=said):
                outcrop.predict(model, survey, path, **how)
        else:
            outcrop.predict(model, survey, path, **how)
    finally:
        client.unregister_worker_plugin("full")
    told = any(isinstance(e, Retry) and "No space left" in e.message for e in heard)
    assert told or for_good
    if for_good:
        assert 20 <= lines(path) < heard[0].tiles
        outcrop.predict(model, survey, path, **how)
    same(xr.open_zarr(path), calm)


def test_states_and_values_are_kept_at_the_second_attempt(tmp_path, monkeypatch):
    node = SimpleNamespace(op="norm_stats")
    save, count = outcrop.engine.globals.write_whole, []

    def full(*arguments):
        count.append(arguments)
        if len(count) > 2 and len(count) % 2:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(patience, "WAITS", (0.0,))
    monkeypatch.setattr(outcrop.engine.globals, "write_whole", full)
    monkeypatch.setattr(GlobalStore, "_merged", lambda self, states: sum(states))
    rule = SimpleNamespace(result=lambda node, value, dtype: value)
    monkeypatch.setattr(outcrop.engine.globals, "RULES", {"norm_stats": rule})
    monkeypatch.setattr(outcrop.engine.globals, "Reduce", SimpleNamespace)
    store = GlobalStore(node, torch.float32, folder=tmp_path / "g")
    store.put(0, torch.ones(1), 2)
    store.put(1, torch.ones(1), 2)
    with pytest.warns(patience.StorageRefused):
        store.merge(0, range(2))
    with pytest.warns(patience.StorageRefused):
        store.finish(2)
    assert store.get().item() == 2
    assert store.lost((n, None) for n in range(2)) == set()
    store.remove()
    assert not (tmp_path / "g").exists()


def test_the_value_of_one_tile_is_there_with_its_state(tmp_path):
    """In an object store each file takes a request: sections have one tile in most stages."""
    x = torch.rand(1, 2, 4, 4, 4)
    graph, _ = capture(nn.InstanceNorm3d(2).eval(), [x])
    node = next(node for node in graph.nodes.values() if isinstance(RULES[node.op], Reduce))
    state = RULES[node.op].state(node, x)
    one, two = (GlobalStore(node, torch.float32, folder=tmp_path / name) for name in "ab")
    one.put(0, state, 1)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["value"]
    assert one.lost([(0, None)]) == set()
    for n in range(2):
        two.put(n, state, 2)
    for store, count in ((one, 1), (two, 2)):
        store.finish(count)
    torch.testing.assert_close(one.get(), two.get())


def test_two_workers_create_a_stored_tensor_at_once(tmp_path, monkeypatch):
    create = zarr.create_array

    def both(*arguments, **options):
        create(*arguments, **options)
        return create(*arguments, **options)

    monkeypatch.setattr(zarr, "create_array", both)
    box = Box((0, 0, 0), (4, 4, 4))
    fence = SimpleNamespace(check=lambda: pytest.fail("asked"))
    store = ZarrStore(tmp_path / "x", (1, 1, 4, 4, 4), 3, torch.float32, box, (2, 2, 2), fence)
    with pytest.raises(pytest.fail.Exception, match="asked"):
        store.write(box, torch.zeros(1, 1, 4, 4, 4))


def test_a_worker_of_another_version_that_joins_late_is_named():
    network = Network("n", {}, torch.device("cpu"), {"outcrop": "0.1"})
    network.address = "tcp://w:1"
    with pytest.raises(OutcropError, match=r"worker tcp://w:1: has .*install the same versions"):
        Job("j", "n", None).run(network, None, 0, [])


class Holed(nn.Module):
    """NaN where the sample is the largest of all."""

    def forward(self, x):
        return torch.where(x > 4.4, torch.full_like(x, torch.nan), x)


@pytest.mark.parametrize("cluster", [None, "local"])
def test_values_that_are_not_finite(cluster, tmp_path):
    survey = make_survey((9, 10, 11), missing=0)
    survey.amplitude[:] = 1.0
    survey.amplitude[3, 4, 5] = 5.0
    place = "prediction: NaN or infinite at inline 106, crossline 304, twt 20 ms, and at 0 more"
    with connect(cluster, cluster and 1) as client:
        how = {"tile": (4, 4, 4), "client": client}
        with pytest.raises(NonFiniteError, match=place):
            outcrop.predict(Holed().eval(), survey, tmp_path / "a.zarr", **how)
        with pytest.raises(NonFiniteError, match=f"all/1.zarr: {place}"):
            outcrop.predict_all(Holed().eval(), [survey / 9, survey], tmp_path / "all", **how)
        with pytest.warns(UserWarning, match=place):
            found = outcrop.predict(
                Holed().eval(), survey, tmp_path / "b.zarr", nonfinite="warn", **how
            )
    assert np.isnan(found.prediction.values[3, 4, 5])
    assert np.isnan(found.prediction.values).sum() == 1


def test_an_overwrite_that_was_stopped_goes_on(tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    calm = outcrop.predict(chain, small, tmp_path / "calm.zarr", **HOW).load()
    outcrop.predict(chain, small * 2, path, **HOW)
    how, heard = {**HOW, "overwrite": True}, []
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, listeners=[stopping(2)], **how)
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, listeners=[heard.append, stopping(2)], **how)
    assert heard[0].finished == 11
    for gone in (path / "unfinished" / "stored").iterdir():
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ResumeError, match="gone, though"):
        outcrop.predict(chain, small, path, **HOW)
    with pytest.warns(UserWarning, match="evaluated again"):
        same(outcrop.predict(chain, small, path, **how), calm)


@pytest.mark.parametrize(
    ("name", "said"), [("prediction/zarr.json", "gone; put it back"), ("unfinished/plan.json", "")]
)
def test_damaged_metadata_of_an_unfinished_output(name, said, tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, listeners=[stopping(2)], **HOW)
    if said:
        (path / name).unlink()
        with pytest.raises(ResumeError, match=f"{name}: {said}, or pass overwrite=True"):
            outcrop.predict(chain, small, path, **HOW)
    else:
        (path / name).write_text("")
    outcrop.predict(chain, small, path, overwrite=bool(said), **HOW)
    assert outcrop.verify(path).damage == ()


def test_another_storage_path_is_named_and_the_one_before_emptied(tmp_path):
    chain, small, path = Chain().eval(), make_survey((16, 16, 16)), tmp_path / "o.zarr"
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(Stop):
        outcrop.predict(chain, small, path, storage_path=first, listeners=[stopping(2)], **HOW)
    for other in (second, None):
        with pytest.raises(ResumeError, match=r"storage_path: '.*/first', now "):
            outcrop.predict(chain, small, path, storage_path=other, **HOW)
    assert list(first.iterdir())
    outcrop.predict(chain, small, path, storage_path=second, overwrite=True, **HOW)
    assert not list(first.iterdir())
    assert not list(second.iterdir())


def test_a_persisted_survey_is_refused(client, tmp_path):
    persisted = make_survey((16, 16, 16)).chunk(8).persist()
    with pytest.raises(SurveyError, match=r"amplitude: is persisted on a cluster.*\.load\(\)"):
        outcrop.predict(Chain().eval(), persisted, tmp_path / "o.zarr", client=client, **HOW)


def test_a_damaged_chunk_is_named(model, tmp_path):
    survey = make_survey((16, 16, 16))
    survey.chunk(8).to_zarr(tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "amplitude" / "c" / "1" / "0" / "1"
    data = bytearray(chunk.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    chunk.write_bytes(data)
    where = (
        r"amplitude: chunk c/1/0/1 cannot be decoded, of inline 116 to 130, crossline 300 to 307"
    )
    with pytest.raises(SurveyError, match=where):
        outcrop.predict(model, tmp_path / "s.zarr", tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
