"""Adapters travel between msllm and peft without a change in the logits."""

import json

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.errors import UserError
from msllm.models.pretrained import model_class
from msllm.tuning import LoraConfig, apply, load_adapter, merge, save_adapter
from tests.parity.reference import TOLERANCE, difference, padded_batch, torch

peft = pytest.importorskip("peft")
TARGETS = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "v_proj", "down_proj"], "bloom": ["query_key_value"]}


def randomise_adapter(model, std=0.3):
    rng = np.random.default_rng(3)
    for p in model.trainable_params():
        p.set_data(Tensor(rng.normal(0, std, p.shape).astype(np.float32)))


@pytest.mark.parametrize("name", TARGETS)
def test_peft_reads_our_adapter(zoo, name, tmp_path):
    theirs, folder = zoo.causal(name)
    ids, _ = padded_batch()
    model, config = msllm.from_pretrained(folder), LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[name])
    plain = model(Tensor(ids)).asnumpy()
    apply(model, config)
    assert np.array_equal(model(Tensor(ids)).asnumpy(), plain)  # B starts at zero
    randomise_adapter(model)
    save_adapter(model, config, tmp_path, str(folder))
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(type(theirs).from_pretrained(folder), tmp_path).eval()
        expected = adapted(torch.tensor(ids)).logits
    assert difference(model(Tensor(ids)).asnumpy(), expected) < TOLERANCE
    assert difference(plain, expected) > 0.01


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_we_read_pefts_adapter_and_transformers_reads_the_merged_model(zoo, name, use_rslora, tmp_path):
    theirs, folder = zoo.causal(name)
    ids, _ = padded_batch()
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=8,
        target_modules=TARGETS[name],
        task_type="CAUSAL_LM",
        fan_in_fan_out=name == "gpt2",
        use_rslora=use_rslora,
    )
    adapted = peft.get_peft_model(type(theirs).from_pretrained(folder), settings).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.copy_(torch.randn_like(p) * 0.3)
        expected = adapted(torch.tensor(ids)).logits
    adapted.save_pretrained(tmp_path)
    model = msllm.from_pretrained(folder)
    load_adapter(model, tmp_path)
    unmerged = model(Tensor(ids)).asnumpy()
    assert difference(unmerged, expected) < TOLERANCE
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        again = type(theirs).from_pretrained(tmp_path / "merged").eval()(torch.tensor(ids)).logits
    assert difference(unmerged, again) < TOLERANCE


@pytest.mark.parametrize("name", TARGETS)
def test_merged_equals_unmerged(zoo, name):
    """On weights of the size that training gives: with the wild ones of the other tests, the rounding of fp32
    alone moves the logits by 5e-6, in peft too."""
    config = {**zoo.causal(name)[0].config.to_dict(), "initializer_range": 0.02}
    ids, _ = padded_batch()
    model = model_class(config)(model_class(config).config_class.from_dict(config)).set_train(False)
    names = [p.name for p in model.get_parameters()]
    plain = model(Tensor(ids)).asnumpy()
    apply(model, LoraConfig(r=4, lora_alpha=8))
    randomise_adapter(model, 0.05)
    unmerged = model(Tensor(ids)).asnumpy()
    merge(model)
    assert sorted(p.name for p in model.get_parameters()) == sorted(names)
    assert all(p.requires_grad for p in model.get_parameters())
    assert difference(unmerged, torch.tensor(plain)) > 1e-3
    assert difference(model(Tensor(ids)).asnumpy(), torch.tensor(unmerged)) < 1e-6


def test_all_linear_leaves_out_the_head_as_in_peft(zoo):
    theirs, folder = zoo.causal("llama")
    changed = apply(msllm.from_pretrained(folder), LoraConfig())
    adapted = peft.get_peft_model(type(theirs).from_pretrained(folder), peft.LoraConfig(target_modules="all-linear"))
    expected = {n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert set(changed) == expected


def test_a_target_that_matches_nothing_lists_the_linear_names(zoo):
    _, folder = zoo.causal("llama")
    with pytest.raises(UserError, match=r"'qproj'.*down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"):
        apply(msllm.from_pretrained(folder), LoraConfig(target_modules=["qproj"]))


def test_an_adapter_with_options_we_do_not_read_is_refused(zoo, tmp_path):
    _, folder = zoo.causal("llama")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        load_adapter(msllm.from_pretrained(folder), tmp_path)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        (["q_proj,v_proj"], ["q_proj", "v_proj"]),
        ("q_proj", ["q_proj"]),
        (["all-linear"], "all-linear"),
        (r".*layers\.0\..*", r".*layers\.0\..*"),
    ],
)
def test_targets_in_every_spelling(given, meant):
    assert LoraConfig(target_modules=given).target_modules == meant
