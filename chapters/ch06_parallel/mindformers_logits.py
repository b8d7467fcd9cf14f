"""What MindFormers' own LLaMA makes of a folder, on CPU: python mindformers_logits.py FOLDER IDS.npy LOGITS.npy.

A process of its own: MindFormers sets up loggers and registers for all of it, and writes a folder where it stands.
"""

import sys

import mindspore as ms
import numpy as np
from mindformers import LlamaForCausalLM


def main(folder: str, ids: str, logits: str) -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    tokens = np.load(ids)
    # Its rotary positions and its RMSNorm have an operator of Ascend each, and a composition of others, as here.
    model = LlamaForCausalLM.from_pretrained(
        folder, seq_length=tokens.shape[1], use_rope_slice=True, fused_rms_norm=False
    )
    np.save(logits, model.set_train(False)(ms.Tensor(tokens, ms.int32))[0].asnumpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
