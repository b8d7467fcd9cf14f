"""Greedy decoding over a key-value cache: the time of a token, and the time to the first one."""

import json
import statistics
from pathlib import Path

import numpy as np

from tests.benchmarks.cases import Decode, Prompt
from tests.benchmarks.process import Pool, spread
from tests.benchmarks.table import at_least, at_most, milliseconds, verdict

_SIDES = ("msllm", "eager")
# A step of decoding reads one row of these for each row of the batch, and all of every other tensor.
_LOOKED_UP = ("wpe.weight", "embed_tokens.weight")


def measure(case: Decode, pool: Pool) -> dict:
    """Returns the speeds of both sides and the shares of the bandwidth measured between their turns.

    ``ms_per_token`` is the time between two tokens of a row, without the prompt; ``tokens_per_s`` counts all rows.
    The floor is the time to read the weights once; the cache and the activations are not in it.
    """
    with pool.model_folder(case.config) as folder, pool.workers(*_SIDES, "bandwidth") as (*sides, meter):
        size = bytes_per_step(Path(folder))
        command = {"prompts": prompts(case.config, case.batch, case.prompt), "count": case.new}
        for side in sides:
            side.ask("load", folder=folder)
        ids = [side.ask("greedy", **command)["ids"] for side in sides]
        times: dict[str, list[float]] = {side.kind: [] for side in sides}
        speeds = []
        for _ in range(case.rounds):
            speeds.append(meter.ask("measure")["gb_per_s"])
            for side in sides:
                at = side.ask("greedy", **command)["times"]
                times[side.kind].append((at[-1] - at[0]) / (case.new - 1))
    speed = statistics.median(speeds)
    floor = size / speed / 1e9
    result = {"bandwidth_gb_per_s": speed, "bandwidths_gb_per_s": speeds, "bytes_per_step": size}
    result |= {"floor_ms_per_token": floor * 1e3, "same_ids": ids[0] == ids[1]}
    for kind, seconds in times.items():
        step = statistics.median(seconds)
        result[kind] = {
            "ms_per_token": step * 1e3,
            "tokens_per_s": case.batch / step,
            "spread_tokens_per_s": [case.batch / max(seconds), case.batch / min(seconds)],
            "share_of_bandwidth": floor / step,
        }
    result["ratio"] = result["msllm"]["tokens_per_s"] / result["eager"]["tokens_per_s"]
    result["ratio_goal"] = at_least(result["ratio"], case.goal)
    result["share_goal"] = at_least(result["msllm"]["share_of_bandwidth"], case.share_goal)
    return result


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows, two a case; in brackets the slowest and the fastest run."""
    header = ["decode", "tokens/s", "ms/token", "GB/s", "floor ms", "share", "goal", "ratio", "goal", "same ids"]
    rows = []
    for name, r in results.items():
        for kind in _SIDES:
            side, ours = r[kind], kind == "msllm"
            low, high = side["spread_tokens_per_s"]
            cells = [f"{name}: {kind}", f"{side['tokens_per_s']:.1f} ({low:.1f}-{high:.1f})"]
            cells += [f"{side['ms_per_token']:.2f}", f"{r['bandwidth_gb_per_s']:.1f}", f"{r['floor_ms_per_token']:.2f}"]
            cells += [f"{side['share_of_bandwidth']:.0%}", verdict(r["share_goal"]) if ours else ""]
            cells += [f"{r['ratio']:.2f}", verdict(r["ratio_goal"]), str(r["same_ids"])] if ours else [""] * 3
            rows.append(cells)
    return header, rows


def measure_prompt(case: Prompt, pool: Pool) -> dict:
    """Returns the time from the call to the first new token, the head running on the last position only."""
    with pool.model_folder(case.config) as folder, pool.workers(*_SIDES) as sides:
        command = {"prompts": prompts(case.config, 1, case.length), "count": 1}
        for side in sides:
            side.ask("load", folder=folder)
        ids = [side.ask("greedy", **command)["ids"] for side in sides]
        times: dict[str, list[float]] = {side.kind: [] for side in sides}
        for _ in range(case.rounds):
            for side in sides:
                times[side.kind] += side.ask("greedy", **command)["times"]
    result = {kind: spread(seconds) for kind, seconds in times.items()}
    result["ratio"] = result["msllm"]["median_ms"] / result["eager"]["median_ms"]
    return {**result, "ratio_goal": at_most(result["ratio"], case.goal), "same_ids": ids[0] == ids[1]}


def table_prompt(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = ["time to first token", "msllm ms", "eager ms", "ratio", "goal", "same ids"]
    rows = []
    for name, r in results.items():
        cells = [name, *(milliseconds(r[kind]) for kind in _SIDES), f"{r['ratio']:.2f}"]
        rows.append([*cells, verdict(r["ratio_goal"]), str(r["same_ids"])])
    return header, rows


def prompts(config: dict, rows: int, length: int) -> list[list[int]]:
    """Random prompts of one length, so that no row is padded."""
    return np.random.default_rng(1).integers(0, config["vocab_size"], (rows, length)).tolist()


def bytes_per_step(folder: Path) -> int:
    """Bytes of weights that a step of decoding reads: all but the tables in which rows are looked up."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    ranges = [entry["data_offsets"] for name, entry in header.items() if not name.endswith(_LOOKED_UP)]
    return sum(end - start for start, end in ranges)
