"""Checkpoints of MindFormers: bit-equal there and back, the layouts of its names, ranks merged, wrong ones refused."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from msllm.cli import main
from msllm.conversion.mindformers import from_mindformers, is_mindformers, to_mindformers
from msllm.conversion.mindformers.ranks import write_checkpoint
from msllm.errors import UserError
from msllm.models.pretrained import from_pretrained, model_class
from msllm.models.weights import read_weights
from msllm.parallel.mindspore_strategy import write_strategy
from msllm.parallel.slices import Slice

LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": LLAMA,
    "llama-tied": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "gpt2": {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 11, "n_head": 2, "n_positions": 6},
    "bloom": {"model_type": "bloom", "vocab_size": 11, "hidden_size": 8, "n_layer": 2, "n_head": 2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A Hugging Face folder of each model, with a file of a tokenizer; no two values of its weights are equal."""
    out = {}
    for name, values in MODELS.items():
        cls, rng = model_class(values), np.random.default_rng(0)
        model = cls(cls.config_class.from_dict(values))
        for parameter in model.get_parameters():
            parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape, np.float32)))
        out[name] = tmp_path_factory.mktemp(name) / "model"
        model.save_pretrained(out[name])
        (out[name] / "tokenizer_config.json").write_text("{}")
    return out


def loaded(path: Path) -> dict[str, np.ndarray]:
    return {name: value.asnumpy() for name, value in ms.load_checkpoint(str(path)).items()}


def same_folders(one: Path, other: Path) -> None:
    ours, theirs = read_weights(one), read_weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and np.array_equal(tensor, theirs[name]), name
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    assert (other / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_bit_equal_there_and_back(folders, name, file_format, tmp_path):
    to_mindformers(folders[name], tmp_path / "theirs", False, file_format, max_shard_bytes=1000)
    assert is_mindformers(tmp_path / "theirs") and not is_mindformers(folders[name])
    from_mindformers(tmp_path / "theirs", tmp_path / "back")
    same_folders(folders[name], tmp_path / "back")


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_fused_matrices_come_apart_again(folders, name, tmp_path):
    to_mindformers(folders[name], tmp_path / "theirs", qkv_concat=True)
    ours, theirs = read_weights(folders[name]), loaded(tmp_path / "theirs" / "mindspore_model.ckpt")
    kinds = ("weight", "bias") if name == "llama-tied" else ("weight",)
    for kind in kinds:
        q, k, v = (ours[f"model.layers.1.self_attn.{part}_proj.{kind}"] for part in "qkv")
        whole = theirs[f"model.layers.1.attention.w_qkv.{kind}"]  # two groups: 4 rows of q, 2 of k, 2 of v each
        assert np.array_equal(whole, np.concatenate([q[:4], k[:2], v[:2], q[4:], k[2:], v[2:]]))
    gate, up = (ours[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    both = theirs["model.layers.1.feed_forward.w_gate_hidden.weight"]
    assert np.array_equal(both[0::2], gate) and np.array_equal(both[1::2], up)
    from_mindformers(tmp_path / "theirs", tmp_path / "back")
    same_folders(folders[name], tmp_path / "back")


def test_names_and_layouts_of_r08(folders, tmp_path):
    for name in ("gpt2", "bloom"):
        to_mindformers(folders[name], tmp_path / name)
    gpt2, bloom = (loaded(tmp_path / name / "mindspore_model.ckpt") for name in ("gpt2", "bloom"))
    ours = read_weights(folders["gpt2"])
    for i in range(3):  # columns of Conv1D (in, 3 out) to matrices (out, in)
        part = ours["transformer.h.10.attn.c_attn.weight"][:, 8 * i : 8 * i + 8]
        assert np.array_equal(gpt2[f"backbone.blocks.10.attention.dense{i + 1}.weight"], part.T)
        part = ours["transformer.h.10.attn.c_attn.bias"][8 * i : 8 * i + 8]
        assert np.array_equal(gpt2[f"backbone.blocks.10.attention.dense{i + 1}.bias"], part)
    assert gpt2["backbone.blocks.10.output.mapping.weight"].shape == (8, 32)
    assert np.array_equal(gpt2["backbone.layernorm.gamma"], ours["transformer.ln_f.weight"])
    assert np.array_equal(gpt2["backbone.embedding.position_embedding.embedding_table"], ours["transformer.wpe.weight"])
    ours = read_weights(folders["bloom"])
    whole = ours["transformer.h.1.self_attention.query_key_value.weight"]  # rows: two heads, each 4 of q, of k, of v
    assert np.array_equal(bloom["blocks.1.attention.dense2.weight"], np.concatenate([whole[4:8], whole[16:20]]))
    assert np.array_equal(bloom["blocks.1.output.mapping.weight"], ours["transformer.h.1.mlp.dense_h_to_4h.weight"].T)
    assert bloom["blocks.1.output.mapping.weight"].shape == (8, 32)
    assert "embedding.norm.beta" in bloom and "ln_f.gamma" in bloom and len(bloom) == 5 + 2 * 16


def test_a_bloom_with_prefix_and_its_head(folders, tmp_path):
    """As r0.8's script makes it of a whole Hugging Face model."""
    to_mindformers(folders["bloom"], tmp_path / "theirs")
    file = tmp_path / "theirs" / "mindspore_model.ckpt"
    tensors = loaded(file)
    file.unlink()
    head = tensors["embedding.word_embedding.embedding_table"]
    tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()} | {"head.weight": head}
    write_checkpoint(tensors, file)
    from_mindformers(tmp_path / "theirs", tmp_path / "back")
    same_folders(folders["bloom"], tmp_path / "back")
    file.unlink()
    write_checkpoint({**tensors, "head.weight": head + 1}, file)
    with pytest.raises(UserError, match="tie_word_embeddings"):
        from_mindformers(tmp_path / "theirs", tmp_path / "other")


@pytest.fixture(scope="module")
def run_folder(folders, tmp_path_factory):
    """The output of a run on two ranks that share the matrices, two steps, with the optimiser's states."""
    folder = tmp_path_factory.mktemp("run")
    to_mindformers(folders["llama"], folder / "theirs")
    whole = loaded(folder / "theirs" / "mindspore_model.ckpt")
    held = [[], []]
    for rank in range(2):
        tensors = {"global_step": np.int32([7]), "learning_rate": np.float32(0.1), "epoch_num": np.int32(1)}
        for name, tensor in whole.items():
            axis = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            cut = tensor.ndim == 2 and "embedding" not in name and name != "lm_head.weight"
            half = tensor.shape[axis] // 2
            ranges = ((rank * half, rank * half + half),) if cut else ()
            held[rank].append(Slice(name, tensor.shape, axis, ranges) if cut else Slice(name, tensor.shape))
            tensors[name] = np.split(tensor, 2, axis)[rank] if cut else tensor
            tensors |= {f"{state}.{name}": tensors[name] * 2 for state in ("adam_m", "adam_v", "accu_grads")}
        place = folder / "output" / "checkpoint" / f"rank_{rank}"
        place.mkdir(parents=True)
        write_checkpoint(tensors, place / f"llama_rank_{rank}-1_10.ckpt")
        write_checkpoint({name: tensor * 0 for name, tensor in tensors.items()}, place / f"llama_rank_{rank}-1_9.ckpt")
        (folder / "output" / "strategy").mkdir(exist_ok=True)
    write_checkpoint(whole, folder / "output" / "checkpoint" / "rank_1" / "llama_rank_1-1_11.ckpt")  # not of all ranks
    write_strategy(folder / "output" / "strategy" / "ckpt_strategy_rank_0.ckpt", held)
    return folder / "output"


def test_ranks_of_a_run_are_merged(run_folder, folders, tmp_path):
    from_mindformers(run_folder, tmp_path / "a", folders["llama"])
    from_mindformers(run_folder / "checkpoint", tmp_path / "b", folders["llama"], strategy=run_folder / "strategy")
    for name in "ab":
        (tmp_path / name / "tokenizer_config.json").touch()
        same_folders(folders["llama"], tmp_path / name)
    assert from_pretrained(tmp_path / "a").config.num_key_value_heads == 2


def test_ranks_without_their_strategy(run_folder, folders, tmp_path):
    ranks = tmp_path / "checkpoint"
    for rank in (0, 1):
        (ranks / f"rank_{rank}").mkdir(parents=True)
        name = f"rank_{rank}/llama_rank_{rank}-1_10.ckpt"
        (ranks / name).write_bytes((run_folder / "checkpoint" / name).read_bytes())
    with pytest.raises(UserError, match=r"differ in model\..*--strategy"):
        from_mindformers(tmp_path, tmp_path / "out", folders["llama"])
    (ranks / "rank_1" / "llama_rank_1-1_10.ckpt").unlink()
    (ranks / "rank_1" / "x_rank_1-2_5.ckpt").write_bytes(b"")
    (ranks / "rank_1" / "x_rank_1-2_6.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="no step in common"):
        from_mindformers(tmp_path, tmp_path / "out", folders["llama"])
    assert not (tmp_path / "out").exists()


def test_half_precision_and_brain_floats(folders, tmp_path):
    to_mindformers(folders["llama"], tmp_path / "theirs")
    tensors = loaded(tmp_path / "theirs" / "mindspore_model.ckpt")
    kinds = [ms.float16, ms.bfloat16]
    values = [{"name": n, "data": ms.Tensor(t, kinds[i % 2])} for i, (n, t) in enumerate(tensors.items())]
    ms.save_checkpoint(values, str(tmp_path / "half.ckpt"))
    from_mindformers(tmp_path / "half.ckpt", tmp_path / "back", folders["llama"])
    ours, back = read_weights(folders["llama"]), read_weights(tmp_path / "back")
    for name, tensor in ours.items():
        assert back[name].dtype == np.float32 and np.allclose(back[name], tensor, rtol=8e-3, atol=1e-6), name


def test_configurations(folders, tmp_path):
    """config.json beside the weights, else MindFormers' YAML, else an option; and one that is another model's."""
    to_mindformers(folders["llama"], tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").unlink()
    from_mindformers(tmp_path / "theirs", tmp_path / "a")
    same_folders(folders["llama"], tmp_path / "a")
    from_mindformers(
        tmp_path / "theirs" / "mindspore_model.ckpt", tmp_path / "b", tmp_path / "theirs" / "mindspore_model.yaml"
    )
    (tmp_path / "theirs" / "mindspore_model.yaml").unlink()
    with pytest.raises(UserError, match=r"does not say which model.*--config_name"):
        from_mindformers(tmp_path / "theirs", tmp_path / "c")
    with pytest.raises(UserError, match="holds a llama, the configuration is of a gpt2"):
        from_mindformers(tmp_path / "theirs", tmp_path / "c", folders["gpt2"])
    with pytest.raises(UserError, match=r"tensor model.embed_tokens.weight has shape"):
        from_mindformers(tmp_path / "theirs", tmp_path / "c", "llama2-7b")


def test_what_cannot_be_converted(folders, tmp_path):
    with pytest.raises(UserError, match=r"gpt2, whose names are those of r0.8"):
        to_mindformers(folders["gpt2"], tmp_path / "a", qkv_concat=True)
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint of MindSpore"):
        from_mindformers(tmp_path / "bad.ckpt", tmp_path / "a", folders["llama"])
    write_checkpoint({"x.weight": np.ones(3, np.float32)}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no name is that of an embedding"):
        from_mindformers(tmp_path / "other.ckpt", tmp_path / "a", folders["llama"])
    values = {"model.tok_embeddings.embedding_weight": np.ones((11, 8), np.float32)}
    write_checkpoint({**values, "model.layers.0.attention.wq.lora_a": np.ones(3, np.float32)}, tmp_path / "lora.ckpt")
    with pytest.raises(UserError, match=r"holds model.layers.0.attention.wq.lora_a.*without adapters"):
        from_mindformers(tmp_path / "lora.ckpt", tmp_path / "a", folders["llama"])
    write_checkpoint(
        {**values, "model.layers.0.attention.w_qkv.weight": np.ones((9, 8), np.float32)}, tmp_path / "x.ckpt"
    )
    with pytest.raises(UserError, match="9 rows of queries, keys, values in a block, the configuration asks for 16"):
        from_mindformers(tmp_path / "x.ckpt", tmp_path / "a", folders["llama"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no .ckpt"):
        from_mindformers(tmp_path / "empty", tmp_path / "a", folders["llama"])
    assert not (tmp_path / "a").exists()


def test_the_command(folders, tmp_path, capsys):
    ours, theirs, back = (str(path) for path in (folders["llama"], tmp_path / "theirs", tmp_path / "back"))
    assert (
        main(["convert", "--source", ours, "--output", theirs, "--to", "mindformers", "--file_format", "safetensors"])
        == 0
    )
    assert main(["convert", "--source", theirs, "--output", back]) == 0
    same_folders(folders["llama"], tmp_path / "back")
    for words, message in (
        (["--source", theirs, "--to", "mindspore"], "a checkpoint of MindFormers, which can become huggingface"),
        (["--source", theirs, "--qkv_concat"], "a checkpoint of MindFormers and qkv_concat does not go with that"),
        (["--source", ours, "--to", "mindformers", "--strategy", "x"], "a Hugging Face folder and strategy does not"),
        (["--source", ours, "--to", "mindspore"], "a Hugging Face folder, which can become huggingface or mindformers"),
    ):
        capsys.readouterr()
        assert main(["convert", "--output", str(tmp_path / "new"), *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
