"""A repetition needs the store, the config and its number: each is trained by a process that has no network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machxc.data import convert
from machxc.folder import finish_model, repetition_file
from machxc.label_counts import LabelCounts
from machxc.model import Model
from machxc.run import plan_run
from run_tools import SETTINGS, digests, undisturbed, write_jsonl

# new user namespace (for the right to the other), new network namespace: not even a loopback that is up
ALONE = ["unshare", "--user", "--map-root-user", "--net"]
TRAINER = """
import json, socket, sys
from machxc.runs.work import train_alone

try:
    socket.create_connection(("127.0.0.1", 9), timeout=5)
except ConnectionRefusedError:
    sys.exit("there is a network")
except OSError:
    pass
store, config, r, folder = sys.argv[1:]
train_alone(store, json.loads(config), int(r), folder)
print([name for _, name in socket.if_nameindex()])
"""


def can_be_alone() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_be_alone(), reason="needs the right to make a network namespace")
def test_trainers_that_never_talk_make_the_same_model(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl")
    dataset = convert(data, tmp_path / "store")
    config = plan_run(tmp_path / "store", SETTINGS).config
    for r in range(4):
        machine = tmp_path / f"machine-{r}"  # it has a store and a config of its own
        shutil.copytree(tmp_path / "store", machine / "store")
        (machine / "out").mkdir()
        arguments = [str(machine / "store"), json.dumps(config.to_dict()), str(r), str(machine / "out")]
        command = [*ALONE, sys.executable, "-c", TRAINER, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "['lo']\n"
    model = tmp_path / "model"
    model.mkdir()
    for r in range(4):
        shutil.copyfile(tmp_path / f"machine-{r}" / "out" / repetition_file(r), model / repetition_file(r))
    finish_model(model, config, dataset.names, LabelCounts.of(dataset.samples.labels), len(dataset))
    assert digests(model) == undisturbed()
    assert Model.load(model).numbers == [0, 1, 2, 3]
