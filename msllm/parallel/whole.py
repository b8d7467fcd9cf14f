"""A checkpoint of one process, read by workers of any layout."""

from pathlib import Path

import numpy as np

from msllm.errors import UserError
from msllm.files import read_json
from msllm.models.weights import read_file, read_weights
from msllm.parallel.slices import Slice
from msllm.training import checkpoint


class WholeCheckpoint:
    """A checkpoint that one process wrote, read as a ShardedCheckpoint is."""

    def __init__(self, folder: Path, model):
        self.folder, self.tensors = folder, model.sanitize(read_weights(folder))
        self.moments = read_file(folder / checkpoint.OPTIMIZER)
        state = read_json(folder / checkpoint.STATE)
        self.info = {"optimizer_step": int(self.moments["step"][0]), "random": [state["rng_state"]]}

    def read(self, kind: str, part: Slice) -> np.ndarray:
        """Returns a Slice of a parameter or of its moments; UserError where there is none."""
        name, found = (part.name, self.tensors) if kind == "param" else (f"{kind}.{part.name}", self.moments)
        if name not in found or tuple(found[name].shape) != part.shape:
            raise UserError(
                f"{self.folder} holds no {name} of shape {part.shape}; it belongs to another model or another choice "
                f"of trained parameters"
            )
        return part.of(found[name])
