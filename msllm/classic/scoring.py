"""What a neural model pays for each character of a text, the figure all models are compared by; and text of its own."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np

from msllm import data, kernels
from msllm.training.objective import CAUSAL_LM


def character_losses(model, windows: Sequence[Mapping], batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns -ln P of every id that the windows predict, in their order, and how many ids were before it.

    Args:
        model: called as a CausalLM; it is left in inference mode.
        windows: examples, see msllm.classic.sliding_windows.
        batch_size: windows in a forward pass.

    Returns:
        float32 (N,) and int64 (N,).
    """
    model.set_train(False)
    losses, contexts = [], []
    for batch in data.batches(windows, batch_size, shuffle=False):
        tensors, _ = CAUSAL_LM.to_device(batch)
        targets = tensors.pop("targets")
        logits = model(**tensors)
        found = kernels.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets).asnumpy()
        kept = targets.asnumpy() != data.IGNORED
        losses.append(found[kept])
        contexts.append(np.flatnonzero(kept) % batch["input_ids"].shape[1] + 1)
    return np.concatenate(losses), np.concatenate(contexts)


def sample(model, ids: Sequence[int], count: int, window: int, seed: int = 0) -> list[int]:
    """Returns ``count`` ids drawn one after the other from what the model says of the last ``window`` ids.

    Args:
        model: called as a CausalLM; it is left in inference mode.
        ids: what comes before, at least one.
    """
    model.set_train(False)
    rng, ids, start = np.random.default_rng(seed), list(ids), len(ids)
    for _ in range(count):
        row = np.array([ids[-window:]], np.int32)
        logits = model(ms.Tensor(row)).asnumpy()[0, -1].astype(np.float64)
        sums = np.cumsum(np.exp(logits - logits.max()))
        ids.append(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")))
    return [int(i) for i in ids[start:]]
