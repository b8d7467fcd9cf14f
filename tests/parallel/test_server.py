"""Parameter servers: synchronous equals one process, asynchronous keeps its bound and learns, both stop and go on."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.models.weights import read_weights
from msllm.parallel import ParallelConfig, run_job
from msllm.parallel.messages import deal
from tests.parallel.worker_server import trainer


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder in which three workers ran, and what each of them found."""
    folder = tmp_path_factory.mktemp("servers")
    run_job([sys.executable, "-m", "tests.parallel.worker_server", str(folder)], 3, folder / "logs", 200)
    return folder, [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(3)]


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    return {e["step"]: e[name] for e in read_json_lines(folder / "log.jsonl") if name in e}


def apart(a: Path, b: Path) -> float:
    ours, theirs = read_weights(a), read_weights(b)
    assert ours.keys() == theirs.keys()
    return max(np.abs(ours[name] - value).max() / np.abs(value).max() for name, value in theirs.items())


def test_synchronous_servers_take_the_steps_of_one_process(job, tmp_path):
    served, alone = job[0] / "synchronous", tmp_path / "alone"
    trainer(alone, None, 4, 6).train()
    for name in ("loss", "eval_loss", "grad_norm"):
        expected = losses(alone, name)
        assert sorted(losses(served, name)) == sorted(expected) != []
        np.testing.assert_allclose(list(losses(served, name).values()), list(expected.values()), rtol=1e-5)
    assert apart(served, alone) <= 1e-5
    # What the servers had after step 4 goes on in one process.
    trainer(tmp_path / "resumed", None, 4, 6).train(resume=str(served / "checkpoint-4"))
    assert sorted(losses(tmp_path / "resumed")) == [5, 6]
    assert apart(tmp_path / "resumed", alone) <= 1e-5
    assert job[1][2]["synchronous"]["updates"] == 6


def test_a_step_sends_gradients_and_gets_parameters(job):
    parameters = job[1][2]["synchronous"]["parameters"]
    first = 4 * parameters  # the first values go to the server once
    assert [job[1][rank]["synchronous"]["sent"] for rank in (0, 1)] == [first + 6 * 4 * parameters, 6 * 4 * parameters]


def test_asynchronous_servers_apply_each_gradient_and_keep_the_bound(job):
    staleness = [job[1][rank]["asynchronous"]["staleness"] for rank in (0, 1)]
    assert [len(s) for s in staleness] == [40, 40] and job[1][2]["asynchronous"]["updates"] == 80
    # Nobody is more than one step ahead of the other, who thus takes at most three while one gradient is worked out.
    assert 1 <= max(map(max, staleness)) <= 3
    found = losses(job[0] / "asynchronous")
    assert np.mean([found[s] for s in range(36, 41)]) < 0.5 * found[1]
    evaluated = trainer(job[0] / "other", None, 4, 1)
    evaluated.model.load(read_weights(job[0] / "asynchronous"), "the result")
    # The result is what was evaluated last: the servers' newest parameters.
    assert evaluated.evaluate()["loss"] == pytest.approx(losses(job[0] / "asynchronous", "eval_loss")[40], rel=1e-5)


def test_asynchronous_trainers_stop_at_one_step(job):
    found = [job[1][rank]["interrupted"] for rank in (0, 1)]
    assert found[0]["step"] == found[1]["step"] < 40
    for one in found:
        assert re.match(rf"stopped by .* after step {one['step']} of 40; saved ", one["error"])
    assert (job[0] / "interrupted" / f"checkpoint-{found[0]['step']}" / "trainer_state.json").is_file()


def test_parameters_are_dealt_out_by_size():
    sizes = [7, 100, 3, 60, 50, 40]
    dealt = deal(sizes, 3)
    assert sorted(i for numbers in dealt for i in numbers) == list(range(6))
    loads = [sum(sizes[i] for i in numbers) for numbers in dealt]
    assert loads == [100, 70, 90] and deal(sizes, 3) == dealt


@pytest.mark.parametrize(
    ("options", "workers", "message"),
    [
        ({"servers": 1, "tensor": 2}, 3, "leave out the other parallel options, or servers"),
        ({"servers": 2}, 2, "parallel.servers is 2, and 0 of 2 workers are left to train; use 4 workers"),
        ({"servers": 1, "data": 3}, 3, "2 of 3 workers are left to train; use 4 workers"),
        ({"staleness": 2}, 2, "only parameter servers take stale gradients"),
        ({"servers": -1}, 2, "parallel.servers is -1, expected 0 or more"),
    ],
)
def test_layouts_that_leave_nobody_to_train_are_refused(options, workers, message):
    with pytest.raises(UserError) as error:
        ParallelConfig(**options).for_workers(workers)
    assert message in str(error.value)


def test_those_who_do_not_serve_train():
    config = ParallelConfig(servers=1, staleness=4).for_workers(3)
    assert (config.data, config.world, config.plain, str(config)) == (2, 3, True, "dp2 1 server staleness 4")
