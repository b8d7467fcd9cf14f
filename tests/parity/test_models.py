"""Logits equal transformers' to 1e-5 of the largest logit, in fp32."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm import kernels
from tests.parity.reference import BERT_CLASSES, CAUSAL, TOLERANCE, difference, padded_batch, torch


def run(model, ids, mask=None, **more):
    more = {k: Tensor(v) for k, v in more.items()}
    return model(Tensor(ids), None if mask is None else Tensor(mask), **more)


def reference(model, ids, mask=None, **more):
    more = {k: torch.tensor(v) for k, v in more.items()}
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(ids), attention_mask=mask, return_dict=False, **more)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_logits_equal_transformers(zoo, name):
    theirs, folder = zoo.causal(name)
    ids, _ = padded_batch()
    assert difference(run(msllm.from_pretrained(folder), ids).asnumpy(), reference(theirs, ids)[0]) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_padded_batches_equal_transformers_on_real_tokens(zoo, name, side):
    theirs, folder = zoo.causal(name)
    ids, mask = padded_batch(side=side)
    ours = run(msllm.from_pretrained(folder), ids, mask).asnumpy()
    assert difference(ours, reference(theirs, ids, mask)[0], mask == 1) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt", "gpt2", "llama-tied", "llama-bias", "llama-dynamic", "bloom-3-heads"])
def test_models_compile_under_jit_with_stock_kernels(zoo, name):
    _, folder = zoo.causal(name)
    ids, mask = padded_batch()
    model = msllm.from_pretrained(folder)
    eager, padded = run(model, ids).asnumpy(), run(model, ids, mask).asnumpy()
    chosen = kernels.active()
    try:
        kernels.use("stock")

        @ms.jit
        def plain(ids):
            return model(ids)

        @ms.jit
        def masked(ids, mask):
            return model(ids, mask)

        assert difference(plain(Tensor(ids)).asnumpy(), torch.tensor(eager)) < TOLERANCE
        jitted = masked(Tensor(ids), Tensor(mask)).asnumpy()
        assert difference(jitted, torch.tensor(padded), mask == 1) < TOLERANCE
    finally:
        kernels.use(chosen)


@pytest.mark.parametrize("name", BERT_CLASSES)
def test_bert_outputs_equal_transformers(zoo, name):
    theirs, folder = zoo.bert(name)
    model = msllm.from_pretrained(folder)
    for side in ("right", "left"):
        ids, mask = padded_batch(side=side)
        types = (np.arange(ids.shape[1]) > 5).astype(np.int32)[None].repeat(len(ids), 0)
        ours, expected = run(model, ids, mask, token_type_ids=types), reference(theirs, ids, mask, token_type_ids=types)
        assert len(ours) == len(expected)
        for mine, other in zip(ours, expected):
            real = mask == 1 if other.shape[:2] == mask.shape and other.dim() == 3 else None
            if real is None and side == "left":
                continue  # the first token is padding there: nothing to compare
            assert difference(mine.asnumpy(), other, real) < TOLERANCE


def test_bert_compiles_under_jit_with_stock_kernels(zoo):
    _, folder = zoo.bert("BertForPreTraining")
    ids, mask = padded_batch(side="right")
    model = msllm.from_pretrained(folder)
    eager = run(model, ids, mask)
    chosen = kernels.active()
    try:
        kernels.use("stock")

        @ms.jit
        def forward(ids, mask):
            return model(ids, mask)

        for mine, other in zip(forward(Tensor(ids), Tensor(mask)), eager):
            assert difference(mine.asnumpy(), torch.tensor(other.asnumpy())) < TOLERANCE
    finally:
        kernels.use(chosen)


@pytest.mark.parametrize("name", [*CAUSAL, *BERT_CLASSES])
def test_saving_writes_the_same_tensors_and_transformers_reads_them(zoo, name, tmp_path):
    theirs, folder = zoo.causal(name) if name in CAUSAL else zoo.bert(name)
    msllm.from_pretrained(folder).save_pretrained(tmp_path / "again", max_shard_bytes=20000)
    again = type(theirs).from_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    expected = theirs.state_dict()
    assert set(again.state_dict()) == set(expected)
    for key, value in again.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
