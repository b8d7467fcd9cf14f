"""Checkpoints of parallel runs to Hugging Face folders and back, bit by bit."""

import numpy as np
import pytest

import msllm
from msllm.errors import UserError
from msllm.models.gpt2 import GPT2LMHeadModel
from msllm.models.transformer import TransformerConfig, TransformerForTranslation
from msllm.models.weights import read_weights
from msllm.parallel.folders import from_folder, to_folder
from msllm.parallel.sharded import ShardedCheckpoint, finish, reshard, write_part
from msllm.parallel.slices import Slice
from tests.parallel.test_sharded import share


def two_halves(folder) -> list[list[tuple[str, Slice]]]:
    """A layout of two workers of any checkpoint: packed QKV in three ranges, the rest flat."""
    checkpoint, workers = ShardedCheckpoint(folder), [[], []]
    for name in checkpoint.names("param"):
        whole = checkpoint.whole("param", name)[0]
        for rank in range(2):
            third, half = whole.shape[0] // 3, whole.shape[0] // 6
            ranges = tuple((i * third + rank * half, i * third + (rank + 1) * half) for i in range(3))
            packed = Slice(name, whole.shape, 0, ranges)
            workers[rank].append(("param", packed if "c_attn" in name else share(whole, rank, 2)))
    return workers


@pytest.mark.parametrize(("name", "shard"), [("gpt2", 5 * 10**9), ("gpt2-untied", 9000), ("llama", 9000)])
def test_a_hugging_face_folder_and_back(name, shard, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.parity.reference import Zoo, padded_batch

    theirs, source = Zoo(tmp_path).causal(name)
    from_folder(source, tmp_path / "one", {"step": 3})
    reshard(tmp_path / "one", tmp_path / "two", two_halves(tmp_path / "one"), {"strategy": "tp2"})
    checkpoint = ShardedCheckpoint(tmp_path / "two")
    assert checkpoint.info["step"] == 3
    cls = type(msllm.from_pretrained(source))
    to_folder(checkpoint, cls, tmp_path / "folder", max_shard_bytes=shard)
    files = sorted((tmp_path / "folder").glob("*.safetensors"))
    assert len(files) == 1 if shard > 10**6 else len(files) >= 8
    expected, got = read_weights(source), read_weights(tmp_path / "folder")
    assert expected.keys() == got.keys() and all(np.array_equal(expected[n], got[n]) for n in expected)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", attn_implementation="eager").eval()
    ids = torch.tensor(padded_batch()[0], dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


def test_tensors_that_are_one_in_a_file_stay_together(tmp_path):
    """The translator's q_proj and kv_proj are one in_proj in its folder."""
    sizes = {"vocab_size": 30, "d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "attention_heads": 2}
    TransformerForTranslation(TransformerConfig.from_dict(sizes)).save_pretrained(tmp_path / "source")
    from_folder(tmp_path / "source", tmp_path / "c", {})
    model = msllm.from_pretrained(tmp_path / "source")
    to_folder(ShardedCheckpoint(tmp_path / "c"), model, tmp_path / "folder", max_shard_bytes=1000)
    expected, got = read_weights(tmp_path / "source"), read_weights(tmp_path / "folder")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 3
    assert expected.keys() == got.keys() and all(np.array_equal(expected[n], got[n]) for n in expected)


def test_a_checkpoint_of_another_model_makes_no_folder(tiny_model, tmp_path):
    model = msllm.from_pretrained(tiny_model)
    from_folder(tiny_model, tmp_path / "c", {})
    with pytest.raises(UserError, match="the weights lack"):
        to_folder(ShardedCheckpoint(tmp_path / "c"), GPT2LMHeadModel(_gpt2_config()), tmp_path / "out")
    parts = [("param", Slice(p.name, p.shape), p.asnumpy()) for p in model.get_parameters()]
    write_part(tmp_path / "more", 0, [*parts, ("param", Slice("extra", (2,)), np.zeros(2, np.float32))])
    finish(tmp_path / "more", 1, {})
    more = ShardedCheckpoint(tmp_path / "more")
    with pytest.raises(UserError, match="1 parameters that the LlamaForCausalLM lacks, first extra"):
        to_folder(more, model, tmp_path / "out")
    with pytest.raises(UserError, match=r"layout\.json has no info\.config"):
        to_folder(more, type(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _gpt2_config():
    return GPT2LMHeadModel.config_class(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
