"""Job scripts for Slurm, with a stand-in for the commands of the cluster."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..support import ROOT

SCRIPTS = ROOT / "md_examples" / "slurm"


def on_path(folder: Path, name: str, text: str) -> None:
    """Write an executable that records its words."""
    file = folder / name
    file.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{text}\n')
    file.chmod(0o755)


def start(folder, script, *words, task="1"):
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_SUBMIT_DIR": str(SCRIPTS),
        "SLURM_CPUS_PER_TASK": "2",
    }
    return subprocess.Popen(["bash", str(SCRIPTS / script), *words], env=environment, cwd=folder)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(("status", "queued"), [(0, False), (1, False), (3, True)])
def test_only_stopped_runs_return_to_the_queue(tmp_path, status, queued):
    on_path(tmp_path, "lkm-train", f'echo "threads $OMP_NUM_THREADS" >> calls\nexit {status}')
    on_path(tmp_path, "scontrol", "exit 0")
    job = start(tmp_path, "train.sh", "own", "--data", "my frames.extxyz")
    assert job.wait(30) == (0 if queued else status)
    expected = ["lkm-train fit own --data my frames.extxyz", "threads 2"]
    assert calls(tmp_path) == expected + ["scontrol requeue 77"] * queued


def test_the_signal_before_the_time_limit_reaches_the_command(tmp_path):
    on_path(tmp_path, "lkm-train", 'trap "sleep 0.3; exit 3" TERM\ntouch started\nsleep 60 & wait')
    on_path(tmp_path, "scontrol", "exit 0")
    job = start(tmp_path, "train.sh", "own")
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    assert calls(tmp_path)[-1] == "scontrol requeue 77"


def test_members_of_a_committee(tmp_path):
    on_path(tmp_path, "lkm-train", "exit 0")
    for task in "14":
        assert start(tmp_path, "committee.sh", "runs/own", "own", task=task).wait(30) == 0
    assert calls(tmp_path) == [
        "lkm-train fit own --run.directory runs/own/member-1 --run.seed 0",
        "lkm-train fit own --run.directory runs/own/member-4 --run.seed 3",
    ]
