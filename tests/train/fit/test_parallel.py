"""Several processes on one model, and processes that die."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lkm_calc import load_model
from train.fit.parallel import Workers, own_device

from ...support import ROOT, SMALL, rmd17_arrays, write_npz

TIMEOUT = 300
"""Seconds after which a run is held to hang."""


@pytest.fixture
def data(tmp_path):
    return write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))


def command(data, directory, *options, processes=1):
    """Return the command line of a short float64 run."""
    config = data.with_name("run.toml")
    hypers = "\n".join(f"{k} = {v}" for k, v in SMALL["pamnet"].items())
    config.write_text(
        f'[data]\ntrain = "{data}"\nn_train = 40\nn_validation = 15\n'
        f'[model]\nname = "pamnet"\n[model.hypers]\n{hypers}\n'
        '[run]\ndtype = "float64"\ndevice = "cpu"\ncheckpoint_every = 1\n'
        '[optimiser]\nkind = "adamw"\nlearning_rate = 1e-3\n'
        "epochs = 4\nbatch_size = 7\nwarmup_steps = 5\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [
        sys.executable,
        *(launcher if processes > 1 else []),
        *("-m", "train", "fit", str(config), "--run.directory", str(directory), *options),
    ]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments, processes=1):
    done = subprocess.run(
        command(*arguments, processes=processes),
        cwd=ROOT,
        env=environment(),
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
    )
    return done.returncode


def state(directory):
    return torch.load(directory / "state.pt", weights_only=True)


def largest_difference(one, other):
    """Return the largest difference of two collections of tensors over their largest value."""
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (one, other))
    return ((one - other).abs().max() / one.abs().max()).item()


def gradients(saved):
    """Return the gradients of the first step, of which the first moments are (1 − β₁)."""
    return [moments["exp_avg"] for moments in saved["optimisers"][0]["state"].values()]


@pytest.mark.parametrize(("kernels", "allowed"), [("off", 1e-10), ("auto", 1e-8)])
def test_two_processes_make_the_gradients_of_one(data, tmp_path, kernels, allowed):
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = ("--stop-after", "1", "--run.kernels", kernels)
    assert run(data, alone, *options) == 3
    # torchrun reports the status of stopped runs as a failure.
    assert run(data, together, *options, processes=2) != 0
    assert largest_difference(gradients(state(alone)), gradients(state(together))) < allowed
    assert torch.allclose(state(alone)["loss_sums"], state(together)["loss_sums"], rtol=1e-10)


def test_two_processes_finish_a_run_with_uneven_batches(data, tmp_path):
    # The last batch of 40 frames by 39 has one frame: the second process has no part in it.
    options = ("--optimiser.batch_size", "39")
    assert run(data, tmp_path / "alone", *options) == 0
    assert run(data, tmp_path / "together", *options, processes=2) == 0
    models = [load_model(tmp_path / d / "model.safetensors") for d in ("alone", "together")]
    assert largest_difference(*(list(m.parameters()) for m in models)) < 1e-6
    rows = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("alone", "together")]
    assert len(rows[0].splitlines()) == len(rows[1].splitlines()) == 4


def wait_for(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def two_processes(data, directory, *options):
    """Yield the launcher of a run that has saved a state, and the ids of its processes."""
    launcher = start(command(data, directory, *options, processes=2))
    try:
        wait_for((directory / "state.pt").exists)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True
        ).stdout.split()
        yield launcher, [int(child) for child in children]
    finally:
        launcher.kill()


def start(arguments):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment(), **quiet)


def test_killing_one_process_ends_the_run_resumably(data, tmp_path):
    directory = tmp_path / "run"
    many = ("--optimiser.epochs", "2000")
    with two_processes(data, directory, *many) as (launcher, children):
        os.kill(children[-1], signal.SIGKILL)
        assert launcher.wait(TIMEOUT) != 0
    reached = state(directory)["counters"]["step"]
    assert run(data, directory, *many, "--stop-after", str(reached + 2)) == 3
    assert state(directory)["counters"]["step"] == reached + 2


def test_a_signal_to_one_process_stops_all_after_the_same_step(data, tmp_path):
    directory = tmp_path / "run"
    many = ("--optimiser.epochs", "2000")
    with two_processes(data, directory, *many) as (launcher, children):
        before = state(directory)["counters"]["step"]
        os.kill(children[0], signal.SIGTERM)
        assert launcher.wait(60) != 0
    assert state(directory)["counters"]["step"] > before


def kill_and_resume(data, directory, moments):
    """Kill a run with SIGKILL after each of these many seconds, then let it finish."""
    for seconds in moments:
        process = start(command(data, directory))
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return run(data, directory)


def test_kill_9_at_random_moments_loses_nothing(data, tmp_path):
    start = time.monotonic()
    assert run(data, tmp_path / "whole") == 0
    took = time.monotonic() - start
    kills = int(os.environ.get("LKM_KILLS", "3"))
    moments = np.random.default_rng(0).uniform(0.3, 1.0, kills) * took
    assert kill_and_resume(data, tmp_path / "killed", moments) == 0
    one, other = (state(tmp_path / d) for d in ("whole", "killed"))
    for part in ("model", "average"):
        assert all(torch.equal(v, other[part][k]) for k, v in one[part].items())


def test_one_process_alone_shares_with_nobody():
    alone = Workers()
    indices = torch.arange(5)
    assert alone.part(indices).tolist() == [0, 1, 2, 3, 4]
    tensor = torch.ones(3)
    alone.sum([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert Workers(1, 3).part(indices).tolist() == [1, 4]
    assert Workers(2, 3).part(indices[:2]).tolist() == []


def processes_of_a_machine(monkeypatch, shown, rank):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.setenv("LOCAL_RANK", str(rank))


@pytest.mark.parametrize(("shown", "rank", "expected"), [(4, 3, "cuda:3"), (1, 3, "cuda:0")])
def test_each_process_takes_a_gpu_that_it_is_shown(shown, rank, expected, monkeypatch):
    processes_of_a_machine(monkeypatch, shown, rank)
    found = [own_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == [expected, expected, "cuda:1", "cpu"]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    processes_of_a_machine(monkeypatch, 3, 3)
    with pytest.raises(ValueError, match="which has 3"):
        own_device("auto")
