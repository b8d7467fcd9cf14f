"""A compiled training step (what Ascend runs) writes the losses of the interpreted one."""

import json

import numpy as np
import pytest

import msllm
from msllm import kernels
from msllm.errors import UserError
from msllm.training import Trainer, TrainingArguments


def losses(folder, tiny_model, jit):
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 250, 4 + i % 3).tolist() for i in range(8)]
    examples = [{"input_ids": row, "labels": row} for row in rows]
    args = TrainingArguments(max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, jit=jit, max_grad_norm=0.5)
    Trainer(msllm.from_pretrained(tiny_model), args, examples, folder, examples[:4]).train()
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_jit_and_pynative_write_the_same_losses(tiny_model, tmp_path):
    chosen = kernels.active()
    kernels.use("stock")
    try:
        compiled, plain = losses(tmp_path / "jit", tiny_model, True), losses(tmp_path / "plain", tiny_model, False)
    finally:
        kernels.use(chosen)
    for key in ("loss", "grad_norm", "eval_loss"):
        mine, other = ([e[key] for e in log if key in e] for log in (compiled, plain))
        assert mine and mine == pytest.approx(other, rel=1e-5)


def test_jit_with_the_kernels_of_pynative_is_refused(tiny_model, tmp_path):
    if kernels.active() != "cpu":
        pytest.skip("the C++ kernels are not built here")
    with pytest.raises(UserError, match="MSLLM_KERNELS=stock"):
        losses(tmp_path, tiny_model, True)
