"""Collectives with their gradients, for use inside a model; PyNative.

Each exists in a pair whose backward passes are each other (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022,
section 4.2): what is copied to all workers in one direction is summed over them in the other.
"""

from mindspore import ops
from mindspore.common._grad_function import _Function

from msllm.parallel.comm import Group


class _Copy(_Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view(x.shape)

    @staticmethod
    def backward(ctx, dy):
        return ctx.group.all_reduce(dy), None


class _Sum(_Function):
    @staticmethod
    def forward(ctx, x, group):
        return group.all_reduce(x)

    @staticmethod
    def backward(ctx, dy):
        return dy, None


class _Gather(_Function):
    @staticmethod
    def forward(ctx, x, group, axis, summed):
        ctx.group, ctx.axis, ctx.summed = group, axis, summed
        return group.all_gather(x, axis)

    @staticmethod
    def backward(ctx, dy):
        if ctx.summed:
            return ctx.group.reduce_scatter(dy, ctx.axis), None, None, None
        return _share(dy, ctx.group, ctx.axis), None, None, None


class _SumScatter(_Function):
    @staticmethod
    def forward(ctx, x, group, axis):
        ctx.group, ctx.axis = group, axis
        return group.reduce_scatter(x, axis)

    @staticmethod
    def backward(ctx, dy):
        return ctx.group.all_gather(dy, ctx.axis), None, None


class _Split(_Function):
    @staticmethod
    def forward(ctx, x, group, axis):
        ctx.group, ctx.axis = group, axis
        return _share(x, group, axis)

    @staticmethod
    def backward(ctx, dy):
        return ctx.group.all_gather(dy, ctx.axis), None, None


class _AllToAll(_Function):
    @staticmethod
    def forward(ctx, x, group, to, received):
        ctx.group, ctx.to, ctx.received = group, to, received
        return _exchange_rows(x, group, to, received)

    @staticmethod
    def backward(ctx, dy):
        return _exchange_rows(dy, ctx.group, ctx.received, ctx.to), None, None, None


def copy(x, group: Group):
    """Returns x, which every member has; its gradient is summed over the members."""
    return x if group.size == 1 else _Copy.apply(x, group)


def sum_over(x, group: Group):
    """Returns the sum of x over the members; its gradient is that of the sum, which every member has."""
    return x if group.size == 1 else _Sum.apply(x, group)


def gather(x, group: Group, axis: int, summed: bool = True):
    """Returns the members' x side by side along ``axis``.

    Args:
        summed: whether the members use the whole differently, so that their gradients are summed; False where all do
            the same with it, and each takes its part of the one gradient.
    """
    return x if group.size == 1 else _Gather.apply(x, group, axis, summed)


def sum_scatter(x, group: Group, axis: int):
    """Returns this member's share along ``axis`` of the sum of x over the members."""
    return x if group.size == 1 else _SumScatter.apply(x, group, axis)


def split(x, group: Group, axis: int):
    """Returns this member's share along ``axis`` of x, which every member has."""
    return x if group.size == 1 else _Split.apply(x, group, axis)


def exchange_rows(x, group: Group, to: list[int], received: list[int]):
    """Sends the first to[0] rows of x (N, ...) to member 0, the next to member 1, ...; returns what came, in order.

    Args:
        received: rows that come from each member.
    """
    return x if group.size == 1 else _AllToAll.apply(x, group, to, received)


def _share(x, group: Group, axis: int):
    if x.shape[axis] % group.size:
        raise ValueError(f"axis {axis} of {x.shape} cannot be divided among {group.size} workers")
    size = x.shape[axis] // group.size
    return ops.split(x, size, axis)[group.index].contiguous()


def _exchange_rows(x, group: Group, to: list[int], received: list[int]):
    ends = [sum(to[: i + 1]) for i in range(group.size)]
    parts = [x[end - n : end] if n else ops.zeros((0, *x.shape[1:]), x.dtype) for end, n in zip(ends, to)]
    parts = group.all_to_all(parts, [(n, *x.shape[1:]) for n in received])
    return ops.concat([p for p in parts if p.size] or parts[:1], 0)
