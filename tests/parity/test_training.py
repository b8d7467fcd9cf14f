"""A training run writes the losses and ends with the weights of the same run in PyTorch."""

import json

import numpy as np
import pytest

import msllm
from msllm.training import Trainer, TrainingArguments
from msllm.training.schedule import SCHEDULES, learning_rate_factor
from tests.parity.reference import V, torch, transformers


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_equal_transformers(kind, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    names = {"constant": "constant_with_warmup"}
    theirs = transformers.get_scheduler(
        names.get(kind, kind), optimizer, num_warmup_steps=warmup, num_training_steps=50
    )
    for step in range(55):
        assert learning_rate_factor(kind, step, warmup, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def examples(count=12, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = rng.integers(0, V, 5 + i % 4).tolist()
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return made


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def torch_run(model, batches, args, total):
    """Five lines of PyTorch: mean loss over the targets of the whole step, clipping, AdamW, cosine."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 2, total)
    losses, norms = [], []
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        logits = model(torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"])).logits
        labels = torch.tensor(batch["labels"], dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)))
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2-erf", "bloom-3-heads"])
def test_losses_norms_and_weights_equal_pytorch(zoo, name, accumulation, tmp_path):
    reference, folder = zoo.causal(name)
    theirs = type(reference).from_pretrained(folder, attn_implementation="eager")
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = msllm.from_pretrained(folder)
    for _, cell in model.cells_and_names():  # no dropout: its masks differ between libraries
        if hasattr(cell, "p"):
            cell.p = 0.0
        if isinstance(getattr(cell, "dropout", None), float):
            cell.dropout = 0.0
    # The gradient of a key bias is zero but for rounding; a larger epsilon keeps AdamW from blowing that noise up.
    args = TrainingArguments(
        adam_epsilon=1e-3,
        learning_rate=3e-3,
        max_steps=6,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_grad_norm=0.5,
        seed=3,
    )
    Trainer(model, args, examples(), tmp_path / "out").train()
    log = read_log(tmp_path / "out")
    order = [b for epoch in range(2) for b in msllm.data.batches(examples(), 4, epoch=epoch, seed=3)]
    losses, norms = torch_run(theirs, order, args, 6)
    assert [e["loss"] for e in log] == pytest.approx(losses, rel=1e-5)
    assert [e["grad_norm"] for e in log] == pytest.approx(norms, rel=1e-5)
    for key, value in model.state_dict().items():
        mine, other = value, theirs.state_dict()[key].numpy()
        assert np.abs(mine - other).max() <= 1e-5 * np.abs(other).max(), key
