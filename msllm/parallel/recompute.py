"""Blocks that keep their inputs alone, and whose parameters may be elsewhere while they do not run.

The backward pass runs the block again (Chen et al. 2016). Where the data-parallel workers share the parameters
(Rajbhandari et al. 2020, section 5.3), each holds a part of a block's; the whole is put together for the forward pass,
and once more for the backward pass, and let go after both.
"""

import contextlib
from collections.abc import Callable

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.common._grad_function import _Function

from msllm import kernels
from msllm.layers import moe_layers


class _Pass(_Function):
    @staticmethod
    def forward(ctx, owner, rest, x, update, *stored):
        ctx.owner, ctx.rest, ctx.no_update = owner, rest, update is None
        ctx.save_for_backward(x) if update is None else ctx.save_for_backward(x, update)
        ctx.random = kernels.get_rng_state()
        with owner.parameters_here():
            out = owner.run(x, update, rest)
        return out

    @staticmethod
    def backward(ctx, *grads):
        owner, given, no_update = ctx.owner, [ctx.rest], ctx.no_update
        inputs = ctx.saved_tensors
        count = len(inputs)
        after = kernels.get_rng_state()
        kernels.set_rng_state(ctx.random)  # the masks of dropout are those of the forward pass

        # ms.grad is in a cycle with this function, which keeps what it sees until Python looks for cycles: tensors are
        # handed in, or taken away after use.
        def total(*values):
            out = owner.run(values[0], None if no_update else values[1], given[0])
            parts = [ops.ReduceSum()(o * g) for o, g in zip(out, values[count:], strict=True)]
            return sum(parts[1:], parts[0])

        with owner.parameters_here():
            dinputs, dweights = ms.grad(total, tuple(range(count)), owner.weights)(*inputs, *grads)
            stored = owner.stored_gradients(list(dweights))
        kernels.set_rng_state(after)
        given.clear()
        dinputs = dinputs if isinstance(dinputs, tuple) else (dinputs,)
        return (None, None, *dinputs, *([None] if no_update else []), *stored)


class RecomputedBlock(nn.Cell):
    """Takes the place of a block in layers.run_blocks.

    Args:
        block: called as block(x, update, *rest) -> (x, update).
        shares: where the parameters are between passes, such as zero.Shares or mapped_blocks.Shelf; None where they
            stay here.
        complete: what is done with the gradients by name before ``shares`` takes them.
    """

    def __init__(self, block: nn.Cell, shares=None, complete: Callable[[dict], dict] = dict):
        super().__init__()
        self.complete, self.shares = complete, shares
        weights = ParameterTuple(block.trainable_params())
        apart = shares is not None and shares.apart
        if not apart:
            self.block = block
        if shares is not None:
            shares.let_go()
        # Not children of this cell: the parameters are this cell's only where they are whole.
        hidden = tuple(moe_layers(block)) if apart else ()
        for name, value in {"inner": block, "weights": weights, "hidden": hidden}.items():
            object.__setattr__(self, name, value)

    def construct(self, x, update, *rest):
        self.inner.set_train(self.training)
        if not self.training:
            with self.parameters_here():
                return self.inner(x, update, *rest)
        stored = self.weights if self.shares is None else self.shares.owned
        out = list(_Pass.apply(self, rest, x, update, *stored))
        for layer in reversed(moe_layers(self.inner)):  # the experts' losses, as outputs of this cell
            layer.z, layer.balance = out.pop(), out.pop()
        return out[0], out[1] if len(out) == 2 else None

    def run(self, x, update, rest) -> tuple:
        """Returns what the block gives, and the losses of its experts."""
        x, update = self.inner(x, update, *rest)
        losses = [loss for layer in moe_layers(self.inner) for loss in (layer.balance, layer.z)]
        return (x, *(() if update is None else (update,)), *losses)

    def parts(self) -> None:
        """The kernel for whole blocks does not know this one."""
        return None

    @contextlib.contextmanager
    def parameters_here(self):
        """While open, the block has its parameters."""
        if self.shares is not None:
            self.shares.fetch()
        try:
            yield
        finally:
            if self.shares is not None:
                self.shares.let_go()

    def stored_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Returns the gradients of what this worker holds."""
        if self.shares is None:
            return grads
        whole = self.complete({p.name: g for p, g in zip(self.weights, grads, strict=True)})
        return self.shares.sum_to_owners(list(whole.values()))
