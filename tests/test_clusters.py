"""Plans for clusters, scheduling at scale, and the scripts for SLURM and Kubernetes."""

import contextlib
import json
import os
import py_compile
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cloudpickle
import dask
import numpy as np
import psutil
import pytest
import torch
import typer.main
import xarray as xr
import yaml
from distributed import Client, LocalCluster, wait
from distributed.comm import CommClosedError
from torch import nn
from typer.testing import CliRunner

import outcrop
from command_line import script_command
from outcrop import tasks
from outcrop.cli.main import app
from outcrop.cluster import connect, workers_there
from outcrop.engine.crew import (
    _facts,
    _store_seconds,
    _suitable,
    _wait_for,
    _with_gpu,
    _WorkerLostError,
    check_versions,
    crew_of,
    least_room,
    versions,
)
from outcrop.engine.dask_executor import run_dask
from outcrop.engine.labelled import frame
from outcrop.engine.planning import captured
from outcrop.engine.whole import example
from outcrop.errors import ArgumentError, MemoryBudgetError, SurveyError
from outcrop.events import Stage, Tile
from outcrop.graph import capture
from outcrop.planner import make_plan
from outcrop.planner.rates import _CPU, Crew, remembered
from test_faults import after_a_warning, wait_for
from test_predict import Odd, make_survey

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import empty  # noqa: E402


@pytest.fixture(scope="module")
def client():
    # Logs of the scheduler, which soon grow no more.
    short = {"distributed.admin.log-length": 50, "distributed.admin.low-level-log-length": 50}
    with dask.config.set(short), connect("local", workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def graph():
    """Convolutions that are dear, after one that reduces the grid: worth storing."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 32, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv3d(32, 32, 5, padding=2), nn.ReLU()]
    layers.append(nn.Conv3d(32, 1, 3, padding=1))
    return capture(nn.Sequential(*layers).eval(), [example((1, 1, 128, 128, 128), torch.float32)])[
        0
    ]


def crew(workers=2, memory=None, disk=1e9):
    return Crew(workers, memory, replace(_CPU, disk=disk))


def test_auto_stores_where_the_store_is_fast_enough(graph):
    fast = make_plan(graph, memory=10**9, crew=crew(disk=1e12))
    slow = make_plan(graph, memory=10**9, crew=crew(disk=1e5))
    assert set(fast.places.values()) == {"disk"}
    assert not slow.places
    for disk, chosen in ((1e12, fast), (1e5, slow)):
        for mode in ("disk", "none"):
            other = make_plan(graph, memory=10**9, storage_mode=mode, crew=crew(disk=disk))
            assert chosen.seconds <= other.seconds


def test_a_plan_fits_each_worker_and_occupies_all(graph):
    plan = make_plan(graph, memory=10**9, crew=crew(memory=3 * 10**8))
    assert plan.peak_memory <= plan.memory == 3 * 10**8
    few, many = (make_plan(graph, memory=8 * 10**9, crew=crew(workers=n)) for n in (1, 16))
    assert min(stage.count for stage in many.stages) >= 16
    assert many.seconds < few.seconds / 8


def test_the_crew_is_measured_once(client, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTCROP_CACHE", str(tmp_path / "cache"))
    found = crew_of(client, "cpu", "float32", tmp_path / "store")
    assert found.workers == 2
    assert found.memory > 0
    assert 1e6 < found.rates.disk < 1e11
    assert not list((tmp_path / "store").iterdir())

    def again(file, key, measure, suits):
        return remembered(file, key, lambda: pytest.fail("measured again"), suits)

    monkeypatch.setattr("outcrop.engine.crew.remembered", again)
    assert crew_of(client, "cpu", "float32", tmp_path / "store").rates == found.rates
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("outcrop.engine.crew.remembered", lambda f, k, measure, s: measure())
    with pytest.raises(outcrop.OutcropError, match=r"worker tcp://.*: cannot write in .*file/x"):
        crew_of(client, "cpu", "float32", tmp_path / "file" / "x")


def test_predict_plans_for_the_workers(client, tmp_path):
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1)).eval()
    survey = make_survey((40, 32, 32))
    heard = []
    outcrop.predict(network, survey, tmp_path / "o.zarr", client=client, listeners=[heard.append])
    assert heard[0].stages[-1]["tiles"] >= 2
    assert len({e.worker for e in heard if isinstance(e, Tile)}) == 2


class Spectrum(nn.Module):
    """An operator without a rule, which is evaluated in one piece, between two convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 1, 3, padding=1)

    def forward(self, x):
        dims = (2, 3, 4)
        return self.b(torch.fft.irfftn(0.5 * torch.fft.rfftn(self.a(x), dim=dims), dim=dims))


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_what_must_be_stored_is_where_all_workers_reach_it(mode, client, tmp_path):
    model, survey = Spectrum().eval(), make_survey((8, 8, 8))
    expected = outcrop.predict(model, survey, tmp_path / "a.zarr").prediction
    how = {"storage_mode": mode, "client": client}
    found = outcrop.predict(model, survey, tmp_path / "b.zarr", **how).prediction
    assert abs(found - expected).max() < 1e-5
    for alone in ({"storage_mode": "cpu"}, {"storage_compression": True}):
        for refused in (outcrop.plan, partial(outcrop.predict, path=tmp_path / "c.zarr")):
            with pytest.raises(ArgumentError, match=f"{next(iter(alone))}.* with a client"):
                refused(model, survey, client=client, **alone)


def test_workers_read_the_samples_of_what_is_merged(client, monkeypatch):
    from outcrop.engine.views import _identity

    network = nn.Conv3d(1, 1, 1).eval()
    framed = frame(network, make_survey((16, 16, 16)).chunk({"inline": 8}))
    network_graph, _ = captured(network, framed)
    here = _identity(network, framed, network_graph, None, {})
    monkeypatch.delattr("outcrop.engine.statistics.dask_threads")
    assert _identity(network, framed, network_graph, None, {"client": client}) == here
    with pytest.raises(outcrop.OutcropError, match="client: is a str"):
        _identity(network, framed, network_graph, None, {"client": "tcp://host:8786"})


def test_a_bad_survey_does_not_keep_others_from_the_end(client, tmp_path):
    model, (good, bad) = nn.Conv3d(1, 1, 1).eval(), (make_survey((16, 16, 16)) for _ in range(2))
    bad["amplitude"] = bad.amplitude.where(bad.live, 0) + torch.nan
    with pytest.raises(SurveyError, match="survey 1: "):
        outcrop.predict_all(model, [good, bad], tmp_path / "o", client=client, tile=(8, 8, 8))
    assert outcrop.open(tmp_path / "o" / "0.zarr").prediction.shape == (16, 16, 16)


def test_a_client_that_is_closed_meanwhile(tmp_path):
    with connect("local", workers=1) as made:

        def close(event):
            if isinstance(event, Tile):
                made.close()

        model, survey = nn.Conv3d(1, 1, 1).eval(), make_survey((16, 16, 16))
        plan = outcrop.plan(model, survey, tile=(8, 8, 8), storage_mode="none")
        how = {"client": made, "plan": plan, "listeners": [close]}
        with pytest.raises(outcrop.OutcropError, match="the same command goes on"):
            outcrop.predict(model, survey, tmp_path / "o.zarr", **how)


def test_workers_that_do_not_start(monkeypatch):
    monkeypatch.setattr("outcrop.cluster._FIRST", "import os; os._exit(1)")
    with pytest.raises(outcrop.OutcropError, match="--cluster local: its workers do not start"):
        connect("local", workers=1).__enter__()


def test_what_fails_on_a_local_worker_is_told_by_the_client_alone(capfd):
    with connect("local", workers=1) as made, pytest.raises(ZeroDivisionError):
        made.submit(divmod, 1, 0).result()
    assert "Compute Failed" not in capfd.readouterr().err


def test_a_worker_that_dies_while_it_is_asked(monkeypatch):
    monkeypatch.setattr("outcrop.engine.crew._LOOK", 0.1)
    facts = {**versions(), "memory": 1}
    answers = [{"a": CommClosedError("gone"), "b": facts}, {"b": facts}]
    monkeypatch.setattr("outcrop.engine.crew.workers_there", lambda _: {})
    asked = SimpleNamespace(_run=None)
    asked.sync = lambda *_, **__: answers[0]
    with pytest.raises(outcrop.OutcropError, match="worker a: was lost while it was asked"):
        check_versions(asked)
    asked.sync = lambda *_, **__: answers.pop(0)
    assert _suitable(asked, "cpu") == {"b": facts}


def test_a_store_that_is_full_keeps_no_sample(tmp_path, monkeypatch):
    def write(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://w:1"))
    with pytest.raises(outcrop.OutcropError, match=r"worker tcp://w:1: no space left in"):
        _store_seconds(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_plans_for_the_workers(tmp_path):
    make_survey((40, 32, 32)).to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    words = ["plan", str(tmp_path / "s.zarr"), "--model", "faultseg3d", "--json"]
    how = ["--cluster", "local", "--workers", "2", "--storage-path", str(tmp_path)]
    one, two = (
        json.loads(CliRunner().invoke(app, [*words, *more], catch_exceptions=False).output)
        for more in ([], how)
    )
    assert min(stage["tile"] for stage in two["stages"]) < min(s["tile"] for s in one["stages"])
    assert set(two["places"].values()) <= {"disk"}


def test_workers_may_come_late(tmp_path):
    """Such as those of a cluster that starts them for tasks alone."""
    survey = make_survey((24, 24, 24))
    model = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)).eval()
    expected = outcrop.predict(model, survey, tmp_path / "a.zarr")
    quiet = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**quiet) as cluster, Client(cluster) as late:
        with pytest.warns(UserWarning, match="no worker is there: waiting"):
            assert tasks.Window(late).has_room()
        cluster.adapt(minimum=0, maximum=1, interval="0.2s")
        found = outcrop.predict(model, survey, tmp_path / "b.zarr", client=late)
    xr.testing.assert_equal(found.drop_attrs(), expected.drop_attrs())


def test_in_one_process_no_client_is_asked(tmp_path):
    """Though Dask takes one that there is, for whatever is computed unsaid."""
    make_survey((32, 32, 32)).to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    model, how = Odd().eval(), {"tile": (32, 32, 32)}
    expected = outcrop.predict(model, tmp_path / "s.zarr", tmp_path / "a.zarr", **how)
    none = {"n_workers": 0, "dashboard_address": None}
    soon = {"distributed.scheduler.no-workers-timeout": "0.1s"}
    with dask.config.set(soon), LocalCluster(**none) as cluster, Client(cluster):
        found = outcrop.predict(model, tmp_path / "s.zarr", tmp_path / "b.zarr", **how)
        found = found.compute(scheduler="threads")
    xr.testing.assert_equal(found, expected)


def test_very_many_tiles_take_little_of_client_and_scheduler(client, tmp_path, monkeypatch):
    """The scheduler lives in this process, too."""
    tiles, sent, submit = 5000, [], client.submit

    def measured(*arguments, **options):
        sent.append((len(cloudpickle.dumps(arguments[1:])), len(arguments[6])))
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", measured)
    memory, heard = empty.Memory(tiles // 20), []
    whole = empty.evaluation(
        tiles,
        tmp_path / "o.zarr",
        [memory, lambda e: isinstance(e, Stage) and heard.append(e)],
    )
    run_dask(client, [whole])
    assert memory.tiles == sum(count for _, count in sent) == tiles
    assert len(heard) == 1
    # What grows with the tiles would have grown by less than 200 MB for 200,000.
    # The median, since what this process takes for other reasons comes in one step.
    growth = statistics.median(np.diff(memory.resident))
    assert growth * 200_000 / (tiles // 20) < 200e6
    assert all(size < 500 + 200 * count for size, count in sent)
    assert max(size for size, _ in sent) < 20_000


def test_a_window_waits_for_what_runs(client, tmp_path):
    """No task of a run that is stopped writes into what the next one makes."""
    began, ended = tmp_path / "began", tmp_path / "ended"

    def task():
        began.write_text("")
        time.sleep(1.0)
        ended.write_text("")

    with tasks.Window(client) as window:
        window.submit("slow", 0, task)
        until(began)()
    assert ended.exists()


def test_a_result_that_is_lost_with_its_worker_is_made_again(client, tmp_path):
    """Before the client, which may be merging, has taken it."""

    def task():
        if (tmp_path / "before").exists():
            time.sleep(1.0)
        (tmp_path / "before").touch()
        return os.getpid()

    with tasks.Window(client) as window:
        window.submit("lost", 0, task)
        (future,) = window._running.futures
        wait(future, timeout=60)
        before = future.result()
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: future.status != "finished")
        assert window.take(str) is None
        done = []
        wait_for(lambda: done.append(window.take(str)) or done[-1])
    assert done[-1][0] == 0
    assert done[-1][1] != before
    client.wait_for_workers(2, timeout=60)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (PermissionError("denied"), PermissionError, "^denied$"),  # of an object store: no number
        (FileNotFoundError(2, "gone"), outcrop.OutcropError, "^7: FileNotFoundError: .* goes on"),
        (RuntimeError("odd\nodder"), outcrop.OutcropError, "^7: RuntimeError: odd; if workers"),
    ],
)
def test_what_a_task_ends_with_is_told_as_it_is(error, raised, said, client):
    with tasks.Window(client) as window:
        fail = lambda error: (_ for _ in ()).throw(error)  # noqa: E731
        window.submit(type(error).__name__, 7, fail, error)
        wait([*window._running.futures])
        with pytest.raises(raised, match=said):
            window.take(str)


def test_a_window_looks_for_workers_while_tasks_run(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_LOOK", 0.1)
    counted = []
    with tasks.Window(client, counted.append) as window:
        window.submit("slow", 0, until(tmp_path / "enough"))
        assert window.take(str) is None
        assert counted == [2]
        time.sleep(0.2)
        with monkeypatch.context() as nobody:
            nobody.setattr(tasks, "workers_there", lambda _: {})
            with pytest.warns(UserWarning, match="no worker is there") as caught:
                counts = [window.workers(), window.workers()]
        assert counts == [0, 0]
        assert len(caught) == 1
        (tmp_path / "enough").touch()
        while window.take(str) is None:
            pass
    assert counted[1] == 0


def test_a_task_may_end_while_workers_are_counted(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_LOOK", 0.1)
    answers = []

    def count(_):
        (tmp_path / "enough").touch()
        time.sleep(0.6)  # in which the task ends
        answered = threading.Event()
        client.loop.add_callback(answered.set)
        answers.append(answered.wait(5))
        return {}

    with tasks.Window(client) as window:
        window.submit("soon over", 0, until(tmp_path / "enough"))
        monkeypatch.setattr(tasks, "workers_there", count)
        with pytest.warns(UserWarning, match="no worker is there"):
            assert window.take(str) is None
        assert window.take(str) == (0, None)
    assert answers == [True]


def test_workers_that_dask_pauses_are_told_of(monkeypatch):
    monkeypatch.setattr(tasks, "_LOOK", 0.1)
    monkeypatch.setattr("outcrop.engine.crew._LOOK", 0.1)
    few = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "1GB"}
    with (
        LocalCluster(host="127.0.0.1", dashboard_address=None, **few) as local,
        Client(local) as client,
    ):
        client.run(fill)
        wait_until_paused(client)
        with pytest.raises(MemoryBudgetError, match=r"worker tcp://127.*has no memory to give"):
            crew_of(client, "cpu", "float32", Path("nowhere"))
        task = client.submit(int, "7")
        with (
            pytest.warns(UserWarning, match="worker tcp://127.*takes no task, since") as caught,
            after_a_warning(caught, client.run, free),
        ):
            _wait_for(client, {address(client): task})
        assert len(caught) == 1
        client.run(fill)
        wait_until_paused(client)
        task = client.submit(int, "8")
        with (
            pytest.warns(UserWarning, match="no worker takes tasks, since each") as caught,
            after_a_warning(caught, client.run, free),
        ):
            assert tasks.gather(client, [task]) == [8]
        assert len(caught) == 1


def test_what_pytorch_keeps_of_a_gpu_counts_as_room(monkeypatch):
    """As after a prediction, or in the middle of one."""
    gpu = {"is_available": True, "mem_get_info": (20, 80), "memory_reserved": 50}
    worker = SimpleNamespace(address="w", state=SimpleNamespace(all_running_tasks=set()))
    rooms = []
    for running, allocated in ((set(), 10), ({"tile"}, 40)):
        worker.state.all_running_tasks = running
        for name, value in {**gpu, "memory_allocated": allocated}.items():
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        rooms.append(_facts("cuda", worker)["memory"])
    assert rooms == [60, 60]


def test_what_a_running_task_holds_counts_as_room(tmp_path):
    """As where the next of several surveys is planned while tiles of the one before run."""
    few = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "2GB"}
    with (
        LocalCluster(host="127.0.0.1", dashboard_address=None, **few) as local,
        Client(local) as client,
    ):
        before = least_room(client, "cpu")
        task = client.submit(hold, 5 * 10**8, tmp_path)
        until(tmp_path / "held")()
        during = least_room(client, "cpu")
        assert not task.done()
        (tmp_path / "enough").touch()
        assert abs(during - before) < 5 * 10**7
        task.result()
        held = client.submit(kept, 3 * 10**8)
        wait(held)
        assert least_room(client, "cpu") < before - 2 * 10**8


def kept(size):
    return b"1" * size


def hold(size, folder):
    """Hold memory, and say so, until it is enough."""
    held = b"1" * size
    (folder / "held").touch()
    until(folder / "enough")()
    return len(held)


def until(file):
    """Return a function that waits for a file."""

    def wait():  # which workers get as it is, without what this module imports
        while not file.exists():
            time.sleep(0.05)

    return wait


def address(client):
    return next(iter(workers_there(client)))


def wait_until_paused(client):
    wait_for(lambda: workers_there(client)[address(client)]["status"] == "paused")


def fill(dask_worker):
    """Hold as much as makes a worker pause, and not as much as kills it."""
    import torch  # noqa: F401

    import outcrop.engine.crew  # noqa: F401

    limit, held = dask_worker.memory_manager.memory_limit, psutil.Process().memory_info().rss
    dask_worker.held = b"1" * int(0.87 * limit - held)


def free(dask_worker):
    del dask_worker.held


def test_a_worker_that_dies_while_it_is_measured(client, monkeypatch):
    monkeypatch.setattr("outcrop.engine.crew._LOOK", 0.1)
    gone = "tcp://127.0.0.1:1"
    task = client.submit(time.sleep, 0, workers=gone, allow_other_workers=False, pure=False)
    with pytest.raises(_WorkerLostError, match=gone):
        _wait_for(client, {gone: task})


def test_beside_workers_with_gpus_others_do_not_count(monkeypatch):
    def of(**workers):
        found = {name: {"resources": resources} for name, resources in workers.items()}
        monkeypatch.setattr("outcrop.engine.crew.workers_there", lambda _: found)

    of(a={}, b={"GPU": 1})
    assert _with_gpu(None) == ["b"]
    of(a={}, b={})
    assert _with_gpu(None) is None


def test_no_other_worker_takes_over_from_those_with_gpus(monkeypatch):
    """As where they are gone for a while."""
    monkeypatch.setattr(tasks, "_LOOK", -1.0)
    workers, counts, facts = tasks.Workers(None), [], {"status": "running", "metrics": {}}
    for there in ([{"GPU": 1}, {}], [{}], [{}, {"GPU": 1}, {"GPU": 1}]):
        found = {str(n): {**facts, "resources": each} for n, each in enumerate(there)}
        monkeypatch.setattr(tasks, "workers_there", lambda _, found=found: found)
        gone = pytest.warns(UserWarning, match="no worker is there")
        with gone if there == [{}] else contextlib.nullcontext():
            counts.append(workers.look())
        assert workers.resources == {"GPU": 1}
    assert counts == [1, 0, 2]


def test_workers_are_seen_whatever_else_the_client_asks():
    with (
        dask.config.set({"distributed.client.scheduler-info-interval": "2ms"}),
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as local,
        Client(local) as client,
    ):
        assert all(workers_there(client) for _ in range(1000))


def test_relative_paths_and_a_survey_that_workers_do_not_see(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    make_survey((16, 16, 16)).to_zarr("s.zarr", zarr_format=3)
    model = nn.Conv3d(1, 1, 1).eval()
    with connect("local", workers=1) as made:
        made.run(os.chdir, tmp_path / "elsewhere")
        outcrop.predict(model, "s.zarr", "o.zarr", client=made, storage_path="scratch")
        assert not list((tmp_path / "elsewhere").iterdir())
        seen = outcrop.open("o.zarr").prediction
        os.rename("o.zarr", "hidden")
        with pytest.raises(SurveyError, match="is not to be seen from"):
            made.compute(seen).result()


# The scripts


def options_of(command):
    if command[0] == "outcrop":
        known = typer.main.get_command(app).commands[command[1]].params
        return {option for parameter in known for option in parameter.opts}
    help_text = subprocess.run(
        [sys.executable, "-m", "dask", command[1], "--help"], capture_output=True, text=True
    ).stdout
    return set(re.findall(r"--[a-z-]+", help_text))


def test_slurm_script_uses_options_that_exist():
    script = ROOT / "workflows" / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    lines = script.read_text().replace("\\\n", " ").splitlines()
    commands = [
        re.search(r"(outcrop|dask) .*?(?= &|$)", line)[0] for line in lines if line[:4] == "srun"
    ]
    assert len(commands) == 3
    for command in map(shlex.split, commands):
        used = {word for word in command if word.startswith("--")}
        assert used <= options_of(command), command
        assert command[1] != "worker" or "--memory-limit" in used


def test_slurm_script_ends_where_its_scheduler_does_not_start(tmp_path):
    """Whatever that of the same job left, before the job was queued again."""
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$@" >> "$PWD/begun"\nexit 1\n')
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "scheduler-1.json").write_text('{"address": "tcp://127.0.0.1:1"}')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    ended = subprocess.run(
        ["bash", ROOT / "workflows" / "slurm.sh", "s.zarr", "o.zarr", "w.pth"],
        env={**environment, "SLURM_CPUS_PER_TASK": "8"},
        cwd=tmp_path,
        timeout=20,
    )
    assert ended.returncode == 1
    assert "outcrop predict" not in (tmp_path / "begun").read_text()


@pytest.mark.parametrize("name", ["slurm.py", "kubernetes.py"])
def test_scripts_compile_and_call_what_exists(name):
    script = ROOT / "workflows" / name
    py_compile.compile(str(script), doraise=True)
    for attribute in re.findall(r"outcrop\.([a-zA-Z.]+)", script.read_text()):
        found = outcrop
        for part in attribute.split("."):
            found = getattr(found, part)


def test_slurm_script_predicts_on_the_jobs_that_it_submits(tmp_path):
    """SLURM's two commands are stood in for: `sbatch` runs the job that it is handed right here."""
    commands = {
        "sbatch": 'job=$(mktemp -p "$JOBS"); cp "${@: -1}" "$job"\n'
        'setsid bash "$job" &>/dev/null &\n'
        'echo "Submitted batch job $!"',
        "scancel": 'for job; do kill -- "-$job"; done',
    }
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    make_survey(shape=(32, 32, 32)).to_zarr(tmp_path / "survey.zarr")
    script = ROOT / "workflows" / "slurm.py"
    arguments = [tmp_path / "survey.zarr", tmp_path / "faults.zarr", "--weights", "synthetic-v1"]
    subprocess.run(
        [sys.executable, script, *arguments, "--jobs", "2", "--memory", "1GB", "--device", "cpu"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "JOBS": str(tmp_path)},
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    model = outcrop.models.load("faultseg3d", weights="synthetic-v1")
    faults = outcrop.predict(model, tmp_path / "survey.zarr", tmp_path / "here.zarr", memory="1GB")
    xr.testing.assert_identical(
        outcrop.open(tmp_path / "faults.zarr").fault_probability.load().drop_attrs(),
        faults.fault_probability.load().drop_attrs(),
    )
    assert "workers" in (tmp_path / "faults.zarr.report.html").read_text()
    for survey, said in (("survey.zarr", "faults.zarr: already"), ("none", "none: does not exist")):
        asked = script_command(script, tmp_path / survey, *arguments[1:])
        assert asked.returncode == 1
        assert asked.stderr.startswith("error: ")
        assert said in asked.stderr


def test_kubernetes_script_looks_at_its_data_before_it_starts_workers(tmp_path, monkeypatch):
    started = ModuleType("dask_kubernetes.operator")
    started.KubeCluster = lambda **_: pytest.fail("workers were started")
    monkeypatch.setitem(sys.modules, "dask_kubernetes", ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", started)
    make_survey(shape=(16, 16, 16)).to_zarr(tmp_path / "survey.zarr")
    faults = outcrop.predict(nn.Conv3d(1, 1, 1).eval(), tmp_path / "survey.zarr", tmp_path / "f")
    assert faults.sizes["inline"] == 16
    script = ROOT / "workflows" / "kubernetes.py"
    for survey, out, said in (("none", "o", "does not exist"), ("survey.zarr", "f", "already")):
        weights = ("--weights", "synthetic-v1")
        asked = script_command(script, tmp_path / survey, tmp_path / out, *weights)
        assert asked.returncode == 1
        assert asked.stderr.startswith("error: ")
        assert said in asked.stderr


def test_kubernetes_file_is_what_the_operator_takes():
    spec = yaml.safe_load((ROOT / "workflows" / "kubernetes.yaml").read_text())
    assert spec["apiVersion"] == "kubernetes.dask.org/v1"
    assert spec["kind"] == "DaskCluster"
    assert isinstance(spec["spec"]["idleTimeout"], int)  # seconds
    (worker,), (scheduler,) = (
        spec["spec"][role]["spec"]["containers"] for role in ("worker", "scheduler")
    )
    assert worker["image"] == scheduler["image"]
    for quantities in worker["resources"].values():  # numbers are refused
        assert all(isinstance(quantity, str) for quantity in quantities.values())
    assert {a for a in worker["args"] if a.startswith("--")} <= options_of(worker["args"])
    given = worker["args"][worker["args"].index("--memory-limit") + 1]
    assert given == worker["resources"]["limits"]["memory"] + "B"
    ports = {p["name"]: p["containerPort"] for p in scheduler["ports"]}
    service = spec["spec"]["scheduler"]["service"]
    assert {p["name"]: p["port"] for p in service["ports"]} == ports
    assert service["selector"]["dask.org/cluster-name"] == spec["metadata"]["name"]
