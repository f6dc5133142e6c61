"""Runs whose folder is in an object store: fsspec's in memory, and S3 as a local server speaks it."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machxc.data import convert
from machxc.errors import OutputError, SettingError
from machxc.run import Execution, train_run, train_shard
from machxc.runs.folder import open_folder
from machxc.runs.status import status_of
from machxc.runs.work import RunTask
from run_tools import SETTINGS, StopNowError, digests, stop_after, undisturbed, write_jsonl

pytest.importorskip("fsspec", reason="needs the extra remote")
HAS_S3 = all(importlib.util.find_spec(name) is not None for name in ("s3fs", "moto", "flask"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        from fsspec import filesystem

        filesystem("s3").mkdir("machxc-test")
        yield "s3://machxc-test/runs"
    server.stop()


@pytest.fixture(
    params=["memory", pytest.param("s3", marks=pytest.mark.skipif(not HAS_S3, reason="needs s3fs and moto[server]"))]
)
def address(request: pytest.FixtureRequest) -> str:
    base = request.getfixturevalue("s3") if request.param == "s3" else "memory://runs"
    return f"{base}/{uuid.uuid4().hex}"


def test_shards_and_a_process_that_stops_share_nothing_but_the_address(
    tmp_path: Path, data: Path, address: str
) -> None:
    def place(**others: Any) -> Execution:
        return Execution("serial", run_folder=address, checkpoint_interval=0, **others)

    assert train_shard(data, tmp_path / "one" / "model", place(shard=(0, 2)), SETTINGS) is None
    with pytest.raises(StopNowError):
        train_shard(data, tmp_path / "two" / "model", place(shard=(1, 2)), SETTINGS, progress=stop_after(1))
    assert [r.state for r in status_of(address).repetitions] == ["done", "stopped", "done", "waiting"]
    assert "checkpoint-00001.safetensors" in open_folder(address).names()
    RunTask(address)(1)  # as a cluster would
    states = status_of(address).repetitions
    assert [(r.state, r.attempts) for r in states] == [("done", 1), ("done", 2), ("done", 1), ("waiting", 0)]
    train_run(data, tmp_path / "model", SETTINGS, execution=place())
    assert digests(tmp_path / "model") == undisturbed()
    model = train_shard(data, tmp_path / "two" / "model", place(shard=(1, 2)), SETTINGS)
    assert model is not None
    assert digests(tmp_path / "two" / "model") == undisturbed()


def test_a_store_is_copied_there(tmp_path: Path, data: Path, address: str) -> None:
    convert(data, tmp_path / "store")
    train_run(tmp_path / "store", tmp_path / "model", SETTINGS, execution=Execution(run_folder=address), jobs=2)
    assert digests(tmp_path / "model") == undisturbed()


def test_another_run_is_refused_there(tmp_path: Path, data: Path, address: str) -> None:
    place = Execution(run_folder=address)
    with pytest.raises(StopNowError):
        train_run(data, tmp_path / "model", SETTINGS, execution=place, progress=stop_after(3))
    other = write_jsonl(tmp_path / "other.jsonl", seed=1)
    with pytest.raises(SettingError, match=r"unfinished run that was asked for something else \(data: sha256"):
        train_run(other, tmp_path / "model", SETTINGS, execution=place)
    train_run(other, tmp_path / "model", SETTINGS, execution=place, overwrite=True)
    assert digests(tmp_path / "model") != undisturbed()


@pytest.mark.parametrize("address", ["nowhere://bucket/run", "s3://no-such-bucket-of-ours/run"])
def test_an_address_that_leads_nowhere(
    tmp_path: Path, data: Path, address: str, request: pytest.FixtureRequest
) -> None:
    if address.startswith("s3"):
        if not HAS_S3:
            pytest.skip("needs s3fs and moto[server]")
        request.getfixturevalue("s3")
    with pytest.raises(OutputError, match=f"cannot reach {address}"):
        train_run(data, tmp_path / "model", SETTINGS, execution=Execution(run_folder=address))
    assert not (tmp_path / "model").exists()
