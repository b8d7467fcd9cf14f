"""One stage of run_profile.py: a training, a few steps of which are profiled.

python profile_stage.py '{"option": value}' FOLDER is what its workers run.
"""

import json
import random
import sys
from pathlib import Path

from mindspore import set_seed

from msllm import kernels as table
from msllm.data import pack
from msllm.data.instructions import generate
from msllm.files import read_json
from msllm.models.llama import LlamaConfig, LlamaForCausalLM
from msllm.parallel import ParallelConfig, join
from msllm.tokenization.bpe import encode
from msllm.tokenization.bpe import train as learn
from msllm.training import Trainer, TrainingArguments

MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LENGTH = MODEL["max_position_embeddings"]


def texts(seed: int) -> list[str]:
    """Returns documents of one to a dozen questions with their answers: many are short, a few long."""
    records, draw, documents = generate(seed)[0], random.Random(seed), []
    while records:
        count = min(12, 1 + int(draw.expovariate(1 / 3)))
        some, records = records[:count], records[count:]
        documents.append("\n".join(f"{r['instruction']} {r['input']}\n{r['output']}" for r in some))
    return documents


class ReadInEachStep:
    """Examples that are read from their file, and encoded by chapter 1's byte-pair encoding, whenever asked for."""

    checksum = "texts"

    def __init__(self, path: Path, count: int, bpe):
        self.path, self.count, self.bpe = path, count, bpe

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        ids = encode(read_json(self.path)[i], self.bpe)[:LENGTH]
        return {"input_ids": ids, "labels": ids}


def train(
    folder: Path,
    steps: int,
    seed: int,
    batch: int,
    kernels: str | None = None,
    read: str = "once",
    group_by_length: bool = False,
    packed: bool = False,
    layout: dict | None = None,
) -> None:
    """Trains one stage for a few steps, profiled; the texts are beside its folder."""
    workers = join(ParallelConfig(**(layout or {})), folder, None)
    before = table.active()
    table.use(kernels or before)
    path = folder.parent / "texts.json"
    documents = read_json(path)
    bpe = learn(documents, 800)
    examples = ReadInEachStep(path, len(documents), bpe)
    if read == "once":
        ids = [encode(text, bpe)[:LENGTH] for text in documents]
        examples = [{"input_ids": each, "labels": each} for each in ids]
    if packed:
        examples = pack(examples, LENGTH)
    set_seed(seed)
    model = LlamaForCausalLM(LlamaConfig.from_dict({**MODEL, "vocab_size": len(bpe.tokens)}))
    arguments = TrainingArguments(
        max_steps=3 + steps,
        per_device_train_batch_size=batch,
        group_by_length=group_by_length,
        learning_rate=1e-3,
        seed=seed,
        profile=True,
        profile_steps=steps,
    )

    def write_model(folder: Path) -> None:
        """The profile is all that is wanted."""

    Trainer(model, arguments, examples, folder, write_model=write_model, workers=workers).train(overwrite=True)
    table.use(before)


if __name__ == "__main__":
    train(Path(sys.argv[2]), **json.loads(sys.argv[1]))
