"""Surveys, outputs and what lies between stages in an object store: a real server, real faults."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import outcrop
from outcrop import arrays, journal, locks, patience, storage
from outcrop.cli.main import app
from outcrop.cluster import connect
from outcrop.engine.crew import _store_seconds
from outcrop.engine.globals import GlobalStore
from outcrop.engine.survey_stores import PredictionStore
from outcrop.errors import ArgumentError, OutcropError, OutputExistsError, ResumeError
from outcrop.events import Tile
from outcrop.output import Output
from outcrop.storage import Remote, place
from outcrop.targets import is_complete, is_unfinished

SEGY = Path(__file__).parent / "data" / "segy" / "f3.sgy"
SECRET = "sentinel-8f2b61c0"
HOW = {"tile": (40, 16, 16), "storage_mode": "disk"}


class Normed(nn.Module):
    """Two stages: a global value between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.norm = nn.Conv3d(1, 3, 3, padding=1), nn.InstanceNorm3d(3)
        self.b = nn.Conv3d(3, 1, 3, padding=1)

    def forward(self, x):
        return torch.sigmoid(self.b(torch.relu(self.norm(self.a(x)))))


CODES = {"403": "AccessDenied", "409": "ConditionalRequestConflict", "501": "NotImplemented"}


class Proxy(http.server.ThreadingHTTPServer):
    """Stands before the server, and refuses requests as it is told."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.lock = port, threading.Lock()
        self.refuse, self.how, self.only, self.refused = 0, "503", "", 0

    def next(self, request):
        with self.lock:
            if self.refuse <= 0 or self.only not in request:
                return None
            self.refuse, self.refused = self.refuse - 1, self.refused + 1
            return self.how


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        how = self.server.next(f"{self.command} {self.path}")
        if how == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if how is not None:
            code = CODES.get(how, "ServiceUnavailable")
            answer = f"<Error><Code>{code}</Code><Message>try later</Message></Error>".encode()
            self.send_response(int(how))
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else answer)
            return
        to = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        to.request(self.command, self.path, body, dict(self.headers))
        answer = to.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(data)
        to.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start moto's server as a process, at a port that it takes itself; return that."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=file,
            stderr=file,
        )
    until = time.monotonic() + 60
    while not (found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    yield int(found[1])
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def proxy(server):
    made = Proxy(server)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def s3(proxy):
    """Set the usual environment, as users do; return a client of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that our own patience is seen
        patch.setattr(patience, "WAITS", (0.05, 0.05, 0.05))
        patch.setattr(locks, "BEAT", 0.3)
        patch.setattr(locks, "DEAD", 2.0)
        patch.setattr(locks, "SETTLE", 0.3)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port}")
        client.create_bucket(Bucket="bucket")
        yield client


def keys(s3, prefix=""):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return [o["Key"] for page in pages for o in page.get("Contents", [])]


def everything(s3):
    """All bytes in the bucket, names included."""
    return b"\n".join(
        key.encode() + s3.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys(s3)
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The survey, and what is predicted from it, on a file system."""
    folder = tmp_path_factory.mktemp("local")
    outcrop.ingest(SEGY, folder / "survey")
    outcrop.predict(Normed().eval(), folder / "survey", folder / "faults", **HOW)
    return folder


@pytest.fixture(scope="module")
def survey(s3):
    outcrop.ingest(SEGY, "s3://bucket/survey")
    return "s3://bucket/survey"


def run(*words):
    done = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_command_line_from_end_to_end(s3, local, tmp_path, caplog):
    how = ["--model", "faultseg3d", "--weights", "seeded", "--memory", "400MB"]
    said = run("ingest", SEGY, "s3://bucket/a/survey", "--chunks", "8,8,32", "--shards", "16,8,64")
    said += run("info", "s3://bucket/a/survey") + run("plan", "s3://bucket/a/survey", *how[:2])
    said += run("predict", "s3://bucket/a/survey", "s3://bucket/a/faults", *how)
    run("predict", local / "survey", tmp_path / "faults", *how)
    xr.testing.assert_identical(
        outcrop.open("s3://bucket/a/faults").load().drop_attrs(),
        outcrop.open(tmp_path / "faults").load().drop_attrs(),
    )
    xr.testing.assert_equal(
        outcrop.open("s3://bucket/a/survey").load(), outcrop.open(local / "survey").load()
    )
    said += run("export", "s3://bucket/a/survey", tmp_path / "back.sgy")
    assert (tmp_path / "back.sgy").read_bytes() == SEGY.read_bytes()
    said += run("export", "s3://bucket/a/faults", tmp_path / "f.sgy", "--like", SEGY)
    for name in ("survey", "faults"):
        assert "all there" in run("verify", f"s3://bucket/a/{name}")
    with pytest.raises(OutputExistsError, match=r"s3://bucket/a/faults: .*\(precision differ\)"):
        run(
            "predict",
            *("s3://bucket/a/survey", "s3://bucket/a/faults"),
            *how,
            *("--precision", "float64"),
        )
    run("predict", "s3://bucket/a/survey", "s3://bucket/a/faults", "--overwrite", *how)
    assert not [k for k in keys(s3, "a/") if "unfinished" in k or ".lock" in k or "stored" in k]
    assert SECRET not in said + caplog.text
    assert SECRET.encode() not in everything(s3)


@pytest.fixture
def refused(proxy):
    """Let the next requests of a kind be refused; none after the test."""

    def refuse(how, only, count=1):
        proxy.how, proxy.only, proxy.refuse = how, only, count

    yield refuse
    proxy.refuse = 0


def test_on_a_cluster(s3, survey, local, refused):
    with connect("local", workers=2) as client:
        refused("403", "PUT /bucket/b/faults/prediction/c/")
        with pytest.raises(
            OutcropError, match=r"^s3://bucket/b/faults, on tcp://\S+: PermissionError: .* goes on"
        ):
            outcrop.predict(Normed().eval(), survey, "s3://bucket/b/faults", client=client, **HOW)
        found = outcrop.predict(
            Normed().eval(),
            survey,
            "s3://bucket/b/faults",
            client=client,
            storage_path="s3://bucket/b/scratch",
            overwrite=True,
            **HOW,
        )
        np.testing.assert_allclose(
            found.prediction, outcrop.open(local / "faults").prediction, atol=1e-6
        )
        again = outcrop.ingest(SEGY, "s3://bucket/b/survey", client=client)
        xr.testing.assert_identical(again.load(), outcrop.open(survey).load())
    assert outcrop.verify("s3://bucket/b/faults").damage == ()
    assert keys(s3, "b/scratch") == []


RUN = """
import sys, logging
sys.path.insert(0, {tests!r})
import outcrop
from outcrop import locks
from outcrop.output import Output
from test_s3 import HOW, Normed
logging.basicConfig(level="DEBUG")
locks.BEAT, locks.DEAD, locks.SETTLE = 0.3, 2.0, 0.3
finish = Output.finish
def told(self, key):
    finish(self, key)
    print("tile", key, flush=True)
Output.finish = told
options = {options}
found = outcrop.predict(Normed().eval(), "s3://bucket/survey", "s3://bucket/c/faults",
                        storage_options=options, **HOW)
print(found, options if not options else "")
"""


def test_a_killed_client_goes_on_and_tells_no_secret(s3, proxy, survey, local):
    """Credentials by storage_options alone; all that is printed, at any level, is looked at."""
    options = {
        "key": "testing",
        "secret": SECRET,
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{proxy.server_address[1]}"},
    }
    code = RUN.format(tests=str(Path(__file__).parent), options=options)
    bare = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=bare | {"AWS_DEFAULT_REGION": "us-east-1"},
        )

    first = start()
    said, done = "", 0
    while done < 10:
        line = first.stdout.readline()
        assert line, said
        said, done = said + line, done + line.startswith("tile ")
    first.send_signal(signal.SIGKILL)
    said += first.communicate()[0]
    target = "s3://bucket/c/faults"
    assert is_unfinished(target)
    assert not is_complete(target)
    assert SECRET.encode() not in everything(s3)
    with pytest.raises(OutcropError, match="unfinished"):
        outcrop.open(target)
    journal = [k for k in keys(s3, "c/faults/unfinished/") if "finished-" in k]
    noted = "".join(
        s3.get_object(Bucket="bucket", Key=k)["Body"].read().decode() for k in journal
    ).split()
    assert noted
    with pytest.raises(ResumeError, match="weights_sha256"):
        outcrop.predict(nn.Conv3d(1, 1, 1).eval(), survey, target, **HOW)
    second = start()
    rest = second.communicate(timeout=300)[0]
    assert second.returncode == 0, rest
    again = [line.split()[1] for line in rest.splitlines() if line.startswith("tile ")]
    assert not set(noted) & set(again)
    xr.testing.assert_identical(
        outcrop.open(target).prediction.load().drop_attrs(),
        outcrop.open(local / "faults").prediction.load().drop_attrs(),
    )
    assert outcrop.verify(target).damage == ()
    assert SECRET not in said + rest
    assert SECRET.encode() not in everything(s3)
    assert [k for k in keys(s3, "c/") if ".lock" in k] == []


@pytest.mark.parametrize(
    ("how", "only"),
    [("503", "/prediction/c/"), ("drop", "/prediction/c/"), ("503", "/survey/amplitude/c/")],
)
def test_a_server_that_refuses_once(how, only, s3, proxy, survey, local):
    target = f"s3://bucket/d/{how}{len(only)}"
    proxy.how, proxy.only, proxy.refused = how, only, 0
    proxy.refuse = 2 if how == "503" else 12  # s3fs asks five times itself
    with pytest.warns(patience.StorageRefused, match="trying again"):
        found = outcrop.predict(Normed().eval(), survey, target, **HOW)
    assert proxy.refuse == 0
    xr.testing.assert_identical(
        found.prediction.load(), outcrop.open(local / "faults").prediction.load()
    )
    assert outcrop.verify(target).damage == ()


def test_a_server_that_refuses_for_good(s3, proxy, survey, local):
    target = "s3://bucket/e/faults"
    proxy.how, proxy.only, proxy.refuse = "503", "/prediction/c/1", 10**9
    try:
        with pytest.raises(OutcropError) as caught, pytest.warns(patience.StorageRefused):
            outcrop.predict(Normed().eval(), survey, target, **HOW)
    finally:
        proxy.refuse = 0
    said = str(caught.value)
    assert said.startswith("s3://bucket/e/faults: ")
    assert said.endswith("once that is mended, the same command goes on where it stopped")
    assert "\n" not in said
    assert SECRET not in said
    found = outcrop.predict(Normed().eval(), survey, target, **HOW)
    xr.testing.assert_identical(
        found.prediction.load(), outcrop.open(local / "faults").prediction.load()
    )


def test_two_runs_into_one_output(s3, survey, monkeypatch):
    target = "s3://bucket/f/faults"
    with locks.taken(place(target)):
        with pytest.raises(OutputExistsError, match="another process is writing it"):
            outcrop.predict(Normed().eval(), survey, target, **HOW)
        owner = json.loads(s3.get_object(Bucket="bucket", Key="f/.faults.lock")["Body"].read())
        assert owner["pid"] == os.getpid()
    assert keys(s3, "f/") == []


def test_the_lock_of_a_dead_process_is_taken_over(s3, caplog):
    s3.put_object(Bucket="bucket", Key="g/.faults.lock", Body=b'{"owner": "dead", "beats": 7}')
    held = locks.lock_of(place("s3://bucket/g/faults"))
    with caplog.at_level(logging.WARNING):
        held.take()
    assert "waiting up to 2 s" in caplog.text
    # Another takes it over in turn, as it might after this process was suspended.
    held.check()
    for beat in range(20):  # which it does not see if that falls into one of its own
        sign = {"owner": "other", "beats": beat}
        s3.put_object(Bucket="bucket", Key="g/.faults.lock", Body=json.dumps(sign).encode())
        held.thread.join(0.5)
        if held.lost:
            break
    with pytest.raises(OutputExistsError):
        held.check()
    held.release()
    assert keys(s3, "g/") == ["g/.faults.lock"]


def test_an_output_that_is_finished_while_its_lock_is_waited_for(s3, monkeypatch):
    """By another run of the same command, which then gives the lock up."""
    target, outlive = "s3://bucket/o/a", locks._ObjectLock._outlive
    template = xr.Dataset({"x": ("x", np.arange(4.0))})
    first = Output.begin(target, template, {}, {"run": 1})

    def finished(lock):
        with first:
            first.commit()
        return outlive(lock)

    monkeypatch.setattr(locks._ObjectLock, "_outlive", finished)
    with pytest.raises(OutputExistsError, match="already exists"):
        Output.begin(target, template, {}, {"run": 1})
    assert is_complete(target)
    assert not [k for k in keys(s3, "o/") if ".lock" in k]


def test_what_is_refused_is_not_taken_for_absent(s3, refused):
    target = "s3://bucket/k/a"
    template = xr.Dataset({"x": ("x", np.arange(4.0))})
    with Output.begin(target, template, {}, {"run": 1}) as output:
        output.finish("one")
    before = keys(s3, "k/")
    for only in ("HEAD /bucket/k/a/unfinished/record.json", "HEAD /bucket/k/a/zarr.json"):
        refused("403", only)
        with pytest.raises(OutcropError, match=r"s3://bucket/k/a/.*: PermissionError: .*; see to"):
            Output.begin(target, template, {}, {"run": 1})
        assert keys(s3, "k/") == before
    refused("503", "HEAD /bucket/k/a/unfinished/record.json", 2)
    with pytest.warns(patience.StorageRefused):
        output = Output.begin(target, template, {}, {"run": 1})
    with output:
        assert output.finished == {"one"}
        output.commit()
    refused("403", "HEAD /bucket/k/a/zarr.json")
    with pytest.raises(OutcropError, match="PermissionError"):
        outcrop.verify(target)
    refused("403", "HEAD /bucket/k/a/x/checksums.json")
    with pytest.raises(OutcropError, match="PermissionError"):
        arrays.open_dataset(place(target))


@pytest.mark.parametrize(("how", "made"), [("409", False), ("501", True)])
def test_a_lock_is_put_unconditionally_only_where_conditions_are_unknown(
    how, made, s3, refused, monkeypatch
):
    """Another's may be there since it was looked for."""
    spot = place(f"s3://bucket/l/{how}")
    s3.put_object(Bucket="bucket", Key=f"l/{how}", Body=b"other")
    monkeypatch.setattr(Remote, "is_file", lambda self: False)
    refused(how, "PUT /bucket/l/")
    with pytest.warns(patience.StorageRefused) if how == "409" else contextlib.nullcontext():
        assert spot.create(b"own") is made
    found = s3.get_object(Bucket="bucket", Key=f"l/{how}")["Body"].read()
    assert found == (b"own" if made else b"other")


def test_a_run_that_has_lost_its_lock_writes_nothing_more(s3, local, monkeypatch):
    """As one that was suspended in the middle of a tile while another took the output over."""
    seen, write = {}, PredictionStore.write

    def state():
        listed = s3.list_objects_v2(Bucket="bucket", Prefix="m/faults/")["Contents"]
        return {o["Key"]: o["ETag"] for o in listed}

    def taken_over(*arguments):
        s3.put_object(Bucket="bucket", Key="m/.faults.lock", Body=b'{"owner": "other"}')
        s3.put_object(Bucket="bucket", Key="m/faults/unfinished/run", Body=b"other")
        seen.update(state())
        write(*arguments)

    monkeypatch.setattr(PredictionStore, "write", taken_over)
    monkeypatch.setattr(journal, "_EVERY", 1000.0)
    with pytest.raises(OutputExistsError, match="another process took it over"):
        outcrop.predict(Normed().eval(), local / "survey", "s3://bucket/m/faults", **HOW)
    assert state() == seen
    assert keys(s3, "m/.faults.lock")


def test_a_lock_that_another_took_a_moment_ago_stays_its(s3, monkeypatch):
    """Between the look at it and the sign of life that is put there."""
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = locks.lock_of(place("s3://bucket/n/faults"))
    looked, theirs = lock._is_ours, b'{"owner": "other"}'

    def overtaken():
        found = looked()
        s3.put_object(Bucket="bucket", Key="n/.faults.lock", Body=theirs)
        return found

    lock.take()
    lock._is_ours = overtaken
    lock.thread.join(30)
    assert lock.lost
    lock.release()
    found = s3.get_object(Bucket="bucket", Key="n/.faults.lock")["Body"].read()
    assert found == theirs


def test_create_is_exclusive(s3):
    """Of many at once, one succeeds."""
    results = []
    spot = place("s3://bucket/h/lock")

    def create(n):
        results.append(spot.create(str(n).encode()))

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1


def test_stored_tensors_are_deleted_once_it_is_noted(s3, survey, monkeypatch):
    """Whoever dies right after goes on without them."""
    target, heard, seen, remove = "s3://bucket/i/faults", [], [], GlobalStore.remove

    def removed(store):
        noted = [k for k in keys(s3, "i/faults/unfinished/") if "finished-" in k]
        texts = (s3.get_object(Bucket="bucket", Key=k)["Body"].read() for k in noted)
        tiles = [e for e in heard if isinstance(e, Tile)]
        seen.append((b"".join(texts).count(b"\n"), len(tiles)))
        remove(store)

    monkeypatch.setattr(GlobalStore, "remove", removed)
    monkeypatch.setattr(journal, "_EVERY", 1000.0)
    outcrop.predict(Normed().eval(), survey, target, listeners=[heard.append], **HOW)
    assert seen
    assert all(noted == done for noted, done in seen)


def test_a_note_that_is_refused_later_is_told_by_the_next(s3, refused, monkeypatch):
    """Which is put by a thread, where nobody would hear of it."""
    monkeypatch.setattr(journal, "_EVERY", 0.3)
    kept, uncaught = journal.Journal(place("s3://bucket/n"), "finished"), []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    kept.add("one")
    refused("403", "PUT /bucket/n/", 2)
    kept.add("two")
    kept.timer.join(10)
    with pytest.raises(OutcropError, match="PermissionError"):
        kept.flush()
    kept.flush()
    assert not uncaught
    assert journal.Journal(place("s3://bucket/n"), "finished").read() == ["one", "two"]


def test_a_killed_overwrite_is_gone_on_with(s3, monkeypatch):
    target = "s3://bucket/j/a"
    template = xr.Dataset({"x": ("x", np.arange(4.0))})
    with Output.begin(target, template, {}, {"run": 1}) as output:
        output.commit()
    ask = Remote.ask

    def killed(self, what, *arguments, **options):
        if what == "rm":
            raise KeyboardInterrupt
        return ask(self, what, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "ask", killed)
        with pytest.raises(KeyboardInterrupt):
            Output.begin(target, template, {}, {"run": 2}, overwrite=True)
    assert not is_complete(target)
    with Output.begin(target, template, {}, {"run": 2}, overwrite=True) as output:
        output.commit()
    assert xr.open_zarr(target).x.shape == (4,)


def test_a_key_that_looks_like_a_pattern_is_that_of_one_output(s3):
    """Others that fit it stay as they are."""
    template, other = xr.Dataset({"x": ("x", np.arange(4.0))}), "s3://bucket/p/run1/a"
    with Output.begin(other, template, {}, {"run": 1}):
        pass
    before = keys(s3, "p/run1/")
    for run in (1, 2):
        with Output.begin("s3://bucket/p/run[1]*/a", template, {}, {"run": run}, True) as output:
            output.commit()
    assert "p/run[1]*/a/x/checksums.json" in (found := keys(s3, "p/run[1]*/"))
    assert not [key for key in found if "unfinished" in key]
    assert keys(s3, "p/run1/") == before


def test_a_worker_that_may_not_write_is_named(s3, refused, monkeypatch):
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://w:1"))
    refused("403", "PUT /bucket/q/.outcrop")
    with pytest.raises(OutcropError, match=r"worker tcp://w:1: s3://bucket/q/\S+: Permission"):
        _store_seconds(place("s3://bucket/q"))


def test_azure_names_its_account_in_the_url():
    url = "abfs://container@account.dfs.core.windows.net/a"
    assert str(place(url)) == url
    with pytest.raises(ArgumentError, match="credentials in it"):
        place("abfs://name:secret@account/a")


def test_what_cannot_be_reached_is_one_line(s3, monkeypatch, tmp_path):
    with pytest.raises(OutcropError, match=r"s3://bucket/none: does not exist"):
        outcrop.open("s3://bucket/none")
    with pytest.raises(OutcropError, match=r"nowhere.*bucket does not exist"):
        outcrop.ingest(SEGY, "s3://nowhere/survey")
    with pytest.raises(OutcropError, match=r"a file is written to a file system"):
        outcrop.export("s3://bucket/survey", "s3://bucket/a.sgy")
    monkeypatch.chdir(tmp_path)
    for command in (
        ("export", "s3://bucket/survey", "s3://bucket/a.sgy"),
        ("ingest", "s3://bucket/a.sgy", tmp_path / "a"),
        ("plan", "s3://bucket/survey", "--model", "faultseg3d", "--draw", "s3://bucket/p.png"),
        ("train", "faultseg3d", "--out", "s3://bucket/t"),
        ("train", "faultseg3d", "--data", "s3://bucket/survey", "--out", tmp_path / "t"),
    ):
        with pytest.raises(OutcropError, match=r"^s3://bucket/\w+\S*: .* file system"):
            run(*command)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutcropError, match=r"nowhere.*bucket does not exist"):
        outcrop.open("s3://nowhere/survey")
    with pytest.raises(ArgumentError, match="credentials in it") as caught:
        outcrop.open(f"s3://key:{SECRET}@bucket/a")
    assert SECRET not in str(caught.value)
    with pytest.raises(ArgumentError, match="pass it as a string"):
        outcrop.open(Path("s3://bucket/a"))
    with pytest.raises(OutcropError, match="Protocol not known"):
        outcrop.open("nosuch://bucket/a")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    closed = {"client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
    with pytest.raises(OutcropError, match="Could not connect") as caught:
        outcrop.open("s3://bucket/a", storage_options=closed)
    assert "\n" not in str(caught.value)


def test_without_s3fs_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(storage, "_systems", {})
    for name in ("s3", "s3a"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(OutcropError, match=r'pip install "outcrop\[s3\]"') as caught:
        outcrop.open("s3://bucket/a")
    assert "\n" not in str(caught.value)
