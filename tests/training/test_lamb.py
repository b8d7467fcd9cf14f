"""LAMB beside algorithm 2 of You et al. 2020 in float64; MindSpore 2.9.0's own does not compile on a CPU."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from msllm.training.optimizer import Lamb

BETAS, EPSILON, DECAY, RATE = (0.9, 0.999), 1e-6, 0.1, 0.02


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"matrix": rng.normal(size=(6, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}


def parameters(weights):
    return [Parameter(Tensor(value), name=name) for name, value in weights.items()]


def gradients(step):
    rng = np.random.default_rng(step)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((6, 5), (5,))]


def paper(weights, steps):
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    m, v = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    for t in range(1, steps + 1):
        for name, g in zip(w, gradients(t)):
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * g
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * g.astype(np.float64) ** 2
            update = m[name] / (1 - BETAS[0] ** t) / (np.sqrt(v[name] / (1 - BETAS[1] ** t)) + EPSILON)
            trust = 1.0
            if w[name].ndim > 1:
                update += DECAY * w[name]
                trust = np.linalg.norm(w[name]) / np.linalg.norm(update)
            w[name] -= RATE * trust * update
    return w


def run(weights, steps):
    ours = parameters(weights)
    optimizer = Lamb(ours, BETAS, EPSILON, DECAY)
    for t in range(1, steps + 1):
        optimizer.step([Tensor(g) for g in gradients(t)], RATE, 1.0)
    return {p.name: p.asnumpy() for p in ours}


def test_equals_the_paper(weights):
    ours, wanted = run(weights, 5), paper(weights, 5)
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_zeros_moves(weights):
    weights["matrix"][:] = 0
    assert np.abs(run(weights, 1)["matrix"]).max() == pytest.approx(RATE, rel=1e-3)


def test_state_is_restored(weights):
    first = Lamb(parameters(weights), BETAS, EPSILON, DECAY)
    first.step([Tensor(g) for g in gradients(1)], RATE, 1.0)
    second = Lamb(parameters({p.name: p.asnumpy() for p in first.parameters}), BETAS, EPSILON, DECAY)
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        optimizer.step([Tensor(g) for g in gradients(2)], RATE, 1.0)
    for one, other in zip(first.parameters, second.parameters, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
