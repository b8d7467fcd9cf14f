"""GPT-2, LLaMA and BERT in plain PyTorch at its fastest: linear layers, SDPA, a cached decoding loop written by hand.

Parameter names are Hugging Face's, without the name of the body in front; linear weights are (out, in).
Shapes: B batch, T new tokens, S cached and new tokens, D width, H heads, K key-value heads, C head width, V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class CausalLM(nn.Module):
    """A body and a head: a family gives ``hidden``, ``head_weight`` and ``cache_shape``."""

    def forward(self, ids):
        """Logits (B, T, V)."""
        return F.linear(self.hidden(ids), self.head_weight())

    @torch.inference_mode()
    def greedy(self, prompts: list[list[int]], count: int, on_step: Callable[[], None]) -> list[list[int]]:
        """Returns ``count`` new ids for each of B prompts of one length; ``on_step`` is called after each new token."""
        ids, start, rows = torch.tensor(prompts), 0, [[] for _ in prompts]
        layers, kv_heads, head_width = self.cache_shape()
        shape = (len(prompts), kv_heads, ids.shape[1] + count, head_width)
        caches = [(torch.empty(shape), torch.empty(shape)) for _ in range(layers)]
        for _ in range(count):
            x_BTD = self.hidden(ids, start, caches)
            start += ids.shape[1]
            ids = F.linear(x_BTD[:, -1], self.head_weight()).argmax(-1, keepdim=True)
            for row, token in zip(rows, ids.flatten().tolist()):
                row.append(token)
            on_step()
        return rows


def attend(q_BHTC, k_BKTC, v_BKTC, causal: bool = True, start: int = 0, cache=None):
    """SDPA over new and cached keys, as (B, T, D); a first pass (start 0) reads the new keys, which are contiguous."""
    B, H, T, C = q_BHTC.shape
    if cache is not None:
        cache[0][:, :, start : start + T], cache[1][:, :, start : start + T] = k_BKTC, v_BKTC
        if start:
            k_BKTC, v_BKTC = cache[0][:, :, : start + T], cache[1][:, :, : start + T]
    grouped = k_BKTC.shape[1] != H
    out = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, is_causal=causal and T > 1, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(B, T, H * C)


class GPT2Block(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        D, self.heads = config["n_embd"], config["n_head"]
        self.ln_1, self.ln_2 = (nn.LayerNorm(D, config["layer_norm_epsilon"]) for _ in range(2))
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(D, 3 * D), "c_proj": nn.Linear(D, D)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, 4 * D), "c_proj": nn.Linear(4 * D, D)})

    def forward(self, x, start, cache):
        B, T, D = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.heads, D // self.heads)
        x = x + self.attn["c_proj"](attend(*qkv.permute(2, 0, 3, 1, 4), start=start, cache=cache))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT2(CausalLM):
    def __init__(self, config: dict):
        super().__init__()
        D = config["n_embd"]
        self.wte, self.wpe = nn.Embedding(config["vocab_size"], D), nn.Embedding(config["n_positions"], D)
        self.h = nn.ModuleList([GPT2Block(config) for _ in range(config["n_layer"])])
        self.ln_f = nn.LayerNorm(D, config["layer_norm_epsilon"])

    def head_weight(self):
        return self.wte.weight

    def cache_shape(self) -> tuple[int, int, int]:
        return len(self.h), self.h[0].heads, self.wte.embedding_dim // self.h[0].heads

    def hidden(self, ids, start: int = 0, caches=None):
        x = self.wte(ids) + self.wpe.weight[start : start + ids.shape[1]]
        for i, block in enumerate(self.h):
            x = block(x, start, caches and caches[i])
        return self.ln_f(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x_BHTC, cos_TC, sin_TC):
    """Rotary positions (Su et al. 2021), with the halves of a head as Hugging Face lays them out."""
    first, second = x_BHTC.chunk(2, -1)
    return x_BHTC * cos_TC + torch.cat((-second, first), -1) * sin_TC


class LlamaBlock(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        D, Fw, eps = config["hidden_size"], config["intermediate_size"], config["rms_norm_eps"]
        H, K = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_width, sizes = D // H, {"q_proj": D, "k_proj": K * D // H, "v_proj": K * D // H, "o_proj": D}
        self.self_attn = nn.ModuleDict({name: nn.Linear(D, out, bias=False) for name, out in sizes.items()})
        self.mlp = nn.ModuleDict({name: nn.Linear(D, Fw, bias=False) for name in ("gate_proj", "up_proj")})
        self.mlp["down_proj"] = nn.Linear(Fw, D, bias=False)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(D, eps), RMSNorm(D, eps)

    def forward(self, x, cos, sin, start, cache):
        y, (B, T, _) = self.input_layernorm(x), x.shape
        q, k, v = (
            self.self_attn[name](y).view(B, T, -1, self.head_width).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, start=start, cache=cache)
        x = x + self.self_attn["o_proj"](out)
        y = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))


class Llama(CausalLM):
    def __init__(self, config: dict):
        super().__init__()
        D, V, positions = config["hidden_size"], config["vocab_size"], config["max_position_embeddings"]
        self.kv_heads, C = config["num_key_value_heads"], D // config["num_attention_heads"]
        self.embed_tokens = nn.Embedding(V, D)
        self.layers = nn.ModuleList([LlamaBlock(config) for _ in range(config["num_hidden_layers"])])
        self.norm = RMSNorm(D, config["rms_norm_eps"])
        self.lm_head = nn.Linear(D, V, bias=False)
        angles = torch.outer(torch.arange(positions), config["rope_theta"] ** (-torch.arange(0, C, 2) / C)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def head_weight(self):
        return self.lm_head.weight

    def cache_shape(self) -> tuple[int, int, int]:
        return len(self.layers), self.kv_heads, self.layers[0].head_width

    def hidden(self, ids, start: int = 0, caches=None):
        x, end = self.embed_tokens(ids), start + ids.shape[1]
        for i, layer in enumerate(self.layers):
            x = layer(x, self.cos[start:end], self.sin[start:end], start, caches and caches[i])
        return self.norm(x)


class BertLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        D, Fw, self.heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")}),
                "output": _dense_and_norm(D, D, config["layer_norm_eps"]),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(D, Fw)})
        self.output = _dense_and_norm(Fw, D, config["layer_norm_eps"])

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (
            self.attention["self"][name](x).view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        half = self.attention["output"]
        x = half["LayerNorm"](x + half["dense"](attend(q, k, v, causal=False)))
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class Bert(nn.Module):
    """Logits (B, T, V) of masked words; every token is real and of segment 0."""

    def __init__(self, config: dict):
        super().__init__()
        D, V, eps = config["hidden_size"], config["vocab_size"], config["layer_norm_eps"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(V, D),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], D),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], D),
                "LayerNorm": nn.LayerNorm(D, eps),
            }
        )
        layers = nn.ModuleList([BertLayer(config) for _ in range(config["num_hidden_layers"])])
        self.encoder = nn.ModuleDict({"layer": layers})
        self.cls = nn.ModuleDict({"predictions": nn.ModuleDict({"transform": _dense_and_norm(D, D, eps)})})
        self.cls["predictions"].register_parameter("bias", nn.Parameter(torch.zeros(V)))

    def forward(self, ids):
        table, head = self.embeddings, self.cls["predictions"]
        positions = table["position_embeddings"].weight[: ids.shape[1]]
        x = table["word_embeddings"](ids) + table["token_type_embeddings"].weight[0] + positions
        x = table["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x)
        x = head["transform"]["LayerNorm"](F.gelu(head["transform"]["dense"](x)))
        return F.linear(x, table["word_embeddings"].weight, head.bias)


def _dense_and_norm(in_features: int, out_features: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(in_features, out_features), "LayerNorm": nn.LayerNorm(out_features, eps)})


FAMILIES = {"gpt2": (GPT2, "transformer."), "llama": (Llama, "model."), "bert": (Bert, "bert.")}
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def load(folder: str) -> nn.Module:
    """Builds the model of a Hugging Face folder (GPT-2's Conv1D weights are (in, out) in the file)."""
    config = json.loads((Path(folder) / "config.json").read_text())
    family, prefix = FAMILIES[config["model_type"]]
    model = family(config)
    tensors = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({k.removeprefix(prefix): v.T if k.endswith(_TRANSPOSED) else v for k, v in tensors.items()})
    return model
