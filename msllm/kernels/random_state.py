"""The random state of dropout: a seed and a count of calls.

A mask is a pure function of (seed, call number, element index), so masks are the same for any number of
threads and any table, and a run resumed from a saved state draws the masks it would have drawn.
"""

import mindspore as ms
import numpy as np

# (seed, calls): a Parameter, so that a graph compiled by ms.jit counts its calls as well.
state = ms.Parameter(ms.Tensor(np.zeros(2, np.int32)), name="dropout_state", requires_grad=False)


def set_seed(seed: int) -> None:
    """Starts the dropout masks over: the next call is number 0 of ``seed`` (taken modulo 2**32)."""
    set_rng_state({"seed": seed, "calls": 0})


def get_rng_state() -> dict[str, int]:
    """Returns {"seed", "calls"}: what ``set_rng_state`` takes, and what a checkpoint keeps."""
    seed, calls = (int(x) & 0xFFFFFFFF for x in state.asnumpy())
    return {"seed": seed, "calls": calls}


def set_rng_state(saved: dict[str, int]) -> None:
    """Goes back to a state that ``get_rng_state`` returned."""
    pair = np.array([saved["seed"] % 2**32, saved["calls"] % 2**32], np.uint32)
    state.set_data(ms.Tensor(pair.view(np.int32)))


def next_call() -> tuple[int, int]:
    """Returns (seed, call number) as unsigned 32-bit integers and counts the call (outside ms.jit)."""
    now = get_rng_state()
    set_rng_state({"seed": now["seed"], "calls": now["calls"] + 1})
    return now["seed"], now["calls"]
