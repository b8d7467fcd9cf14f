"""In which order a stage of a pipeline works: one forward, one backward.

A model is cut into stages, a batch into micro-batches. A micro-batch goes forward through stages 0, 1, ... and then
backward through the same ones from the last to the first. Source: Narayanan et al. 2019, "PipeDream", figure 4, with a
flush at the end of the batch; Narayanan et al. 2021, section 2.2.
"""


def order_1f1b(stages: int, stage: int, micro_batches: int) -> list[tuple[str, int]]:
    """Lists what a stage does, first to last.

    Args:
        stages: their number, p.
        stage: this one, from 0.
        micro_batches: their number, m; it may be smaller than p.

    Returns:
        2 m pairs such as ("forward", 0) and ("backward", 0), each micro-batch in both.

    Steps: a start of p - stage - 1 forward passes, or of m where that is less; then one forward and one backward pass
    in turn, until all forward passes are done; then the backward passes that are left.
    """
    ...


def most_kept(order: list[tuple[str, int]]) -> int:
    """Counts how many micro-batches have at most been forward and not yet backward: their inputs must be kept.

    Args:
        order: what a stage does, as order_1f1b or another schedule lists it.
    """
    ...


def idle_share(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Computes which share of a step a stage waits, where every pass through a stage takes one unit of time.

    Args:
        stages, micro_batches: p and m.
        chunks: v, pieces of the model that each stage has; a pass through a piece takes 1 / v.

    Returns:
        The time waited over the time of the whole step, waiting included.

    Hint: forward and backward together, a stage works 2 m units. Until the first micro-batch reaches the last stage,
    p - 1 passes go by, and as many on the way back; with v pieces a pass is shorter.
    """
    ...
