"""Every part of the benchmarks runs on tiny models and writes what its readers expect; no time is judged."""

import json
import math

import pytest

from tests.benchmarks import growth, run
from tests.benchmarks.decode import bytes_per_step
from tests.benchmarks.process import Pool, WorkerError
from tests.benchmarks.table import at_least, at_most


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    run.main(["--quick", "--output", str(output)])
    return output


@pytest.fixture
def cases(folder, request):
    """The cases of the part that the test is named after."""
    name = request.node.name.removeprefix("test_")
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["part"] == name and content["quick"] is True
    assert content["machine"]["cores"] >= 1 and content["machine"]["kernels"].split(",")[0] in (
        "cpu",
        "stock",
        "ascend",
    )
    assert content["cases"].keys() == {case.name for case in run.QUICK[name]}
    return content["cases"]


def test_train(cases):
    for r in cases.values():
        assert r["msllm"]["first_losses"] == pytest.approx(r["eager"]["first_losses"], rel=1e-4)
        assert r["msllm"]["first_losses"][0] == pytest.approx(math.log(100), rel=0.3)  # random weights know nothing
        assert r["ratio_to_eager"] == pytest.approx(r["msllm"]["median_ms"] / r["eager"]["median_ms"])
        assert r["ratio_to_compile"] is None and r["ratio_goal"]["met"] == (r["ratio_to_eager"] <= 1)
        for kind in ("msllm", "eager"):
            low, high = r[kind]["quartiles_ms"]
            assert 0 < low <= r[kind]["median_ms"] <= high and 0 < r[kind]["peak_mib"] < 2000


def test_decode(cases):
    for r in cases.values():
        assert r["same_ids"] and r["bandwidth_gb_per_s"] > 0.1
        assert r["floor_ms_per_token"] == pytest.approx(r["bytes_per_step"] / r["bandwidth_gb_per_s"] / 1e6)
        for kind in ("msllm", "eager"):
            assert r[kind]["tokens_per_s"] == pytest.approx(2 * 1000 / r[kind]["ms_per_token"])  # two rows
            assert 0 < r[kind]["share_of_bandwidth"] < 1
        assert {"ratio_goal", "share_goal"} <= r.keys()


def test_prompt(cases):
    for r in cases.values():
        assert r["same_ids"] and r["ratio"] == pytest.approx(r["msllm"]["median_ms"] / r["eager"]["median_ms"])


def test_memory(cases, folder):
    for r in cases.values():
        for kind in ("msllm", "eager"):
            assert len(r[kind]["peak_mib"]) == len(r["lengths"]) == 1 + len(r[kind]["growth"])
            assert all(0 < mib < 2000 for mib in r[kind]["peak_mib"])
    assert (folder / "memory.png").stat().st_size > 1000


def test_startup(cases):
    for r in cases.values():
        assert 0 < r["seconds"] < 60 and r["peak_rss_mib"] > r["weights_mib"] > 0


def test_growth(cases, folder):
    for r in cases.values():
        assert set(r["axes"]) == {"width", "layers", "length", "batch"}
        for points in r["axes"].values():
            assert len(points["values"]) == len(points["median_ms"]) == len(points["flop"]) == 2
            assert min(points["median_ms"]) > 0 and points["flop"][1] > points["flop"][0]
    assert (folder / "growth.png").stat().st_size > 1000


def test_steady(cases, folder):
    for r in cases.values():
        assert r["steps"] == [10, 20, 30] and min(r["median_ms"]) > 0
        assert r["rss_growth_mib"] == pytest.approx(r["rss_mib"][-1] - r["rss_mib"][0])
    assert (folder / "steady.png").stat().st_size > 1000


def test_operations_of_a_model_counted_by_hand():
    parameters = 12 * 64 * 64 + 100 * 64 + 16 * 64  # matrices of one layer, token table, 16 positions
    assert growth.operations(64, 1, 16, 2, parameters) == 32 * (6 * (12 * 64 * 64 + 100 * 64) + 6 * 16 * 64)


def test_tables_that_are_looked_up_are_not_read(tmp_path):
    tensors = {"model.embed_tokens.weight": 40, "transformer.wpe.weight": 20, "lm_head.weight": 12}
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, size in tensors.items():
        header[name] = {"data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert bytes_per_step(tmp_path) == 12


def test_goals():
    assert at_most(0.7, 0.7)["met"] and not at_most(0.71, 0.7)["met"]
    assert at_least(1.6, 1.6)["met"] and not at_least(1.59, 1.6)["met"] and at_least(1, None)["met"] is None


def test_unknown_part_names_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        run.parse(["trian"])
    error = capsys.readouterr().err
    assert "'trian'" in error and all(name in error for name in run.PARTS)


def test_an_error_of_a_worker_is_told_and_does_not_end_it():
    with Pool() as pool, pool.workers("msllm") as (worker,):
        with pytest.raises(WorkerError, match=r"msllm worker failed at load: UserError: .*no folder"):
            worker.ask("load", folder="no folder")
        with pool.model_folder(run.TINY) as folder:
            worker.ask("load", folder=folder)
