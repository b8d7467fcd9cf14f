"""PyTorch's side of the comparison, eager and compiled, and the meter of the bandwidth; see tests.benchmarks.worker."""

import time

import torch
import torch.nn.functional as F

from tests.benchmarks.torch_models import FAMILIES, load
from tests.benchmarks.worker import IGNORE_INDEX, Side, batch, cores, forget_peak

torch.set_num_threads(cores())


class Eager(Side):
    compiled = False

    def load(self, folder: str) -> None:
        self.model = load(folder)

    def prepare(self, rows: int, length: int) -> None:
        """Makes ``step``: forward, backward, fused AdamW on a batch of ``rows`` x ``length`` tokens."""
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.1, fused=True)
        family = next(name for name, (kind, _) in FAMILIES.items() if isinstance(self.model, kind))
        vocab = next(m for m in self.model.modules() if isinstance(m, torch.nn.Embedding)).num_embeddings
        ids, targets = (torch.from_numpy(a).long() for a in batch(family, vocab, rows, length))

        def loss_of(ids, targets):  # compiled as a whole, so that the loss is part of what is fused
            return F.cross_entropy(self.model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)

        loss_function = torch.compile(loss_of) if self.compiled else loss_of

        def step() -> float:
            optimizer.zero_grad()
            loss = loss_function(ids, targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        self.step = step
        forget_peak()

    def _greedy(self, prompts, count, on_step):
        return self.model.greedy(prompts, count, on_step)


class Compiled(Eager):
    compiled = True


class Bandwidth(Side):
    """Reads 512 MiB with all cores, as the weights are read in decoding."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = torch.ones(16384, 8192), torch.ones(8192)

    def measure(self) -> dict:
        """The best of ten products of a matrix and a vector, in GB/s."""
        times = []
        for _ in range(10):
            start = time.perf_counter()
            torch.mv(self.matrix, self.vector)
            times.append(time.perf_counter() - start)
        return {"gb_per_s": self.matrix.nbytes / min(times) / 1e9}
