"""MindFormers' side of the parity test, a process of its own: python mindformers_side.py FOLDER.

FOLDER has job.json and what the bridge wrote; answers go to answers.npz, answers.json and further folders in it.
"""

import json
import os
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindformers import LlamaForCausalLM, MindFormerConfig
from mindformers.core.optim import AdamW
from mindformers.core.parallel_config import build_parallel_config
from mindformers.models import build_network
from mindformers.tools.register.template import CONFIG_NAME_TO_CLASS
from mindformers.utils import is_hf_safetensors_dir
from mindspore import nn

ON_CPU = {"use_rope_slice": True, "fused_rms_norm": False}  # Ascend's operators for both have no other implementation


def logits(model, ids: np.ndarray) -> np.ndarray:
    return model.set_train(False)(ms.Tensor(ids, ms.int32))[0].asnumpy()


def folders(job: dict, ids: np.ndarray, answers: dict) -> None:
    """Loads each folder that has a .ckpt as MindFormers does, and saves one as it does."""
    for name in job["folders"]:
        model = LlamaForCausalLM.from_pretrained(name, seq_length=ids.shape[1], **ON_CPU)
        answers[name] = logits(model, ids)
    model.save_pretrained("saved")
    step = nn.TrainOneStepCell(model.set_train(), AdamW(model.trainable_params(), learning_rate=0.1))
    for name in ("rank_0/llama_rank_0-1_1.ckpt", "rank_0/llama_rank_0-1_2.ckpt"):
        path = Path("run/checkpoint") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ms.save_checkpoint(step, str(path), append_dict={"epoch_num": 1, "step_num": 2})
        for parameter in model.get_parameters():  # the second is other weights, and the one to be read
            parameter.set_data(parameter * 2)
    answers["run"] = next(iter(model.get_parameters())).asnumpy() / 2


def run(path: str, weights: str, ids: np.ndarray, answers: dict) -> dict:
    """Builds the model of a run YAML, and gives it a folder of safetensors."""
    config = MindFormerConfig(path)
    read = {"batch_size": config.runner_config.batch_size, "mode": config.context.mode, "seed": config.seed}
    build_parallel_config(config)
    config.model.model_config.parallel_config = config.parallel_config
    model = build_network(config.model)
    tensors = {}
    for file in sorted(Path(weights).glob("*.safetensors")):
        tensors |= ms.load_checkpoint(str(file), format="safetensors")
    lacking, extra = ms.load_param_into_net(model, tensors)
    answers["run_yaml"] = logits(model, ids)
    return {**read, "lacking": lacking, "extra": extra, "is_hf": is_hf_safetensors_dir(weights, LlamaForCausalLM)}


def main(folder: str) -> None:
    os.chdir(folder)
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    job = json.loads(Path("job.json").read_text())
    ids, answers = np.array(job["ids"], np.int32), {}
    folders(job, ids, answers)
    said = {
        "run": run(job["run_yaml"], job["safetensors"], ids, answers),
        "names": {name: LlamaForCausalLM.convert_name(name) for name in job["names"]},
        "layout": MindFormerConfig(job["layout_yaml"]).parallel_config.to_dict(),
        "keys": {name: repr_of(cls) for name, cls in CONFIG_NAME_TO_CLASS.items()},
    }
    np.savez("answers.npz", **answers)
    Path("answers.json").write_text(json.dumps(said))


def repr_of(section) -> dict:
    """The keys of a section of the template, with what they are where a YAML leaves them out, as texts."""
    return {key: repr(getattr(section, key)) for key in section.keys()}  # noqa: SIM118 - a class


if __name__ == "__main__":
    main(sys.argv[1])
