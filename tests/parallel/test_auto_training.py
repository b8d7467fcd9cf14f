"""Training by the graph that auto-parallel compiles: on one card, it is what the Trainer does step by step."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

BOUND = 1e-5


@pytest.fixture(scope="module", params=["gpt2"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, "MSLLM_KERNELS": "stock"}
    command = [sys.executable, "-m", "tests.parallel.worker_auto", request.param, str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", ["auto", "again"])
def test_losses_norms_and_weights_are_those_of_the_ordinary_step(run, name):
    """A batch is two micro-batches; the second run goes on from a checkpoint of the graph's states."""
    folder, found = run
    assert len(found["plain"]) == len(found[name]) == 6  # four steps, two evaluations
    for plain, auto in zip(found["plain"], found[name]):
        assert plain.keys() == auto.keys()
        for key in plain.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert abs(auto[key] - plain[key]) < BOUND * abs(plain[key]), (plain["step"], key)
    ours, theirs = (load_file(folder / n / "model.safetensors") for n in (name, "plain"))
    before = load_file(folder / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert np.abs(ours[key] - value).max() < BOUND * np.abs(value).max(), key
        assert np.abs(value - before[key]).max() > 1e-3 * np.abs(value).max(), key
