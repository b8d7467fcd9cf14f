"""LoRA: low-rank adapters of linear layers (Hu et al. 2022), in files that peft reads and writes."""

import dataclasses
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Uniform, initializer

from msllm import kernels
from msllm.errors import UserError
from msllm.files import read_json, write_json
from msllm.layers import Dropout, Linear
from msllm.models import weights
from msllm.tuning.config import ALL_LINEAR, LoraConfig

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Options of peft that change the result and are not read here; a file that sets one is refused, not misread.
_REFUSED = (
    "use_dora",
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "layers_to_transform",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
)


class LoraLinear(nn.Cell):
    """y = x W^T + b + scaling * (dropout(x) A^T) B^T; W and b are those of ``linear`` and stay frozen.

    A (r, I) starts uniform in +-1/sqrt(I), B (O, r) at zero, so training starts from the base model.
    """

    def __init__(self, linear: Linear, config: LoraConfig):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = Linear(self.in_features, config.r, bias=False, std="zeros")
        bound = self.in_features**-0.5
        self.lora_A.weight.set_data(initializer(Uniform(bound), self.lora_A.weight.shape, ms.float32))
        self.lora_B = Linear(config.r, self.out_features, bias=False, std="zeros")
        self.dropout, self.scaling = Dropout(config.lora_dropout), config.scaling

    def construct(self, x):
        """x (..., I) -> (..., O)."""
        update = self.lora_B(self.lora_A(self.dropout(x)))
        return kernels.linear(x, self.weight, self.bias) + update * self.scaling

    def gelu(self, x, kind: str):
        """x (..., I) -> GELU(y) (..., O), as Linear has it."""
        return kernels.gelu(self.construct(x), kind)


def linear_names(model: nn.Cell) -> list[str]:
    """Returns the full names of the model's linear layers."""
    return [name for name, cell in model.cells_and_names() if isinstance(cell, Linear) and name]


def apply(model: nn.Cell, config: LoraConfig) -> list[str]:
    """Gives the target layers adapters and freezes everything else, in place.

    Returns:
        The full names of the changed layers.

    Raises:
        UserError: nothing matches, with the names there are; the model has adapters already.
    """
    if any(isinstance(cell, LoraLinear) for _, cell in model.cells_and_names()):
        raise UserError("the model has LoRA adapters already; merge them first")
    names = linear_names(model)
    targets = [name for name in names if _is_target(name, config.target_modules)]
    if not targets:
        short = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(
            f"target_modules {config.target_modules!r} match no linear layer; "
            f"the model has {', '.join(short)}; choose among them"
        )
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    for name in targets:
        _replace(model, name, lambda linear: LoraLinear(linear, config))
    return targets


def merge(model: nn.Cell) -> None:
    """Adds every adapter to its weight, W + scaling B A, and puts the plain layer back, in place."""
    for name, cell in list(model.cells_and_names()):
        if isinstance(cell, LoraLinear):
            # In float64, so that the merged weight is rounded once.
            update = cell.lora_B.weight.asnumpy().astype(np.float64) @ cell.lora_A.weight.asnumpy()
            cell.weight.set_data(Tensor((cell.weight.asnumpy() + cell.scaling * update).astype(np.float32)))
            _replace(model, name, _plain)
    for parameter in model.get_parameters():
        parameter.requires_grad = True


def save_adapter(model, config: LoraConfig, folder: Path, base: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into an existing folder.

    Args:
        base: the folder of the base model, which a reader of the adapter loads first.
    """
    adapters = {name: cell for name, cell in model.cells_and_names() if isinstance(cell, LoraLinear)}
    tensors = {}
    for name, cell in adapters.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = cell.lora_A.weight.asnumpy()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = cell.lora_B.weight.asnumpy()
    weights.save_tensors(tensors, folder / WEIGHTS)
    targets = config.target_modules
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "inference_mode": True,
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "bias": "none",
            # peft finds layers by the end of their names: short names unless a regular expression was asked for.
            "target_modules": sorted({n.rsplit(".", 1)[-1] for n in adapters}) if targets == ALL_LINEAR else targets,
            "use_rslora": config.use_rslora,
            "init_lora_weights": True,
            "fan_in_fan_out": model.config.model_type == "gpt2",
        },
    )  # there peft meets Conv1D, stored as (in, out)


def read_adapter_config(folder: str | Path) -> tuple[LoraConfig, str]:
    """Returns the configuration of an adapter folder and the base model that it names; UserError where unfit."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} lacks {CONFIG}; found: {weights.list_folder(folder)}; give an adapter folder")
    values = read_json(folder / CONFIG)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{folder}/{CONFIG}: peft_type is {values.get('peft_type')!r}; supported is LORA")
    refused = [key for key in _REFUSED if values.get(key)]
    if refused or values.get("bias", "none") != "none":
        raise UserError(
            f"{folder}/{CONFIG} sets {', '.join(refused) or 'bias'}, which is not supported; "
            f"merge the adapter with the library that wrote it"
        )
    names = {f.name for f in dataclasses.fields(LoraConfig)}
    return LoraConfig(**{k: v for k, v in values.items() if k in names}), values.get("base_model_name_or_path") or ""


def load_adapter(model, folder: str | Path) -> LoraConfig:
    """Gives ``model`` the adapter of a folder, in place (or sets the values of one that it has).

    Raises:
        UserError: files are missing, a tensor is missing or has another shape.
    """
    folder = Path(folder)
    config, _ = read_adapter_config(folder)
    if not any(isinstance(cell, LoraLinear) for _, cell in model.cells_and_names()):
        apply(model, config)
    tensors = {k.removeprefix(PREFIX): v for k, v in weights.read_weights(folder, WEIGHTS).items()}
    parameters = {p.name: p for p in model.get_parameters() if ".lora_" in p.name}
    weights.compare({n: p.shape for n, p in parameters.items()}, tensors, folder)
    extra = [name for name in tensors if name not in parameters]
    if extra:
        raise UserError(
            f"{folder}: adapter tensor {extra[0]} belongs to no layer of the model; "
            f"use the base model that {CONFIG} names"
        )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(np.array(tensors[name])))
    return config


def _is_target(name: str, targets: list[str] | str) -> bool:
    if targets == ALL_LINEAR:
        return name.rsplit(".", 1)[-1] not in ("lm_head", "classifier", "seq_relationship")
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith("." + t) for t in targets)


def _replace(model: nn.Cell, name: str, make) -> None:
    """Puts make(old cell) at ``name``; its parameters are named after their place, as MindSpore would at the start."""
    parent_name, _, child = name.rpartition(".")
    parent = dict(model.cells_and_names())[parent_name]
    new = make(getattr(parent, child))
    setattr(parent, child, new)
    for inner, cell in new.cells_and_names():
        for key, parameter in cell._params.items():
            parameter.name = ".".join(part for part in (name, inner, key) if part)


def _plain(adapted: LoraLinear) -> Linear:
    linear = Linear(1, 1, bias=False)
    linear.in_features, linear.out_features = adapted.in_features, adapted.out_features
    linear.weight, linear.bias = adapted.weight, adapted.bias
    return linear
