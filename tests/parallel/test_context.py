"""Attention among workers that share the tokens: member by member in this process, and all together under msrun."""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from msllm import kernels, layers
from msllm.errors import UserError
from msllm.parallel import context, run_job
from msllm.parallel.attention_blocks import Block, block_forward, merge, nothing_seen
from msllm.parallel.comm import Group, Traffic
from msllm.parallel.context import HeadAttention, RingAttention, ring_bytes, runs, token_places
from tests.parallel import worker_context
from tests.parallel.worker_context import CASES, SCALE, Case, difference, output_and_gradients

TOLERANCE = 1e-5


@pytest.fixture(params=["stock", "cpu"])
def table(request):
    before = kernels.active()
    try:
        kernels.use(request.param)
    except UserError:
        pytest.skip("the C++ kernels are not built here")
    yield request.param
    kernels.use(before)


@pytest.fixture
def core():
    yield layers.use_core
    layers.use_core(None)


class PlayedGroup:
    """The ring as one member sees it, the others' keys and values being known.

    What the others would have added to the gradients of keys and values is left out: each message of gradients then
    holds what this member alone adds, and the sum over members is the whole.

    Attributes:
        added: source -> (dk, dv), numpy.
        sent: bytes.
    """

    def __init__(self, case: Case, size: int, index: int):
        self.size, self.index, self.case = size, index, case
        self.added, self.sent, self._steps = {}, 0, 0

    def all_gather(self, key_mask):
        self.sent += (self.size - 1) * key_mask.size * 4
        places = [self.case.places_of(self.case.length, self.size, i) for i in range(self.size)]
        return Tensor(np.concatenate([self.case.options["key_mask"][:, p] for p in places]))

    def shift(self, tensors):
        self.sent += sum(x.size * 4 for x in tensors)
        source = (self.index - self._steps) % self.size
        self._steps += 1
        if self._steps == self.size and len(tensors) == 2:  # the gradients come home
            self.added[source] = [x.asnumpy() for x in tensors]
            return [ops.zeros_like(x) for x in tensors]
        if len(tensors) == 4:
            self.added[source] = [x.asnumpy() for x in tensors[2:]]
        places = self.case.places_of(self.case.length, self.size, (source - 1) % self.size)
        keys = [Tensor(np.ascontiguousarray(x[:, places])) for x in self.case.arrays[1:3]]
        # Forward ends here; backward starts at this member's own keys again.
        if len(tensors) == 2 and self._steps == self.size - 1:
            self._steps = 0
        return [*keys, *(ops.zeros_like(x) for x in tensors[2:])]


def played_ring(case: Case, size: int):
    """Returns out, dq, dk and dv of the whole example from all members' parts, and the bytes that each sent."""
    whole = [np.full_like(case.arrays[i], np.nan) for i in (3, 0)] + [np.zeros_like(x) for x in case.arrays[1:3]]
    sent = []
    for index in range(size):
        group = PlayedGroup(case, size, index)
        places = case.places_of(case.length, size, index)
        got = output_and_gradients(RingAttention(group, case.places_of), *case.of_tokens(places))
        whole[0][:, places], whole[1][:, places] = got[:2]
        assert sorted(group.added) == list(range(size))
        for source, (dk, dv) in group.added.items():
            theirs = case.places_of(case.length, size, source)
            whole[2][:, theirs] += dk
            whole[3][:, theirs] += dv
        sent.append(group.sent)
    return whole, sent


@pytest.mark.parametrize("size, name", [*((4, name) for name in CASES), (2, "everything"), (2, "few tokens")])
def test_ring_equals_the_kernel_on_the_whole(table, size, name):
    case = Case(**CASES[name])
    got, sent = played_ring(case, size)
    for what, mine, true in zip(("out", "dq", "dk", "dv"), got, case.whole()):
        assert difference(mine, true) <= TOLERANCE, what
    tokens = case.length // size
    formula = ring_bytes(size, 2, tokens, case.kv_heads, worker_context.WIDTH, "key_mask" in case.options)
    assert sent == [sum(formula)] * size


def test_scattered_places_are_right_too(table):
    case = Case(24, masks=("key_mask", "row_start", "slopes"))
    pairs = np.random.default_rng(0).permutation(12).astype(np.int32)
    dealt = np.stack([2 * pairs, 2 * pairs + 1], 1)
    case.places_of = lambda length, size, index: np.sort(dealt.reshape(size, -1)[index])
    got, _ = played_ring(case, 3)
    for mine, true in zip(got, case.whole()):
        assert difference(mine, true) <= TOLERANCE


def test_scores_of_any_size_do_not_overflow(table):
    case = Case(48)
    case.arrays[:2] = [100 * x for x in case.arrays[:2]]
    got, _ = played_ring(case, 2)
    # The scores are of the order 1e4, where float32 is good to 1e-3.
    assert difference(got[0], case.whole()[0]) < 0.02
    assert all(np.isfinite(x).all() for x in got)


def test_queries_without_keys_give_zeros(table):
    case = Case(24, masks=("key_mask",))
    case.options["key_mask"][1] = 0
    out, *grads = played_ring(case, 2)[0]
    assert not out[1].any() and not out[0, :8].any() and out[0, 8:].all()
    assert not any(grad[1].any() for grad in grads)


def test_a_block_and_its_merge_are_the_attention_of_all_keys(table):
    case = Case(24)
    q, k, v = map(Tensor, case.arrays[:3])
    block = Block(SCALE, False, None, None, None, 0)
    whole_out, whole_lse = block_forward(q, k, v, block)
    halves = ([x[:, a:b].contiguous() for x in (k, v)] for a, b in ((0, 7), (7, 24)))
    parts = [block_forward(q, *half, block) for half in halves]
    out, lse = merge(*parts[0], *parts[1])
    scores = SCALE * np.einsum("bthc,bshc->bhts", *(x.astype(np.float64) for x in case.arrays[:2]))
    for each in (lse, whole_lse):
        np.testing.assert_allclose(each.asnumpy(), np.log(np.exp(scores).sum(-1)), rtol=1e-6, atol=1e-6)
    assert difference(out.asnumpy(), whole_out.asnumpy()) <= 1e-6
    blind = nothing_seen(q)
    same, same_lse = merge(*blind, out, lse)
    assert np.array_equal(same.asnumpy(), out.asnumpy()) and np.array_equal(same_lse.asnumpy(), lse.asnumpy())
    assert not merge(*blind, *blind)[0].asnumpy().any()


def blocks_seen(monkeypatch, case, size):
    """Returns how many pairs of a query and a key each member's blocks have in the forward pass."""
    counts = []

    def counted(q, k, v, block):
        counts[-1] += q.shape[1] * k.shape[1] / (2 if block.causal else 1)
        return block_forward(q, k, v, block)

    monkeypatch.setattr(context, "block_forward", counted)
    for index in range(size):
        counts.append(0)
        arrays, options = case.of_tokens(case.places_of(case.length, size, index))
        masks = {n: Tensor(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x for n, x in options.items()}
        q, k, v = (Tensor(np.ascontiguousarray(x)) for x in arrays[:3])
        RingAttention(PlayedGroup(case, size, index), case.places_of)(q, k, v, SCALE, **masks)
    return counts


def test_zigzag_gives_every_member_as_much_to_do_and_nothing_hidden(monkeypatch):
    assert blocks_seen(monkeypatch, Case(64), 4) == [64 * 64 / 2 / 4] * 4
    assert blocks_seen(monkeypatch, Case(64, zigzag=False), 4) == [128, 384, 640, 896]


def test_documents_and_padding_that_hide_a_block_cost_nothing(monkeypatch):
    case = Case(64)
    case.options["row_start"] = np.repeat(np.arange(0, 64, 8), 8).astype(np.int32)[None].repeat(2, 0)
    # What a member then sees is its own tokens alone; the last one's two pieces are one run.
    assert blocks_seen(monkeypatch, case, 4) == [64, 64, 64, 128]
    case = Case(64, causal=False)
    case.options["key_mask"] = np.broadcast_to(np.arange(64) < 32, (2, 64)).astype(np.int32)
    # Left out are places 48 to 64; 16 to 48, half of which is hidden, are one run.
    assert blocks_seen(monkeypatch, case, 2) == [32 * (16 + 32)] * 2


@pytest.mark.parametrize("zigzag", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_places_are_dealt_out_once(size, zigzag):
    length = 24
    held = [token_places(length, size, i, zigzag) for i in range(size)]
    assert all(p.dtype == np.int32 and len(p) == length // size and (np.diff(p) > 0).all() for p in held)
    assert sorted(np.concatenate(held)) == list(range(length))
    if zigzag:  # as many keys at or before them for all
        assert len({int((p + 1).sum()) for p in held}) == 1


def test_places_by_hand():
    assert token_places(8, 2, 0).tolist() == [0, 1, 6, 7]
    assert token_places(8, 2, 1).tolist() == [2, 3, 4, 5]
    assert token_places(8, 2, 1, zigzag=False).tolist() == [4, 5, 6, 7]
    assert runs(token_places(8, 2, 0)) == [context.Run(0, 0, 2), context.Run(2, 6, 8)]
    assert runs(token_places(8, 2, 1)) == [context.Run(0, 2, 6)]


def test_a_length_that_cannot_be_cut_names_the_nearest():
    with pytest.raises(UserError, match=r"examples of 22 tokens .* 8 equal pieces.* use a length of 16 or 24"):
        token_places(22, 4, 0)
    with pytest.raises(UserError, match=r"examples of 3 tokens .* 4 equal pieces.* use a length of 4$"):
        token_places(3, 4, 0, zigzag=False)


def alone():
    return Group("sequence", [0], 0, Traffic())


@pytest.mark.parametrize("kind", [RingAttention, HeadAttention])
def test_one_member_is_the_kernel_and_sends_nothing(table, kind):
    case, group = Case(24, kv_heads=4, masks=("key_mask", "row_start", "slopes")), alone()
    for got, want in zip(output_and_gradients(kind(group), case.arrays, case.options), case.whole()):
        assert difference(got, want) <= TOLERANCE
    assert group.traffic.sent() == 0
    assert ring_bytes(1, 2, 24, 4, 12, True) == (0, 0) == context.head_bytes(1, 2, 24, 8, 4, 12, 2)


def test_dropout_is_for_the_exchange_of_heads_alone(table):
    q, k, v = (Tensor(x) for x in Case(24).arrays[:3])
    with pytest.raises(UserError, match=r"attention dropout is 0.1.*dropout to 0, or use --parallel.attention heads"):
        RingAttention(alone())(q, k, v, SCALE, dropout=0.1)
    outs = []
    for attention in (kernels.attention, HeadAttention(alone())):
        kernels.set_seed(5)
        outs.append(attention(q, k, v, SCALE, dropout=0.3).asnumpy())
    assert np.array_equal(*outs)
    assert not np.array_equal(outs[0], kernels.attention(q, k, v, SCALE).asnumpy())


def test_heads_that_cannot_be_dealt_out_are_refused():
    case = Case(24, heads=6, kv_heads=3)
    group = PlayedGroup(case, 2, 0)
    arrays, _ = case.of_tokens(case.places_of(24, 2, 0))
    with pytest.raises(UserError, match=r"2 workers .*6 attention heads and 3 key-value heads.*ring, .*divides 3"):
        HeadAttention(group)(*(Tensor(np.ascontiguousarray(x)) for x in arrays[:3]), SCALE)


def test_queries_and_keys_of_other_tokens_have_no_places_in_common():
    q, k, v = (Tensor(x) for x in Case(24).arrays[:3])
    with pytest.raises(ValueError, match="12 queries and 24 keys"):
        RingAttention(alone())(q[:, :12], k, v, SCALE)


def test_a_layout_that_deals_a_token_twice_is_refused():
    q, k, v = (Tensor(x) for x in Case(24).arrays[:3])
    with pytest.raises(ValueError, match="must deal 24 places out to 1 members"):
        RingAttention(alone(), lambda length, size, index: np.zeros(length, np.int32))(q, k, v, SCALE)


def test_models_attend_through_the_core(core):
    calls = []

    def counted(*args):
        calls.append(args)
        return RingAttention(alone())(*args)

    x = Tensor(np.random.default_rng(0).standard_normal((2, 10, 3 * 4 * 8)).astype(np.float32))
    q, k, v = kernels.split_packed(x, 4, False)
    want = layers.attend(q, k, v, 0.3).asnumpy(), layers.attend_packed(x, 4, True, 0.3).asnumpy()
    core(counted)
    got = layers.attend(q, k, v, 0.3).asnumpy(), layers.attend_packed(x, 4, True, 0.3).asnumpy()
    assert len(calls) == 2
    for mine, true in zip(got, want):
        assert mine.shape == (2, 10, 32) and difference(mine, true) <= TOLERANCE
    core(None)
    layers.attend(q, k, v, 0.3)
    assert len(calls) == 2


def small_bloom():
    from msllm.models.bloom import BloomConfig, BloomForCausalLM

    config = {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 4}
    return BloomForCausalLM(BloomConfig.from_dict(config)).set_train(False)


def test_a_model_trains_through_the_core(core):
    model = small_bloom()
    ids = Tensor(np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32))
    mask = Tensor((np.arange(12) >= np.array([[0], [3]])).astype(np.int32))
    step = ms.value_and_grad(lambda: (model(ids, mask) ** 2).mean(), None, model.trainable_params())
    want, want_grads = step()
    core(RingAttention(alone()))
    got, grads = step()
    assert difference(got.asnumpy(), want.asnumpy()) <= TOLERANCE
    for parameter, mine, true in zip(model.trainable_params(), grads, want_grads):
        assert difference(mine.asnumpy(), true.asnumpy()) <= TOLERANCE, parameter.name


def test_neither_a_cache_nor_a_record_of_weights_is_shared(core):
    x = Tensor(np.zeros((1, 4, 2, 8), np.float32))
    core(RingAttention(alone()))
    with pytest.raises(UserError, match=r"key-value cache cannot be used where workers share the tokens"):
        layers.attend(x, x, x, 1.0, cache=layers.KVCache(1, 1, 8, 2, 8))
    packed = Tensor(np.zeros((1, 4, 48), np.float32))
    with layers.record_attention(), pytest.raises(UserError, match="recording attention weights cannot be used"):
        layers.attend_packed(packed, 2, False, 1.0)


def test_a_cache_is_refused_by_whole_blocks_too(table, core):
    model, ids = small_bloom(), Tensor(np.zeros((1, 1), np.int32))
    cache = model.make_cache(1, 4)
    if table == "cpu":  # else the blocks run one by one in any case
        assert cache.decoder(model.transformer.h).takes((1, 1, 16))
    core(RingAttention(alone()))
    with pytest.raises(UserError, match=r"key-value cache cannot be used where workers share the tokens"):
        model(ids, cache=cache)
    assert not any(x.asnumpy().any() for x in (*cache.keys, *cache.values))
    core(None)
    assert difference(model(ids, cache=cache).asnumpy(), model(ids).asnumpy()) <= TOLERANCE


def run_workers(workers: int, folder: Path) -> list[dict]:
    """Runs worker_context on several workers; returns what each of them measured."""
    output = folder / "result.json"
    run_job([sys.executable, worker_context.__file__, str(output)], workers, folder / "logs", timeout=400)
    return json.loads(output.read_text(encoding="utf-8"))


def test_workers_that_share_tokens_compute_the_whole_and_send_what_the_formulas_say(tmp_path):
    everyone = run_workers(2, tmp_path)
    assert len(everyone) == 2
    for measured in everyone:
        for kind in ("RingAttention", "HeadAttention"):
            assert sum(f"stock, {kind}" in name for name in measured["cases"]) == len(CASES)
        for name, case in measured["cases"].items():
            assert max(case["differences"]) <= TOLERANCE, name
            assert case["counted"] == case["formula"] and min(case["formula"]) > 0, name
        for kind, differences in measured["cross"].items():
            assert max(differences) <= TOLERANCE, kind
        mean, repeated, spread = measured["dropout"]
        assert mean == pytest.approx(1.0, abs=0.02) and repeated == 0 and spread > 0.01
