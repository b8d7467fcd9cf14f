"""What a profile says about the next thing to change: a rule each, with the share of a step at which it speaks."""

from collections.abc import Callable, Iterator

DATA = 0.15
BETWEEN = 0.35
COMMUNICATION = 0.2
WAITING = 0.15
OPTIMIZER = 0.3
PADDING = 0.2
OTHER = 0.2

_OF_GROUP = {
    "tensor": "share matrices among fewer workers (--parallel.tensor) and examples among more",
    "pipeline": "send less often: larger --per_device_train_batch_size, or fewer --parallel.micro_batches",
    "sequence": "share the tokens among fewer workers (--parallel.sequence)",
    "expert": "share the experts among fewer workers (--parallel.expert)",
}
_OF_SAMPLES = (
    "sum gradients less often: larger --per_device_train_batch_size or --gradient_accumulation_steps; "
    "--parallel.optimizer 0 and 1 send least"
)


def advise(summary: dict) -> list[dict]:
    """Returns what to change, what costs most first: each a rule, the share of a step that it is about, and a text.

    Args:
        summary: see profile_split.summarize.

    A run of which no rule speaks is bound by what it computes, and is told so.
    """
    found = [finding for rule in _RULES for finding in rule(summary)]
    return sorted(found, key=lambda finding: -finding["share"]) or [_compute_bound(summary)]


def _finding(rule: str, share: float, text: str) -> dict:
    return {"rule": rule, "share": share, "text": text}


def _worst(summary: dict, part: str) -> tuple[float, float, float, str]:
    """The largest share of a part on any worker, its ms, those of the step, and which worker that is, if not alone."""
    worst = max(summary["workers"], key=lambda worker: worker["parts"][part] / worker["parts"]["wall"])
    ms, wall = worst["parts"][part], worst["parts"]["wall"]
    return ms / wall, ms, wall, f" on worker {worst['rank']}" if len(summary["workers"]) > 1 else ""


def _larger_batch(settings: dict) -> str:
    if settings["train_batch_tokens"]:
        return f"raise --train_batch_tokens (now {settings['train_batch_tokens']})"
    return f"raise --per_device_train_batch_size (now {settings['per_device_train_batch_size']})"


def _stock_kernels(summary: dict) -> Iterator[dict]:
    settings, parts = summary["settings"], summary["workers"][0]["parts"]
    if settings["device"] != "CPU" or settings["kernels"] != "stock" or settings["jit"]:
        return
    share = (parts["compute"] + parts["between_operators"]) / parts["wall"]
    calls = sum(row["calls"] for row in summary["operators"])
    yield _finding(
        "stock kernels",
        share,
        f"stock kernels: {calls:,.0f} operators a step, each a pass over memory and a call, with the time between "
        f"them {share:.0%} of it; build the C++ kernels (make setup, or python -m msllm.kernels.build) and leave "
        f"MSLLM_KERNELS unset",
    )


def _data_bound(summary: dict) -> Iterator[dict]:
    share, ms, wall, where = _worst(summary, "data")
    if share > DATA:
        yield _finding(
            "data-bound",
            share,
            f"data-bound: batches take {ms:.1f} of {wall:.1f} ms a step ({share:.0%}){where}; turn text into tokens "
            f"once, before training (msllm data tokenize, pretraining-data, or a list of encoded examples), instead of "
            f"in each step",
        )


def _small_batch(summary: dict) -> Iterator[dict]:
    share, ms, wall, where = _worst(summary, "between_operators")
    calls = sum(row["calls"] for row in summary["operators"])
    if share > BETWEEN and summary["settings"]["jit"]:
        yield _finding(
            "compiling",
            share,
            f"compiling: {ms:.1f} of {wall:.1f} ms a step ({share:.0%}){where} lie outside operators although jit has "
            f"compiled the step: MindSpore compiles it again, or is slow to start what it compiled; leave out --jit",
        )
    elif share > BETWEEN:
        yield _finding(
            "small batch",
            share,
            f"small batch: {ms:.1f} of {wall:.1f} ms a step ({share:.0%}){where} lie between operators ({calls:,.0f} "
            f"calls for {summary['tokens_per_step']:,.0f} tokens), which cost as much for few tokens as for many; "
            f"{_larger_batch(summary['settings'])}, as far as memory allows",
        )


def _collective_bound(summary: dict) -> Iterator[dict]:
    share, ms, wall, where = _worst(summary, "communication")
    if share <= COMMUNICATION:
        return
    messages = [row for row in summary["operators"] if row["source"].startswith("group ")]
    most = max(messages, key=lambda row: row["ms"] - row["waiting_ms"], default=None)
    which, group = "", ""
    if most is not None:
        group = most["source"].removeprefix("group ")
        which = f", most of them in {most['name']} of group {group}, {most['calls']:,.1f} calls a step"
    yield _finding(
        "collective-bound",
        share,
        f"collective-bound: messages take {ms:.1f} of {wall:.1f} ms a step ({share:.0%}){where}{which}; "
        f"{_OF_GROUP.get(group, _OF_SAMPLES)}",
    )


def _unequal_workers(summary: dict) -> Iterator[dict]:
    share, ms, wall, where = _worst(summary, "waiting")
    if share <= WAITING:
        return
    worst = max(summary["workers"], key=lambda worker: worker["parts"]["waiting"] / worker["parts"]["wall"])
    slowest = max(range(len(worst["waits_for"])), key=worst["waits_for"].__getitem__)
    mine, theirs = (_busy(summary["workers"][rank]["parts"]) for rank in (worst["rank"], slowest))
    if any(row["source"] == "group pipeline" for row in summary["operators"]):
        advice = "raise --parallel.micro_batches, which shortens the bubble, or try --parallel.cut cost"
    elif theirs - mine > ms / 2:
        advice = (
            "give all workers as much to do: --group_by_length or --train_batch_tokens evens out lengths, and machines "
            "or cores should be alike"
        )
    else:
        advice = (
            "they are as busy and late by turns: meet less often (fewer workers that share matrices, larger batches), "
            "and leave them their cores"
        )
    yield _finding(
        "waiting",
        share,
        f"waiting: {ms:.1f} of {wall:.1f} ms a step ({share:.0%}){where}, most for worker {slowest}, which is busy for "
        f"{theirs:.1f} ms where this one is for {mine:.1f}; {advice}",
    )


def _busy(parts: dict) -> float:
    """The ms that a worker has to do by itself."""
    return parts["wall"] - parts["waiting"] - parts["communication"]


def _optimizer_bound(summary: dict) -> Iterator[dict]:
    wall, ms = summary["workers"][0]["parts"]["wall"], summary["phases"]["optimizer"]
    if ms / wall > OPTIMIZER:
        several = len(summary["workers"]) > 1
        yield _finding(
            "optimizer-bound",
            ms / wall,
            f"optimizer-bound: the update takes {ms:.1f} of {wall:.1f} ms a step ({ms / wall:.0%}) whatever the batch; "
            f"{_larger_batch(summary['settings'])} or --gradient_accumulation_steps (now "
            f"{summary['settings']['gradient_accumulation_steps']})"
            f"{', or share it among the workers with --parallel.optimizer 1' if several else ''}",
        )


def _padding(summary: dict) -> Iterator[dict]:
    share, settings = summary["padding"], summary["settings"]
    if share > PADDING:
        grouped = settings["group_by_length"] or settings["train_batch_tokens"]
        advice = "--packing of msllm finetune" if grouped else "--group_by_length, or --packing of msllm finetune,"
        yield _finding(
            "padding",
            share,
            f"padding: {share:.0%} of the places in batches hold no token and are computed all the same; {advice} "
            f"leaves fewer",
        )


def _besides(summary: dict) -> Iterator[dict]:
    share, ms, wall, _ = _worst(summary, "other")
    if share > OTHER:
        settings = summary["settings"]
        yield _finding(
            "evaluation and checkpoints",
            share,
            f"evaluation and checkpoints take {ms:.1f} of {wall:.1f} ms a step ({share:.0%}) in the steps that were "
            f"looked at; raise --eval_steps (now {settings['eval_steps']}) or --save_steps (now "
            f"{settings['save_steps']})",
        )


def _compute_bound(summary: dict) -> dict:
    parts = summary["workers"][0]["parts"]
    top = next(row for row in summary["operators"] if not row["source"].startswith("group "))
    share = parts["compute"] / parts["wall"]
    return _finding(
        "compute-bound",
        share,
        f"compute-bound: operators run {share:.0%} of a step, {top['name']} most of all ({top['ms']:.1f} of "
        f"{parts['wall']:.1f} ms); no option makes this run much faster on these cores: more of them, a smaller "
        f"model, or more workers do",
    )


_RULES: tuple[Callable[[dict], Iterator[dict]], ...] = (
    _stock_kernels,
    _data_bound,
    _small_batch,
    _collective_bound,
    _unequal_workers,
    _optimizer_bound,
    _padding,
    _besides,
)
