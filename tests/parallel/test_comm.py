"""Collectives on real workers, their gradients, their bytes, and how the job ends when one fails."""

import json
import sys
import time
from pathlib import Path

import pytest

from msllm.errors import UserError
from msllm.parallel import run_job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What two workers found, and the error that the last, mismatched collective ended the job with."""
    folder = tmp_path_factory.mktemp("comm")
    start = time.monotonic()
    with pytest.raises(UserError) as failure:
        run_job([sys.executable, str(Path(__file__).with_name("worker_comm.py")), str(folder)], 2, folder / "logs", 200)
    found = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]
    return found, str(failure.value), time.monotonic() - start


def test_collectives_and_their_gradients_are_those_of_the_whole(job):
    for found in job[0]:
        assert found["groups"]
        for group, results in found["groups"].items():
            assert len(results) >= 20
            assert [name for name, right in results.items() if not right] == [], group


def test_bytes_are_those_of_the_ring(job):
    # 6 numbers of 4 bytes among 2 workers: 2 (p - 1)/p of 24.
    assert job[0][0]["counted"] == [["all-reduce", "world", 1, 24, 24.0]]


def test_workers_with_other_data_are_named(job):
    for found in job[0]:
        assert found["disagreement"] == (
            "worker 1 has data = 3 examples, worker 0 5 examples; give all workers the same files and options"
        )


def test_a_failed_collective_ends_the_job_with_operation_group_rank_and_shapes(job):
    assert "collective all-reduce of (" in job[1] and "meets all-reduce of (" in job[1]
    assert "on worker 0" in job[1] and "on worker 1" in job[1] and "in group world of ranks [0, 1]" in job[1]
