"""What a device or a process does not keep in its memory: on the host, or in files."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig


@dataclasses.dataclass(kw_only=True)
class OffloadConfig:
    """Where states are while they are not needed.

    Args:
        optimizer: of the moments: device keeps them; host updates on the host's processor, as nn.AdamOffload does
            (Ascend; on a CPU both are one place); disk maps them from files, read ahead of their use.
        embedding: of the table of tokens: host looks tokens up there; needs a head of its own, and optimizer host.
        blocks: of parameters and gradients of the blocks: disk maps them from files, and has in memory the block that
            runs and the next one; in one process, with optimizer disk.
        folder: on whose disk the files are; without it, that of the output.
    """

    optimizer: Literal["device", "host", "disk"] = "device"
    embedding: Literal["device", "host"] = "device"
    blocks: Literal["device", "disk"] = "device"
    folder: str | None = None

    def check(self, parallel: ParallelConfig, optim: str, tuning: str = "full") -> None:
        """Raises UserError where options contradict each other, or the rest of a run.

        Args:
            parallel: how the run is spread, with the number of workers.
            optim, tuning: see TrainingArguments and finetune.
        """
        if self.optimizer != "device" and optim != "adamw":
            raise UserError(
                f"offload.optimizer is {self.optimizer}, and optim {optim} needs whole matrices on the device; use "
                f"--optim adamw, or leave it out"
            )
        if self.optimizer != "device" and parallel.servers:
            raise UserError(
                f"offload.optimizer is {self.optimizer}, and parallel servers have the states; leave out one of them"
            )
        if parallel.mode == "auto" and dataclasses.replace(self, folder=None) != OffloadConfig():
            raise UserError(
                "offload is given and parallel.mode auto, whose graph has the states; leave offload out, or use "
                "--parallel.mode explicit"
            )
        if self.embedding == "host" and self.optimizer != "host":
            raise UserError(
                f"offload.embedding is host and offload.optimizer {self.optimizer}: the table would go to the device "
                f"for its update; add --offload.optimizer host"
            )
        if self.embedding == "host" and not (parallel.plain and parallel.servers == 0):
            raise UserError("offload.embedding is host, and the table is to be shared by workers; leave it out")
        if self.blocks == "disk" and self.optimizer != "disk":
            raise UserError(
                f"offload.blocks is disk and offload.optimizer {self.optimizer}, whose states are larger; add "
                f"--offload.optimizer disk"
            )
        if self.blocks == "disk" and (parallel.world > 1 or not parallel.plain):
            raise UserError(
                "offload.blocks is disk, which one process does alone; leave out workers and the parallel options, or "
                "use --parallel.optimizer 3"
            )
        if self.blocks == "disk" and tuning != "full":
            raise UserError(f"offload.blocks is disk and tuning {tuning}, which updates few parameters; leave it out")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise UserError(f"offload.folder is {self.folder}, and there is no such folder; make it")

    def apply(self, model) -> None:
        """Changes a model in place, before it is spread or prepared; see host.apply."""
        if self.embedding == "host":
            from msllm.parallel import host

            host.apply(model)


IN_MEMORY = OffloadConfig()


def offloaded(workers, config: OffloadConfig, output: str | Path):
    """Returns the Alone, or the like, of a run whose states are where ``config`` says.

    Args:
        workers: of the run, None where this process is alone.
        config: checked.
        output: of the run.
    """
    if config.optimizer == "device":
        return workers
    from msllm.parallel.host import HostAdamW
    from msllm.parallel.mapped import MappedAdamW
    from msllm.parallel.mapped_blocks import MappedBlocks
    from msllm.training.alone import Alone

    folder = Path(config.folder or output)
    while not folder.is_dir():  # the output is made later
        folder = folder.parent
    if config.blocks == "disk" and workers is not None:
        raise UserError(
            "offload.blocks is disk, and several workers wrote the checkpoint to go on from; make a folder of it with "
            "msllm convert, and start from that with --model"
        )
    workers = MappedBlocks(folder) if config.blocks == "disk" else workers or Alone()
    workers.optimizers = {"adamw": HostAdamW if config.optimizer == "host" else functools.partial(MappedAdamW, folder)}
    return workers
