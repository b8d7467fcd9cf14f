"""What the planner says of memory and bytes beside what workers of this machine take."""

import json
import sys
from pathlib import Path

import pytest

from msllm import kernels
from msllm.files import read_json
from msllm.parallel import run_job
from msllm.parallel.planner import pool
from msllm.parallel.planner.measure import Case, Measured, planned

SCRIPT = Path(__file__).parents[2] / "chapters" / "ch06_parallel" / "on_workers_plan.py"
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 500}
GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 500,
}
CASES = [
    ("gpt2", {}),
    ("llama", {"tensor": 2, "split_norms": True}),
    ("llama", {"recompute": True, "optimizer": 1}),
    ("gpt2", {"pipeline": 2, "micro_batches": 4}),
    ("llama", {"optimizer": 3, "micro_batches": 2}),
]


@pytest.mark.skipif(bool(pool.available()), reason="MindSpore's memory pool cannot be asked here")
@pytest.mark.skipif(kernels.active() != "cpu", reason="the planner knows what the C++ kernels keep")
def test_memory_is_within_five_percent_and_bytes_are_equal(tmp_path):
    sizes = {"gpt2": GPT2, "llama": LLAMA}
    cases = [{"family": f, "sizes": sizes[f], "layout": x, "rows": 16, "length": 64} for f, x in CASES]
    result = tmp_path / "measured.json"
    run_job([sys.executable, str(SCRIPT), json.dumps(cases), str(result)], 2, tmp_path / "logs", timeout=120)
    found = read_json(result)["cases"]
    assert len(found) == len(CASES)
    for values in found:
        workers = values.pop("workers")
        for rank, one in enumerate(workers):
            measured = Measured(**one)
            held, memory, sent = planned(Case(**values), 2, rank, measured)
            about = f"{values['family']} {values['layout']} worker {rank}: {memory}, measured {measured.peak}"
            assert memory.total == pytest.approx(measured.peak, rel=0.05), about
            assert sent == pytest.approx(measured.sent, rel=1e-6) and sent > 0, about
            if values["layout"].get("optimizer") != 3:  # whose blocks keep theirs to themselves
                assert held.part.numbers == measured.numbers
