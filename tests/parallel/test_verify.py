"""Every way of spreading a model, on real workers, against one process."""

import pytest

from msllm.cli import main
from msllm.files import read_json

QUICK = ["--quick", "--time_limit", "300"]


def rows(folder, workers):
    return read_json(folder / f"verify-{workers}.json")["rows"]


def test_every_strategy_of_two_workers_computes_what_one_process_computes(tmp_path, capfd):
    assert main(["parallel", "verify", "--workers", "2", "--output", str(tmp_path), *QUICK]) == 0
    found = rows(tmp_path, 2)
    assert f"{len(found)} of {len(found)} rows hold on 2 workers" in capfd.readouterr().out
    assert {"data", "tensor", "tensor-norms", "optimizer-3", "1f1b", "interleaved", "expert", "ring", "heads"} <= {
        row["strategy"] for row in found
    }
    for row in found:
        assert row["loss"] <= 1e-5 and row["parameter"] <= 1e-5, row
        assert row["sent"] == pytest.approx(row["formula"], rel=1e-6) and row["sent"] > 0, row


def test_four_workers_combine_tensors_and_stages(tmp_path):
    command = ["parallel", "verify", "--workers", "4", "--strategy", "tensor+pipeline", "--output", str(tmp_path)]
    assert main([*command, *QUICK]) == 0
    assert [row["holds"] for row in rows(tmp_path, 4)] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "3"], "workers is 3, expected 2, 4 or 8"),
        (["--strategy", "tensr"], "unknown strategy 'tensr' (did you mean 'tensor'?)"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_workers_start(options, message, tmp_path, capsys):
    assert main(["parallel", "verify", *options, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_action_is_named(capsys):
    assert main(["parallel", "verfy"]) == 2
    assert "unknown command 'parallel verfy' (did you mean 'verify'?)" in capsys.readouterr().err
