"""What the workers of section 6.6's run do; run_plan.py starts it with msllm.parallel.run_job.

python on_workers_plan.py '[{"family": ..., "sizes": ..., "layout": ..., "rows": ..., "length": ...}, ...]' RESULT.json

Each case trains a model for a few steps; the first worker writes what every worker held at most, and what it sent.
"""

import dataclasses
import json
import os
import sys

os.environ.setdefault("MSLLM_THREADS", "1")  # a core for each worker, before the kernels start their threads

from msllm.errors import UserError
from msllm.files import write_json
from msllm.parallel import start_workers
from msllm.parallel.planner.measure import Case, measure
from msllm.parallel.planner.pool import MemoryPool


def main(cases: str, result: str) -> None:
    workers, pool, found = start_workers(), MemoryPool(), []
    for values in json.loads(cases):
        if workers.rank == 0:
            print(f"{values['family']}: {values['layout']}", flush=True)
        mine = measure(workers, pool, Case(**values))
        found.append({**values, "workers": workers.objects(dataclasses.asdict(mine))})
    if workers.rank == 0:
        write_json(result, {"cases": found})
    workers.barrier()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
