"""msllm's side of the comparison; see tests.benchmarks.worker."""

import gc

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

import msllm
from msllm import kernels
from msllm.generation import GenerationConfig, generate_ids
from msllm.models.pretrained import model_class
from msllm.tokenization import train_tokenizer
from msllm.training.alone import Alone
from msllm.training.objective import CAUSAL_LM, Objective
from msllm.training.optimizer import AdamW
from msllm.training.step import build_step
from tests.benchmarks.worker import IGNORE_INDEX, Side, batch, forget_peak


def masked_lm_loss(model, tensors):
    """The summed cross-entropy of the masked words, as causal_lm_loss is of the next ones."""
    logits = model(tensors["input_ids"])[0]
    losses = kernels.cross_entropy(logits.reshape(-1, logits.shape[-1]), tensors["targets"], IGNORE_INDEX)
    return ops.ReduceSum()(losses)


class Msllm(Side):
    def about(self) -> dict:
        """Which kernels run, and on which path."""
        if kernels.active() != "cpu":
            return {"kernels": kernels.active()}
        from msllm.kernels import cpu

        return {"kernels": f"cpu, path {cpu.path_in_use()}"}

    def write(self, config: dict, folder: str, texts: list[str] | None = None) -> None:
        """Saves a random model, and a byte-level BPE of ``texts`` where there are any."""
        tokenizer = train_tokenizer(texts, 300) if texts else None
        self._new(config).save_pretrained(folder, tokenizer)
        gc.collect()  # cells hold each other; the writer lives as long as the whole run

    def load(self, folder: str) -> None:
        self.model = msllm.from_pretrained(folder)

    def build(self, config: dict) -> dict:
        """Takes a random model in place of the one before; returns its number of parameters."""
        self.model = self.step = None
        gc.collect()
        self.model = self._new(config)
        return {"parameters": sum(p.size for p in self.model.get_parameters())}

    def prepare(self, rows: int, length: int) -> None:
        """Makes ``step``: forward, backward, AdamW on a batch of ``rows`` x ``length`` tokens."""
        config = self.model.config
        self.model.set_train(True)
        objective, alone = Objective(masked_lm_loss) if config.model_type == "bert" else CAUSAL_LM, Alone()
        optimizer = AdamW(alone.prepare(self.model, objective, False), (0.9, 0.999), 1e-8, 0.1)
        step = build_step(alone, objective, optimizer, 0.0)
        ids, targets = batch(config.model_type, config.vocab_size, rows, length)
        tensors = {"input_ids": Tensor(ids), "targets": Tensor(targets.reshape(-1), ms.int32)}
        count = int(np.sum(targets != IGNORE_INDEX))
        self.step = lambda: step([(tensors, count)], 1e-4)[0].item()
        forget_peak()

    def _greedy(self, prompts, count, on_step):
        def on_token(row: int, token: int) -> bool:
            if row + 1 == len(prompts):
                on_step()
            return False

        config = GenerationConfig(max_new_tokens=count, eos_token_id=[])
        return [result.ids for result in generate_ids(self.model, prompts, config, on_token=on_token)]

    @staticmethod
    def _new(config: dict):
        family = model_class(config)
        return family(family.config_class.from_dict(config))
