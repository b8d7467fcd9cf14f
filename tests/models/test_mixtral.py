"""Mixtral's gradients and its training objective against transformers; the balancing loss at work.

Logits, files, generation and a training run are compared in tests/parity, together with the other families.
"""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor

import msllm
from msllm import kernels
from msllm.errors import UserError
from msllm.layers import moe_layers
from msllm.models.mixtral import MixtralConfig, MixtralForCausalLM
from msllm.training import CAUSAL_LM, Trainer, TrainingArguments
from msllm.training.blocks import BLOCKS
from msllm.training.moe_objective import moe_objective
from msllm.training.pretraining import PRETRAINING

reference = pytest.importorskip("tests.parity.reference")
torch = reference.torch

SIZES = {**reference.MIXTRAL, "num_hidden_layers": 1}
TOLERANCE = 1e-5


@pytest.fixture(params=["stock", "cpu"])
def table(request):
    before = kernels.active()
    try:
        kernels.use(request.param)
    except kernels.NoKernels:
        pytest.skip("the C++ kernels are not built here")
    yield request.param
    kernels.use(before)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function from options to transformers' model and the folder that it is saved in."""
    made = {}

    def make(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("mixtral") / "model"
            made[key] = reference.build("MixtralConfig", "MixtralForCausalLM", {**SIZES, **options}), folder
            made[key][0].save_pretrained(folder)
        return made[key]

    return make


def batch_of(side):
    """A padded batch of ids, mask and labels, numpy (3, 11)."""
    ids, mask = reference.padded_batch(side=side)
    labels = np.where(mask == 1, ids, -100)
    if side == "left":  # transformers' first target of a padded row would be predicted by padding
        first = mask.argmax(1)
        labels[np.arange(len(ids)), first] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.astype(np.int32)}


def theirs_run(model, batch):
    """transformers' loss (with the balancing loss where its config asks for it) and gradients by name."""
    model.zero_grad()
    tensors = {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items()}
    loss = model(**tensors).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def ours_run(model, objective, batch):
    """Our losses, whole and by term, and gradients by name."""
    tensors, counts = objective.to_device(batch)
    scale = Tensor((np.array(objective.weights) / objective.counts(counts)).astype(np.float32))

    def whole(tensors):
        terms = objective.loss(model, tensors) * scale
        return terms.sum(), terms

    parameters = ParameterTuple(model.trainable_params())
    (loss, terms), grads = ms.value_and_grad(whole, None, parameters, has_aux=True)(tensors)
    return float(loss.asnumpy()), terms.asnumpy(), {p.name: g.asnumpy() for p, g in zip(parameters, grads)}


def assert_same_gradients(ours, theirs):
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        if theirs[name] is None or not theirs[name].any():  # an expert that no real token was sent to
            assert ".experts." in name and not grad.any(), name
            continue
        assert reference.difference(grad, theirs[name]) < TOLERANCE, name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{"num_hidden_layers": 2}, {"num_hidden_layers": 2, "sliding_window": 4}], ids=str)
def test_gradients_of_all_weights_equal_pytorch(pair, table, options, side):
    theirs, folder = pair(**options)
    batch = batch_of(side)
    expected, grads = theirs_run(theirs, batch)
    model = msllm.from_pretrained(folder).set_train(True)
    loss, _, ours = ours_run(model, CAUSAL_LM, batch)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert_same_gradients(ours, grads)
    assert all(grads[name].abs().max() > 1e-4 for name in grads if name.endswith("gate.weight"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_whole_loss_and_its_gradient_equal_transformers(pair, table, top_k, side):
    """With one layer: transformers pools the tokens of all layers before it compares shares with probabilities."""
    theirs, folder = pair(num_experts_per_tok=top_k, output_router_logits=True, router_aux_loss_coef=0.7)
    batch = batch_of(side)
    expected, grads = theirs_run(theirs, batch)
    model = msllm.from_pretrained(folder).set_train(True)
    loss, terms, ours = ours_run(model, moe_objective(model.config.router_aux_loss_coef, 0.0), batch)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert terms[1] > 0.7 * top_k
    assert_same_gradients(ours, grads)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_micro_batch_counts_once(pair, tmp_path):
    _, folder = pair(num_hidden_layers=2)
    rng = np.random.default_rng(0)
    examples = [{"input_ids": rng.integers(0, reference.V, 4 + 3 * i).tolist()} for i in range(4)]
    objective = moe_objective(0.2, 0.1, BLOCKS)
    args = TrainingArguments(
        max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-9, logging_steps=1
    )
    Trainer(msllm.from_pretrained(folder), args, examples, tmp_path / "out", objective=objective).train()
    model = msllm.from_pretrained(folder).set_train(True)
    found, counts = [], []
    for batch in msllm.data.batches(examples, 2, epoch=0, seed=args.seed, collate=BLOCKS.collate):
        found.append(ours_run(model, objective, batch)[1] / objective.weights)
        tokens, *ones = objective.to_device(batch)[1]
        assert ones == [1, 1]
        counts.append(tokens)
    assert len(found) == 2 and counts[0] != counts[1]
    entry, found = log_of(tmp_path / "out")[0], np.stack(found)
    assert entry["lm_loss"] == pytest.approx(np.average(found[:, 0], weights=counts), rel=TOLERANCE)
    assert [entry["balance_loss"], entry["z_loss"]] == pytest.approx(found[:, 1:].mean(0), rel=TOLERANCE)


def test_the_trainer_logs_the_terms_and_evaluates_them(pair, tmp_path):
    _, folder = pair(num_hidden_layers=2)
    rng = np.random.default_rng(0)
    examples = [{"input_ids": rng.integers(0, reference.V, 9).tolist()} for _ in range(8)]
    args = TrainingArguments(max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1)
    objective = moe_objective(0.3, 0.2, BLOCKS)
    Trainer(msllm.from_pretrained(folder), args, examples, tmp_path / "out", examples[:4], objective=objective).train()
    log = log_of(tmp_path / "out")
    trained, evaluated = [e for e in log if "loss" in e], [e for e in log if "eval_loss" in e]
    assert len(trained) == 3 and len(evaluated) == 1
    for entry, start in [*((e, "") for e in trained), (evaluated[0], "eval_")]:
        lm, balance, z = (entry[f"{start}{name}_loss"] for name in ("lm", "balance", "z"))
        assert entry[f"{start}loss"] == pytest.approx(lm + 0.3 * balance + 0.2 * z, rel=1e-6)
        assert lm > 0 and balance > 1 and z > 0
    # Evaluation measures its own batch, not what training left behind.
    assert evaluated[0]["eval_balance_loss"] != trained[-1]["balance_loss"]


def spread(weight, output):
    """The largest load over the mean, at first and at the end of training a router that starts with one favourite."""
    model = MixtralForCausalLM(MixtralConfig.from_dict({**SIZES, "num_experts_per_tok": 1}))
    (layer,) = moe_layers(model)
    rng, loads = np.random.default_rng(0), []
    for p in model.get_parameters():
        if p.ndim > 1:
            p.set_data(Tensor((rng.standard_normal(p.shape) * 0.1).astype(np.float32)))
    gate, table = layer.gate.weight.asnumpy(), model.model.embed_tokens.weight.asnumpy()
    gate[1:] *= 0.1
    gate[0] = table.mean(0) * 20
    table[:] += 0.5 * gate[0] / np.linalg.norm(gate[0])
    layer.gate.weight.set_data(Tensor(gate))
    model.model.embed_tokens.weight.set_data(Tensor(table))
    objective = moe_objective(weight, 0.001, BLOCKS)

    def loss(model, tensors):
        terms = objective.loss(model, tensors)
        loads.append(layer.load.max() / layer.load.mean())
        return terms

    args = TrainingArguments(
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        adam_beta2=0.99,
        weight_decay=0.0,
        lr_scheduler_type="constant",
    )
    examples = [{"input_ids": rng.integers(0, reference.V, 33).tolist()} for _ in range(60 * 16)]
    Trainer(model, args, examples, output, objective=dataclasses.replace(objective, loss=loss)).train()
    assert len(loads) == 60
    return loads[0], np.mean(loads[-20:])


def test_the_balancing_loss_evens_out_the_load(tmp_path):
    first, last = spread(0.1, tmp_path / "balanced")
    assert first > 3.5  # of 4: nearly all tokens go to one expert
    assert last < 2.0
    assert spread(0.0, tmp_path / "free")[1] > 3.5


def test_weights_of_zero_leave_terms_out():
    assert moe_objective().terms == ("lm_loss", "balance_loss", "z_loss")
    assert moe_objective().weights == (1.0, 0.01, 0.001)
    assert moe_objective(0.0, 0.5).terms == ("lm_loss", "z_loss") and moe_objective(0.0, 0.5).weights == (1.0, 0.5)
    assert moe_objective(0.0, 0.0) is CAUSAL_LM
    assert moe_objective(base=BLOCKS).collate is BLOCKS.collate and moe_objective(base=BLOCKS).length is BLOCKS.length


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"balance_weight": -0.1}, "balance_weight is -0.1, expected 0 or more"),
        ({"z_weight": float("nan")}, "z_weight is nan, expected 0 or more"),
        ({"base": PRETRAINING}, "has the terms mlm_loss, nsp_loss, expected one"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        moe_objective(**arguments)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5 is above num_local_experts = 4"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0, expected a positive integer"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1, only 0 is supported"),
        ({"sliding_window": 0}, "sliding_window is 0, expected a positive integer"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported are silu"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        MixtralConfig.from_dict({**SIZES, **values})


def test_the_defaults_are_those_of_transformers():
    ours, theirs = MixtralConfig().to_dict(), reference.transformers.MixtralConfig().to_dict()
    shared = set(ours) & set(theirs) - {"architectures", "head_dim", "bos_token_id", "eos_token_id"}
    assert {"num_local_experts", "router_aux_loss_coef", "rope_theta", "sliding_window"} < shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_jit_is_refused_in_words(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a failed compilation leaves files
    _, folder = pair()
    model, before = msllm.from_pretrained(folder), kernels.active()

    @ms.jit
    def compiled(ids):
        return model(ids)

    try:
        kernels.use("stock")
        with pytest.raises(UserError, match="which jit cannot; set jit to false"):
            compiled(Tensor(np.zeros((1, 4), np.int32)))
    finally:
        kernels.use(before)
