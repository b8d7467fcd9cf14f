"""Checkpoints of MindFormers from Hugging Face folders, and back.

MindFormers 1.9.0 writes checkpoint/rank_N/{prefix}_rank_N-{epoch}_{step}.ckpt (or .safetensors) and strategy/, which
says how the ranks cut each parameter; its save_pretrained writes mindspore_model.ckpt and mindspore_model.yaml. What is
written here is of the second kind, whole, as .ckpt or as safetensors with the index that MindSpore reads
(param_name_map.json). A LLaMA's folder with a .ckpt is one for LlamaForCausalLM.from_pretrained; that file, or a
folder of safetensors, can be the ``load_checkpoint`` of a run.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from msllm.conversion.mindformers.files import INDEX, STEM
from msllm.conversion.mindformers.llama_config import ARCHITECTURE, from_llama_config, to_llama_config
from msllm.conversion.mindformers.names import from_names, to_names
from msllm.conversion.mindformers.ranks import read_checkpoint, write_checkpoint
from msllm.conversion.output import copy_small_files, new_folder
from msllm.conversion.yaml_files import read_yaml, write_yaml
from msllm.errors import UserError
from msllm.files import atomic_folder, read_json, write_json
from msllm.layers import no_initial_values
from msllm.models import weights
from msllm.models.config import ModelConfig
from msllm.models.presets import config_of
from msllm.models.pretrained import from_pretrained, model_class


def to_mindformers(
    source: str | Path,
    output: str | Path,
    qkv_concat: bool = False,
    file_format: Literal["ckpt", "safetensors"] = "ckpt",
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes the weights of a Hugging Face folder as MindFormers names them, float32.

    A LLaMA has the names of 1.9.0, and mindspore_model.yaml is its configuration; GPT-2 and BLOOM have those of r0.8.
    config.json and the tokenizer's files are copied, so that the way back needs nothing else.

    Args:
        source: folder of a LLaMA, GPT-2 or BLOOM.
        output: new or empty folder.
        qkv_concat: as in MindFormers' LlamaConfig, see to_names.
        file_format: of the weights.
        max_shard_bytes: of a safetensors file; a .ckpt is one file.

    Raises:
        UserError: as from_pretrained, to_names and to_llama_config; the output holds something.
    """
    source, output = Path(source), new_folder(output)
    model = from_pretrained(source)
    tensors = to_names(model.state_dict(), model.config, qkv_concat)
    with atomic_folder(output) as tmp:
        if model.config.model_type == "llama":
            values = {**to_llama_config(model.config), "qkv_concat": qkv_concat}
            write_yaml(tmp / f"{STEM}.yaml", {"model": {"model_config": values, "arch": {"type": ARCHITECTURE}}})
        if file_format == "ckpt":
            write_checkpoint(tensors, tmp / f"{STEM}.ckpt")
        else:
            _write_safetensors(tmp, tensors, max_shard_bytes)
        copy_small_files(source, tmp)
        write_json(tmp / "config.json", model.config_values())


def from_mindformers(
    source: str | Path,
    output: str | Path,
    config: str | Path | None = None,
    tokenizer=None,
    strategy: str | Path | None = None,
) -> None:
    """Writes a Hugging Face folder of a checkpoint of MindFormers, float32.

    Args:
        source: see read_checkpoint.
        output: new or empty folder.
        config: which model it is: a name of msllm.models.presets, a config.json or its folder, or a YAML of MindFormers
            with model.model_config. Without it, one of those files beside the weights.
        tokenizer: an msllm.tokenization.Tokenizer to save along; without it, tokenizer files beside the weights are
            copied.
        strategy: see read_checkpoint.

    Raises:
        UserError: no configuration, or another model's; as read_checkpoint and from_names; the output holds something.
    """
    source, output = Path(source), new_folder(output)
    known = _configuration(source, config)
    with no_initial_values():
        model = model_class(known.to_dict(), "the configuration")(known)
    with atomic_folder(output) as tmp:
        (tmp / "ranks").mkdir()
        tensors = from_names(read_checkpoint(source, tmp / "ranks", strategy), known)
        shutil.rmtree(tmp / "ranks")
        tensors = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
        found = model.sanitize(_without_tied_head(tensors, model))
        shapes = {p.name: tuple(p.shape) for p in model.get_parameters()}
        weights.compare(shapes, found, source)
        extra = next((name for name in found if name not in shapes), None)
        if extra is not None:
            raise UserError(f"{source} holds {extra}, which the configuration does not ask for; give its own")
        if source.is_dir():
            copy_small_files(source, tmp)
        write_json(tmp / "config.json", model.config_values())
        weights.write_weights(tmp, model.unsanitize(found))
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp)


def _write_safetensors(folder: Path, tensors: dict[str, np.ndarray], most: int) -> None:
    weights.write_weights(folder, tensors, most)
    index = folder / weights.INDEX
    if index.is_file():
        write_json(folder / INDEX, read_json(index))
        index.unlink()
    else:
        write_json(folder / INDEX, {"weight_map": dict.fromkeys(tensors, weights.WEIGHTS)})


def _configuration(source: Path, config: str | Path | None) -> ModelConfig:
    if config is None:
        folder = source if source.is_dir() else source.parent
        if (folder / "config.json").is_file():
            return config_of(folder)
        found = [path for path in sorted(folder.glob("*.yaml")) if _model_config(path) is not None]
        if not found:
            raise UserError(
                f"{source} does not say which model it is of; add --config_name with a name, a config.json or a YAML "
                f"of MindFormers"
            )
        config = found[0]
    if Path(config).suffix not in (".yaml", ".yml"):
        return config_of(config)
    values = _model_config(Path(config))
    if values is None:
        raise UserError(f"{config} has no model.model_config; give a YAML of MindFormers that has")
    return from_llama_config(values, f"{config}: model.model_config")


def _model_config(path: Path) -> dict[str, Any] | None:
    model = read_yaml(path).get("model")
    values = model.get("model_config") if isinstance(model, dict) else None
    return values if isinstance(values, dict) else None


def _without_tied_head(tensors: dict[str, np.ndarray], model) -> dict[str, np.ndarray]:
    """Leaves out a copy of the embedding that stands for the head of a tied model."""
    head = tensors.get("lm_head.weight")
    if head is None or not model.config.tie_word_embeddings:
        return tensors
    embedding = tensors[f"{model.base_model_prefix}.{model.embedding_name}.weight"]
    if not np.array_equal(head, embedding):
        raise UserError(
            "the configuration ties the head to the embedding, the checkpoint has a head of its own; set "
            "tie_word_embeddings to false"
        )
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
