"""Checkpoint files in memory: transposed copies, pages that are let go, parameters without initial values."""

import json
import struct

import numpy as np
import pytest

import msllm
from msllm.layers import Linear, initialise, no_initial_values
from msllm.models import weights
from msllm.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification


@pytest.fixture
def arrays(rng):
    return {
        "a": rng.standard_normal((130, 67)).astype(np.float32),
        "b": rng.standard_normal((900, 33)).astype(np.float32),
    }


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_transposed_arrays_are_copied_in_order(rng):
    for shape in ((130, 67), (64, 64), (1, 5), (3, 4, 5), (7,)):
        array = rng.standard_normal(shape).astype(np.float32)
        got = weights.in_order(array.T)
        assert got.flags.c_contiguous and (got == array.T).all()
    assert weights.in_order(array) is array


def test_a_released_array_and_its_neighbours_read_as_before(arrays, tmp_path):
    weights.save_tensors(arrays, tmp_path / "w.safetensors")
    mapped = weights.read_file(tmp_path / "w.safetensors")
    mapped["b"][0, 0] = 5.0  # private to this process, and not to be lost
    copy = weights.in_order(mapped["a"].T)
    assert (copy == arrays["a"].T).all() and (mapped["a"] == arrays["a"]).all()
    assert mapped["b"][0, 0] == 5.0 and (mapped["b"][1:] == arrays["b"][1:]).all()
    weights.release(arrays["a"])  # not from a file: nothing happens
    assert np.isfinite(arrays["a"]).all()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_files_become_float32(arrays, tmp_path, kind):
    a = arrays["a"]
    data = a.astype(np.float16).tobytes() if kind == "F16" else (a.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = json.dumps({"a": {"dtype": kind, "shape": list(a.shape), "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    got = weights.read_file(tmp_path / "w.safetensors")["a"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, a, rtol=1e-3 if kind == "F16" else 8e-3)


def test_parameters_without_values_get_them_later():
    with pytest.raises(RuntimeError, match="inside"), no_initial_values():
        raise RuntimeError("inside")
    assert abs(Linear(100, 100).weight.asnumpy().std() - 0.02) < 0.002  # drawn again, after the error
    with no_initial_values():
        linear = Linear(100, 100, std=0.5)
    initialise(linear.weight)
    initialise(linear.bias)
    assert abs(linear.weight.asnumpy().std() - 0.5) < 0.02 and not linear.bias.asnumpy().any()


def test_a_new_head_is_drawn_when_the_file_lacks_it(tmp_path):
    sizes = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    body = BertForMaskedLM(BertConfig(intermediate_size=40, **sizes))
    body.save_pretrained(tmp_path / "body")
    config = json.loads((tmp_path / "body" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "body" / "config.json").write_text(json.dumps(config))
    model = msllm.from_pretrained(tmp_path / "body")
    assert isinstance(model, BertForSequenceClassification)
    assert 0.005 < model.classifier.weight.asnumpy().std() < 0.05
    got = model.bert.embeddings.word_embeddings.weight.asnumpy()
    np.testing.assert_array_equal(got, body.bert.embeddings.word_embeddings.weight.asnumpy())
