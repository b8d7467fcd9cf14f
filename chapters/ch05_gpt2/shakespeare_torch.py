"""The Shakespeare run in eager PyTorch: the model, start, crops, optimiser and schedule of ours, for time and loss.

python chapters/ch05_gpt2/shakespeare_torch.py --start START --data TOKENS --steps 2000 --batch_size 12

START is the Hugging Face folder that our side started from. Linear layers, scaled_dot_product_attention and the fused
AdamW: what PyTorch does fastest without compiling. Prints one line of JSON: seconds of the steps, first losses, and the
loss on the validation part.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from msllm.data import batch_indices
from msllm.data.token_file import RandomCrops, TokenFile, Windows


class Block(nn.Module):
    def __init__(self, D: int, heads: int):
        super().__init__()
        self.heads, self.ln_1, self.ln_2 = heads, nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(D, 3 * D), "c_proj": nn.Linear(D, D)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, 4 * D), "c_proj": nn.Linear(4 * D, D)})

    def forward(self, x_BTD):
        B, T, D = x_BTD.shape
        qkv = self.attn["c_attn"](self.ln_1(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x_BTD = x_BTD + self.attn["c_proj"](out.transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x_BTD)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, folder: Path):
        super().__init__()
        c = json.loads((folder / "config.json").read_text())
        D = c["n_embd"]
        self.wte, self.wpe = nn.Embedding(c["vocab_size"], D), nn.Embedding(c["n_positions"], D)
        self.h = nn.ModuleList([Block(D, c["n_head"]) for _ in range(c["n_layer"])])
        self.ln_f = nn.LayerNorm(D)
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
        tensors = {k: v.T if k.endswith(("attn.weight", "proj.weight", "fc.weight")) else v for k, v in tensors.items()}
        self.load_state_dict(tensors)

    def loss(self, ids_BT, targets_BT, reduction: str = "mean"):
        x = self.wte(ids_BT) + self.wpe(torch.arange(ids_BT.shape[1]))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction=reduction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    o = parser.parse_args()
    torch.set_num_threads(o.threads)  # MindSpore sets OMP_NUM_THREADS=1, and its children get it
    model = GPT2(o.start)
    block = model.wpe.num_embeddings
    crops = RandomCrops(TokenFile.open(o.data / "train.bin"), block, o.steps * o.batch_size, o.seed)
    plan = batch_indices(crops.lengths, o.batch_size, seed=o.seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    ids = torch.from_numpy(crops[0]["input_ids"].astype(np.int64))[None].repeat(o.batch_size, 1)
    model.loss(ids[:, :-1], ids[:, 1:]).backward()  # the first pass makes room; ours evaluates before it starts
    first, start = [], time.perf_counter()
    for step, rows in enumerate(plan):
        past = max(0, step - o.warmup_steps) / max(1, o.steps - o.warmup_steps)
        rate = o.learning_rate * min(step / o.warmup_steps, 0.5 * (1 + math.cos(math.pi * past)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.from_numpy(np.stack([crops[i]["input_ids"] for i in rows]).astype(np.int64))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
        if step < 5:
            first.append(value)
    seconds, total, count = time.perf_counter() - start, 0.0, 0
    with torch.inference_mode():
        for window in Windows(TokenFile.open(o.data / "validation.bin"), block):
            ids = torch.from_numpy(window["input_ids"].astype(np.int64))[None]
            total += model.loss(ids[:, :-1], ids[:, 1:], "sum").item()
            count += ids.shape[1] - 1
    print(json.dumps({"seconds": round(seconds, 1), "first_losses": first, "validation_loss": total / count}))


if __name__ == "__main__":
    main()
