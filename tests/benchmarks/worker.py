"""One side of a comparison, in a process of its own: ``python -m tests.benchmarks.worker msllm|torch FOLDER``.

Reads commands as JSON lines and answers each with one, so that the parent can take turns between two workers.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def batch(case: dict) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, case["vocab"], (case["batch"], case["length"])).astype(np.int32)


class Msllm:
    def __init__(self, folder: str):
        import msllm
        from msllm import kernels  # noqa: F401  sets the device up, before memory is measured

        self.base = memory_mib("VmRSS")
        self.model = msllm.from_pretrained(folder)

    def prepare(self, case: dict) -> None:
        from msllm.training.losses import causal_lm_loss, to_device
        from msllm.training.optimizer import AdamW
        from msllm.training.step import build_step

        for cell in self.model.cells_and_names():
            if hasattr(cell[1], "p"):
                cell[1].p = 0.0
        self.model.set_train(True)
        for block in self.model.transformer.h:
            block.attn.dropout = 0.0
        optimizer = AdamW(self.model.trainable_params(), (0.9, 0.999), 1e-8, 0.1)
        step = build_step(self.model, causal_lm_loss, optimizer, 0.0, False)
        ids = batch(case)
        data = {"input_ids": ids, "labels": ids, "attention_mask": np.ones_like(ids)}
        self.step = lambda: step([to_device(data)], 1e-4)[0]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        from msllm.generation import GenerationConfig, generate_ids

        config = GenerationConfig(max_new_tokens=count, eos_token_id=[])
        return generate_ids(self.model, [prompt], config)[0].ids


class Torch:
    def __init__(self, folder: str):
        import torch
        from safetensors.numpy import load_file

        from tests.benchmarks.torch_models import load

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.base = memory_mib("VmRSS")
        config = json.loads((Path(folder) / "config.json").read_text())
        self.model = load(
            load_file(Path(folder) / "model.safetensors"),
            width=config["n_embd"],
            layers=config["n_layer"],
            heads=config["n_head"],
            positions=config["n_positions"],
            vocab=config["vocab_size"],
        )

    def prepare(self, case: dict) -> None:
        import torch
        import torch.nn.functional as F

        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=1e-4, weight_decay=0.1, fused=True
        )
        ids = torch.tensor(batch(case).astype(np.int64))
        model = torch.compile(self.model) if case.get("compile") else self.model

        def step() -> float:
            optimizer.zero_grad()
            logits = model(ids)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            return loss.item()

        self.step = step

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        return self.model.greedy(prompt, count)


def bandwidth() -> float:
    """The memory bandwidth that reading 500 MB once reaches, best of ten, in GB/s."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    matrix, vector = torch.ones(16384, 8192), torch.ones(8192)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        times.append(time.perf_counter() - start)
    return matrix.numel() * 4 / min(times) / 1e9


def main() -> None:
    kind, folder = sys.argv[1:]
    side = None if kind == "bandwidth" else {"msllm": Msllm, "torch": Torch}[kind](folder)
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        answer: dict = {}
        if command["do"] == "prepare":
            side.prepare(command["case"])
        elif command["do"] == "step":
            answer["loss"] = side.step()
        elif command["do"] == "greedy":
            answer["ids"] = side.greedy(command["prompt"], command["count"])
        elif command["do"] == "bandwidth":
            answer["gb_per_s"] = bandwidth()
        elif command["do"] == "memory":
            answer["mib"] = memory_mib("VmHWM") - side.base
        answer["seconds"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
