"""SST-2 in PyTorch: transformers' BertForSequenceClassification with the settings, data order and start of ours.

python chapters/ch03_bert/sst2_transformers.py --start START --data SST2_FOLDER --seed 1 [--quick]

START is a folder that our side wrote before its first step, so that both start from one head. Dropout has the same
probability and other masks. Prints one line of JSON: seed, steps, seconds, accuracy of the dev and the test part.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from msllm.data import batches
from msllm.data.tasks import encode_texts, read_texts
from msllm.tokenization import load_tokenizer


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)  # MindSpore sets OMP_NUM_THREADS=1, and its children get it
    torch.manual_seed(options.seed)
    model = transformers.BertForSequenceClassification.from_pretrained(options.start)
    tokenizer = load_tokenizer(options.start)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    parts = {}
    for name in ("train", "dev", "test"):
        texts = read_texts(Path(options.data) / f"{name}.tsv", 200 if options.quick else None)
        parts[name] = encode_texts(texts, tokenizer, labels, options.max_length)[0]
    start = time.perf_counter()
    steps = train(model, parts["train"], tokenizer.pad_token_id, options)
    seconds = time.perf_counter() - start
    figures = {name: accuracy(model, parts[name], tokenizer.pad_token_id) for name in ("dev", "test")}
    print(json.dumps({"seed": options.seed, "steps": steps, "seconds": round(seconds, 1), **figures}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", required=True, help="Hugging Face folder with a classification head")
    parser.add_argument("--data", required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--seed", type=int, default=1, help="of data order and dropout")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--warmup_ratio", type=float, default=0.1)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="20 steps, 200 texts of each part")
    return parser.parse_args()


def train(model, examples: list[dict], pad_token_id: int, options: argparse.Namespace) -> int:
    """Trains as msllm.training.Trainer does by default; returns the number of steps."""
    per_epoch = math.ceil(len(examples) / options.batch_size)
    total = 20 if options.quick else math.ceil(options.num_train_epochs * per_epoch)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate)
    warmup = math.ceil(options.warmup_ratio * total)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    model.train()
    step = epoch = 0
    while step < total:
        order = batches(
            examples, options.batch_size, epoch=epoch, seed=options.seed, pad_token_id=pad_token_id, collate=collate
        )
        for batch in order:
            if step == total:
                break
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
        epoch += 1
    return total


def collate(examples: list[dict], pad_token_id: int, pad_to_multiple_of: int | None = None) -> dict[str, torch.Tensor]:
    """Pads examples to the longest one, as transformers takes them."""
    T = max(len(e["input_ids"]) for e in examples)
    batch = {name: np.zeros((len(examples), T), np.int64) for name in ("attention_mask", "token_type_ids")}
    batch["input_ids"] = np.full((len(examples), T), pad_token_id, np.int64)
    for row, example in enumerate(examples):
        count = len(example["input_ids"])
        batch["input_ids"][row, :count], batch["attention_mask"][row, :count] = example["input_ids"], 1
        batch["token_type_ids"][row, :count] = example["token_type_ids"]
    batch["labels"] = np.array([e["labels"] for e in examples])
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def accuracy(model, examples: list[dict], pad_token_id: int) -> float:
    """Returns the share of texts whose class is right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for batch in batches(examples, 64, shuffle=False, pad_token_id=pad_token_id, collate=collate):
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(examples)


if __name__ == "__main__":
    main()
