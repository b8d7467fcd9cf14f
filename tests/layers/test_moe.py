"""The mixture-of-experts layer against a plain loop over tokens in float64 PyTorch, on both tables of kernels."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.layers import Linear, MoE, moe_layers, moe_losses
from msllm.layers.moe import run_each

torch = pytest.importorskip("torch")

D, F, E, N = 12, 20, 6, 40
TOLERANCE = 1e-5  # of the largest value of each tensor


@pytest.fixture(params=["stock", "cpu"], autouse=True)
def table(request):
    before = kernels.active()
    try:
        kernels.use(request.param)
    except kernels.NoKernels:
        pytest.skip("the C++ kernels are not built here")
    yield request.param
    kernels.use(before)


def layer_of(top_k, normalise=True, capacity_factor=None, experts=E, seed=0):
    rng = np.random.default_rng(seed)
    layer = MoE(D, F, experts, top_k, normalise=normalise, capacity_factor=capacity_factor)
    for p in layer.get_parameters():
        p.set_data(Tensor((rng.standard_normal(p.shape) * 0.5).astype(np.float32)))
    return layer


def tokens(count=N, seed=1):
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def double(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


def by_loop(layer, x, real=None):
    """Token after token in float64: outputs, balance, z, the copies that got a place {(token, choice)}, parameters."""
    real = np.ones(len(x), bool) if real is None else real
    w = {p.name: double(p.asnumpy()) for p in layer.get_parameters()}
    experts, top_k = layer.expert_count, layer.top_k
    logits = x @ w["gate.weight"].T
    p = torch.softmax(logits, -1)
    top, ids = torch.topk(p, top_k)
    weights = top / top.sum(-1, keepdim=True) if layer.normalise else top
    capacity = math.inf
    if layer.capacity_factor is not None:
        capacity = math.ceil(layer.capacity_factor * top_k * real.sum() / experts)
    taken, placed, rows = [0] * experts, set(), [torch.zeros(D, dtype=torch.float64) for _ in x]
    for k in range(top_k):
        for n in np.flatnonzero(real):
            e = int(ids[n, k])
            if taken[e] == capacity:
                continue
            taken[e] += 1
            placed.add((int(n), k))
            w1, w2, w3 = (w[f"experts.{e}.w{i}.weight"] for i in (1, 2, 3))
            rows[n] = rows[n] + weights[n, k] * (w2 @ (torch.nn.functional.silu(w1 @ x[n]) * (w3 @ x[n])))
    f = torch.zeros(experts, dtype=torch.float64)
    for e in ids[real].flatten():
        f[e] += 1 / real.sum()
    balance = experts * (f * p[real].mean(0)).sum()
    z = (torch.logsumexp(logits[real], -1) ** 2).mean()
    return torch.stack(rows), balance, z, placed, w


def assert_close(ours, theirs, what):
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity_factor", [None, 1.0, 0.5, 1.3])
@pytest.mark.parametrize("top_k, normalise", [(1, False), (2, True), (3, False), (E, True)])
def test_outputs_losses_and_gradients_equal_a_plain_loop(top_k, normalise, capacity_factor, padded):
    layer = layer_of(top_k, normalise, capacity_factor)
    x, rng = tokens(), np.random.default_rng(2)
    real = rng.random(N) < 0.7 if padded else None
    mask = None if real is None else Tensor(real.astype(np.int32))
    factors = rng.standard_normal((N, D)).astype(np.float32)
    x64 = double(x)
    y, balance, z, _, w = by_loop(layer, x64, real)
    ((y * torch.tensor(factors)).sum() + 0.7 * balance + 0.3 * z).backward()

    def loss(x):
        y = layer(x, mask)
        return ops.reduce_sum(y * Tensor(factors)) + 0.7 * layer.balance + 0.3 * layer.z, y, layer.balance, layer.z

    parameters = ParameterTuple(layer.get_parameters())
    (_, *got), (dx, grads) = ms.value_and_grad(loss, 0, parameters, has_aux=True)(Tensor(x))
    for what, ours, theirs in zip(("y", "balance", "z"), got, (y, balance, z)):
        assert_close(ours.asnumpy(), theirs, what)
    assert_close(dx.asnumpy(), x64.grad, "x")
    for parameter, grad in zip(parameters, grads):
        assert_close(grad.asnumpy(), w[parameter.name].grad, parameter.name)


@pytest.mark.parametrize("top_k", [1, 2])
def test_capacity_drops_exactly_the_last_copies(top_k):
    layer = layer_of(top_k, top_k == 2, 1.0)
    x = tokens(N)
    real = np.arange(N) % 5 != 0
    routing = layer.route(Tensor(x), real)
    *_, placed, _ = by_loop(layer, double(x), real)
    assert {(i // top_k, i % top_k) for i in routing.order.tolist()} == placed
    assert routing.counts.sum() == len(routing.order) < top_k * real.sum() == routing.load.sum()
    assert routing.counts.max() == math.ceil(top_k * real.sum() / E)
    owners = routing.ids.reshape(-1)[routing.order]
    np.testing.assert_array_equal(owners, np.repeat(np.arange(E), routing.counts))


def test_capacity_is_what_the_factor_says_not_what_floats_make_of_it():
    layer = layer_of(1, capacity_factor=1.1, experts=1)  # 1.1 * 10 = 11.000000000000002 would have one place more
    layer.capacity_factor = 0.7  # 0.7 * 10 = 7 copies
    assert layer.route(Tensor(tokens(10))).counts.tolist() == [7]
    layer.capacity_factor = 0.55  # 0.55 * 20 = 11.000000000000002
    assert layer.route(Tensor(tokens(20))).counts.tolist() == [11]


def test_an_expert_without_a_token_has_no_gradient():
    layer = layer_of(1, normalise=False)
    x = np.abs(tokens())
    gate = layer.gate.weight.asnumpy()
    gate[2] = -3.0
    layer.gate.weight.set_data(Tensor(gate))
    parameters = ParameterTuple(layer.get_parameters())
    grads = ms.grad(lambda x: ops.reduce_sum(layer(x)), None, parameters)(Tensor(x))
    assert layer.load[2] == 0 and (np.delete(layer.load, 2) > 0).any() and layer.load.sum() == N
    for parameter, grad in zip(parameters, grads):
        busy = parameter.name == "gate.weight" or layer.load[int(parameter.name.split(".")[1])] > 0
        assert grad.asnumpy().any() == busy, parameter.name


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_even_routing_has_a_balance_of_top_k_which_is_the_least(top_k):
    layer = MoE(E, F, E, top_k)
    layer.gate.weight.set_data(Tensor(np.eye(E, dtype=np.float32)))
    # Token n prefers experts n, n + 1, ...: each is as often first, second and so on.
    even = np.stack([np.roll(np.linspace(2, -2, E), n % E) for n in range(4 * E)]).astype(np.float32)
    layer(Tensor(even))
    assert layer.load.tolist() == [4 * top_k] * E
    assert float(layer.balance.asnumpy()) == pytest.approx(top_k, rel=1e-6)
    layer(Tensor(even[np.arange(24) % 3]))
    assert float(layer.balance.asnumpy()) > 1.05 * top_k


def test_padding_is_not_routed_and_changes_nothing():
    layer = layer_of(2, capacity_factor=0.8)
    x = tokens()
    real = np.arange(N) % 3 > 0
    mask = Tensor(real.astype(np.int32).reshape(4, 10))
    padded = layer(Tensor(x.reshape(4, 10, D)), mask).asnumpy().reshape(N, D)
    losses = [float(v.asnumpy()) for v in moe_losses(layer)]
    alone = layer(Tensor(x[real])).asnumpy()
    assert not padded[~real].any()
    np.testing.assert_allclose(padded[real], alone, rtol=1e-6, atol=1e-6)
    assert losses == pytest.approx([float(v.asnumpy()) for v in moe_losses(layer)], rel=1e-6)


def test_a_batch_of_padding_alone_still_sends_one_copy_a_choice():
    layer = layer_of(2)
    sent = []
    layer.exchange = lambda layer, x, counts: sent.append(counts) or run_each(layer.experts, x, counts)
    grad = ms.grad(lambda x: ops.reduce_sum(layer(x, Tensor(np.zeros(N, np.int32)))))(Tensor(tokens()))
    assert sent[0].sum() == 2 and layer.load.sum() == 0 and not grad.asnumpy().any()
    assert [float(v.asnumpy()) for v in moe_losses(layer)] == [0, 0]


def test_an_exchange_takes_the_place_of_the_local_experts():
    layer = layer_of(2, capacity_factor=1.0)
    x = Tensor(tokens())
    before, seen = layer(x).asnumpy(), {}

    def halves(layer, x_sorted, counts):
        """Experts 0 to 2 and 3 to 5, as two workers would run them."""
        seen.update(rows=x_sorted.shape, counts=counts)
        cut = int(counts[:3].sum())
        first = run_each(list(layer.experts)[:3], x_sorted[:cut], counts[:3])
        return ops.concat((first, run_each(list(layer.experts)[3:], x_sorted[cut:], counts[3:])), 0)

    layer.exchange = halves
    np.testing.assert_allclose(layer(x).asnumpy(), before, rtol=1e-6, atol=1e-6)
    assert seen["rows"] == (seen["counts"].sum(), D)


def test_shares_make_the_mean_of_two_workers_the_whole_batch():
    layer, x = layer_of(2), tokens()
    layer(Tensor(x))
    whole = [float(v.asnumpy()) for v in moe_losses(layer)]
    parts, loads = (x[:25], x[25:]), []
    for part in parts:
        layer(Tensor(part))
        loads.append(layer.load)
    layer.shares = lambda f, tokens: (sum(loads) / N, N / 2)
    found = []
    for part in parts:
        layer(Tensor(part))
        found.append([float(v.asnumpy()) for v in moe_losses(layer)])
    assert np.mean(found, 0) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_equals_that_of_transformers(top_k, masked):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layer, x = layer_of(top_k), tokens()
    mask = np.ones((4, 10), np.int32)
    if masked:
        mask[1, 6:] = mask[3, :2] = 0
    layer(Tensor(x.reshape(4, 10, D)), Tensor(mask))
    logits = torch.tensor(x) @ torch.tensor(layer.gate.weight.asnumpy()).T
    theirs = mixtral.load_balancing_loss_func((logits,), E, top_k, torch.tensor(mask))
    assert float(layer.balance.asnumpy()) == pytest.approx(theirs.item(), rel=1e-5)


def test_the_router_is_exact_where_ops_softmax_is_not():
    layer = layer_of(2, normalise=False)
    x = tokens(500)
    routing = layer.route(Tensor(x))
    logits = x.astype(np.float64) @ layer.gate.weight.asnumpy().astype(np.float64).T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(routing.probabilities.asnumpy(), p, rtol=3e-6)
    np.testing.assert_array_equal(routing.ids, np.argsort(-p, axis=1)[:, :2])


def test_equal_probabilities_go_to_the_first_experts_each_once():
    layer = layer_of(3)
    layer.gate.weight.set_data(Tensor(np.zeros((E, D), np.float32)))
    assert layer.route(Tensor(tokens(5))).ids.tolist() == [[0, 1, 2]] * 5


def test_the_losses_of_several_layers_are_their_mean():
    layers = ms.nn.CellList([layer_of(2, seed=s) for s in range(3)])
    for i, layer in enumerate(layers):
        layer(Tensor(tokens(seed=i)))
    assert moe_layers(layers) == list(layers)
    for name, mean in zip(("balance", "z"), moe_losses(layers)):
        values = [float(getattr(layer, name).asnumpy()) for layer in layers]
        assert float(mean.asnumpy()) == pytest.approx(np.mean(values), rel=1e-6)


def test_the_parameters_have_the_names_of_mixtral():
    shapes = {p.name: p.shape for p in MoE(D, F, 2, 1).get_parameters()}
    experts = {f"experts.{e}.w{i}.weight": (D, F) if i == 2 else (F, D) for e in (0, 1) for i in (1, 2, 3)}
    assert shapes == {"gate.weight": (2, D), **experts}


def test_without_measure_the_losses_stay_as_they_are():
    layer = layer_of(2)
    layer(Tensor(tokens()))
    before = layer.balance, layer.z, layer.load
    layer(Tensor(tokens(3)), None, False)
    assert all(a is b for a, b in zip(before, (layer.balance, layer.z, layer.load)))


@pytest.mark.parametrize("top_k", [0, E + 1])
def test_a_top_k_that_cannot_be_is_refused(top_k):
    with pytest.raises(UserError, match=f"top_k = {top_k} of 6 experts, expected 1 to 6"):
        MoE(D, F, E, top_k)


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf])
def test_a_capacity_that_cannot_be_is_refused(factor):
    with pytest.raises(UserError, match=f"capacity_factor is {factor}, expected a number above 0"):
        MoE(D, F, E, 2, capacity_factor=factor)


def test_a_model_without_such_layers_says_so():
    with pytest.raises(UserError, match="Linear has no mixture-of-experts layer"):
        moe_losses(Linear(3, 3))
