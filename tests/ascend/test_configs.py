"""The run files of ascend/configs: options that msllm pretrain has, and layouts that fit models and cards."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

from msllm.commands.pretrain import pretrain
from msllm.models.presets import config_of
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import check_layout, sizes
from msllm.training.arguments import TrainingArguments

CONFIGS = Path(__file__).parents[2] / "ascend" / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))


def test_there_is_a_file_for_each_model_that_fits():
    table, without = (CONFIGS / "plans.txt").read_text().split("\n\n")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert sorted(row[0] for row in rows) == [path.name for path in FILES] and len(FILES) == 13
    assert {row[-1] for row in rows} == {"compiles"}
    found = [line.split(": no layout fits: ")[0] for line in without.splitlines()]
    assert found == ["llama2-70b_8p.yaml", "llama2-70b_16p.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_file_is_one_of_pretrain_and_its_layout_fits(path):
    model, cards = path.stem.removesuffix("p").rsplit("_", 1)
    values = yaml.safe_load(path.read_text())
    own = {name: values.pop(name) for name in list(values) if name in inspect.signature(pretrain).parameters}
    assert own.keys() == {"config_name", "block_size", "parallel"} and own["config_name"] == model
    assert values.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}
    training, config = TrainingArguments(**values), config_of(model)
    parallel = ParallelConfig(**own["parallel"])
    assert parallel.mode == "auto" and parallel.for_workers(int(cards)) == parallel
    check_layout(parallel, training, config.model_type, sizes(config), own["block_size"])
    text = path.read_text()
    assert text.startswith(f"# made by: msllm parallel plan --model {model} --cards {cards} ") and "estimate" in text
    assert f"ascend/configs/{path.name}" in text
