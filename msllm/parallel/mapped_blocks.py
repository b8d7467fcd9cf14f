"""A model whose blocks are in files: in memory is the block that runs, and the next one, which another thread reads.

Between passes a block's parameters are mapped from a file; so are its gradients, as soon as they are known. Forward
keeps the inputs of blocks alone and backward runs each block again (see msllm.parallel.recompute), so that a block is
read twice a step. With MappedAdamW none of the states of a block stays in memory.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor

from msllm import kernels
from msllm.errors import UserError
from msllm.parallel.mapped import Home, MappedArrays
from msllm.parallel.plans import plan_for
from msllm.parallel.recompute import RecomputedBlock
from msllm.training.alone import Alone


class Shelf:
    """Parameters and gradients of a block in a file; takes the place of zero.Shares in a RecomputedBlock.

    Args:
        parameters: with their values; they get the attribute ``home``, a Home.
        folder: on whose disk the file is.
        shelves: of all blocks.

    Attributes:
        owned: the parameters.
        gradients: tensors that share the memory of the file.
        fresh: whether the next gradients are the first ones of a step.
    """

    apart = False

    def __init__(self, parameters: Sequence[Parameter], folder: str | Path, shelves: "Shelves"):
        self.owned, self._shelves, self.fresh = list(parameters), shelves, True
        self._file = MappedArrays(folder, 2 * [tuple(p.shape) for p in self.owned])
        for i, parameter in enumerate(self.owned):
            parameter.home = Home(self._file, i, len(self.owned) + i)
        self._homes = [p.home.values for p in self.owned]
        self.gradients = [Tensor.from_numpy(p.home.gradient) for p in self.owned]
        self._ahead: Future | None = None
        self._bring_home()

    def fetch(self) -> None:
        """Gives the parameters their values in memory; those of the block that probably follows are read meanwhile."""
        self._bring_home()
        self.read_ahead()
        copies, self._ahead = self._ahead.result(), None
        for parameter, copy in zip(self.owned, copies, strict=True):
            parameter.set_data(Tensor.from_numpy(copy))
        self._shelves.fetched(self)

    def read_ahead(self) -> None:
        """Starts to read the values, where that has not been done."""
        if self._ahead is None:
            self._ahead = self._shelves.thread.submit(lambda: [home.copy() for home in self._homes])

    def forget_ahead(self) -> None:
        """Lets go of values that were read for nothing."""
        self._ahead = None

    def let_go(self) -> None:
        """Leaves the parameters in the file alone."""
        for parameter, home in zip(self.owned, self._homes, strict=True):
            parameter.set_data(Tensor.from_numpy(home))
        self._file.forget()

    def _bring_home(self) -> None:
        """Takes over values that others have set, such as a run that goes on from a checkpoint."""
        for parameter, home in zip(self.owned, self._homes, strict=True):
            values = parameter.asnumpy()
            if values.ctypes.data != home.ctypes.data:
                home[...] = values
                self._ahead = None
        self.let_go()

    def sum_to_owners(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Adds gradients to those in the file, or replaces them, if they are ``fresh``; returns ``gradients``."""
        for parameter, grad in zip(self.owned, grads, strict=True):
            slot = parameter.home.gradient
            np.copyto(slot, grad.asnumpy()) if self.fresh else np.add(slot, grad.asnumpy(), out=slot)
        self.fresh = False
        self._file.forget()
        return self.gradients

    def sum_squares(self) -> float:
        """Returns the sum of the squares of the gradients."""
        total = kernels.sum_squares(self.gradients)
        self._file.forget()
        return total


class Shelves(list):
    """The Shelf of each block, in the order in which they run forward, and the thread that reads."""

    def __init__(self):
        super().__init__()
        self.thread, self._last = ThreadPoolExecutor(1, "blocks"), -1

    def fetched(self, shelf: Shelf) -> None:
        """Reads ahead what follows a block: the next one while they come in order, else the one before."""
        place = next(i for i, one in enumerate(self) if one is shelf)
        following = place + 1 if place > self._last else place - 1
        self._last = place
        if 0 <= following < len(self):
            self[following].read_ahead()

    def restart(self) -> None:
        """Called when the values have changed: the next pass begins with the first block."""
        self._last = -1
        for shelf in self:
            shelf.forget_ahead()


class MappedBlocks(Alone):
    """A run in one process with the blocks of the model in files.

    Args:
        folder: on whose disk the files are.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.shelves = folder, Shelves()

    def prepare(self, model, objective, jit):
        """See Alone; UserError where it is no decoder-only model whose parameters are all trained."""
        if jit:
            raise UserError(
                "jit compiles whole models, and blocks in files come and go; leave out jit or offload.blocks"
            )
        frozen = next((p.name for p in model.get_parameters() if not p.requires_grad), None)
        if frozen is not None:
            raise UserError(f"{frozen} is not trained, and offload.blocks disk is for what is; leave it out")
        blocks = getattr(model.body, plan_for(model.config.model_type).blocks)
        names = {id(p): p.name for p in model.get_parameters()}
        for i, block in enumerate(blocks):
            shelf = Shelf(block.trainable_params(), self.folder, self.shelves)
            self.shelves.append(shelf)
            blocks[i] = RecomputedBlock(block, shelf)
        for parameter in model.get_parameters():  # moving a cell may have named its parameters anew
            parameter.name = names[id(parameter)]
        self._parameters = super().prepare(model, objective, jit)
        return self._parameters

    def forward_backward(self, batches, scale):
        """See Alone; the gradients of blocks share the memory of files."""
        for shelf in self.shelves:
            shelf.fresh = True
        return super().forward_backward(batches, scale)

    def accumulate(self, sums, new):
        """See Alone; what is in files was added there."""
        pairs = zip(self._parameters, sums, new, strict=True)
        return [a if hasattr(p, "home") else a + b for p, a, b in pairs]

    def sum_squares(self, gradients):
        """See Alone."""
        here = [g for p, g in zip(self._parameters, gradients, strict=True) if not hasattr(p, "home")]
        return kernels.sum_squares(here) + sum(shelf.sum_squares() for shelf in self.shelves)

    def after_update(self):
        """See Alone."""
        self.shelves.restart()
