"""msllm convert-yaml: run YAMLs of MindFormers from run YAMLs of msllm, and back."""

import dataclasses
import inspect
import logging
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from msllm.errors import UserError, nearest
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import TrainingArguments

if typing.TYPE_CHECKING:
    from msllm.conversion.mindformers import Run

log = logging.getLogger(__name__)
_LENGTHS = {"train": "block_size", "finetune": "max_length"}


def convert_yaml(
    source: str,
    output: str,
    command: Literal["pretrain", "finetune"] = "pretrain",
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    device: Literal["Ascend", "CPU"] = "Ascend",
) -> None:
    """Turns a run YAML of msllm into one of MindFormers 1.9.0, and one of MindFormers into one of msllm.

    Which of both the source is, is seen from its keys. What the other side has no key for is named.

    Args:
        source: what msllm pretrain --config or msllm finetune --config reads, for a LLaMA; or a run YAML of MindFormers
            with run_mode train or finetune.
        output: the new YAML. Where it needs the sizes of a model without a name, they go to a config.json beside it.
        command: that the msllm YAML is for; one of MindFormers says it itself.
        compute_dtype: of the matrix products, in a MindFormers YAML.
        device: in a MindFormers YAML; for CPU it leaves out the operators that only Ascend has.
    """
    from msllm.conversion.yaml_files import read_yaml

    values = read_yaml(source)
    if len({"model", "runner_config", "parallel_config", "train_dataset", "run_mode"} & values.keys()) > 1:
        _to_msllm(source, Path(output))
    else:
        _to_mindformers(values, source, output, command, compute_dtype, device)


def _to_mindformers(values: dict[str, Any], source: str, output: str, command: str, dtype: Any, device: Any) -> None:
    from msllm.conversion.mindformers import to_run_yaml
    from msllm.conversion.yaml_files import write_yaml

    converted, lost = to_run_yaml(_run_from_options(values, source, command), dtype, device)
    write_yaml(output, converted, "MindFormers 1.9.0, of msllm convert-yaml.")
    if lost:
        log.warning("MindFormers has no key for %s: kept under msllm, which it skips", ", ".join(lost))
    print(
        f"saved {output}; see that train_dataset.data_loader.dataset_dir has what MindFormers reads: MindRecord files "
        f"with input_ids"
    )


def _to_msllm(source: str, output: Path) -> None:
    from msllm.conversion.mindformers import from_run_yaml
    from msllm.conversion.mindformers.run import preset_of
    from msllm.conversion.yaml_files import write_yaml
    from msllm.files import write_json

    run, lost = from_run_yaml(source)
    command = "pretrain" if run.task == "train" else "finetune"
    values = _options(run)
    if "model" not in values and command == "finetune":
        raise UserError(f"{source}: load_checkpoint is empty, and msllm finetune starts from a model; fill it in")
    if "model" not in values:
        name = preset_of(run.model)
        if name is None:
            name = str(output.with_suffix(".config.json"))
            write_json(name, run.model.to_dict())
        values["config_name"] = name
    cards = f", on {run.parallel.world} cards under msrun" if run.parallel.world > 1 else ""
    write_yaml(output, values, f"msllm {command} --config {output}{cards}")
    if lost:
        log.warning("no option of msllm %s says what these keys of %s do: %s", command, source, ", ".join(lost))
    print(f"saved {output}; try it: msllm {command} --config {output} --data DATA --output FOLDER{cards}")


def _known(command: str) -> dict[str, Any]:
    """Returns the options of a command with their defaults; those of training among them."""
    function = _function(command)
    options = {name: option.default for name, option in inspect.signature(function).parameters.items()}
    return options | {field.name: field.default for field in dataclasses.fields(TrainingArguments)}


def _function(command: str) -> Callable:
    from msllm.commands.finetune import finetune
    from msllm.commands.pretrain import pretrain

    return {"pretrain": pretrain, "finetune": finetune}[command]


def _run_from_options(values: Mapping[str, Any], source: str, command: str) -> "Run":
    """Returns the run that a YAML of a command describes."""
    from msllm.conversion.mindformers import Run
    from msllm.conversion.yaml_files import Yaml
    from msllm.models.presets import config_of

    known = _known(command)
    for key in values:
        if key not in known or key == "training":
            raise UserError(
                f"{source}: unknown key {key}{nearest(str(key), known)}; msllm {command} --help lists the options"
            )
    yaml, names = Yaml(values, source), {field.name for field in dataclasses.fields(TrainingArguments)}
    training = Yaml({key: value for key, value in values.items() if key in names}, source)
    parallel = ParallelConfig(**yaml.fields("parallel", ParallelConfig))
    weights, name = (yaml.get(key, str) for key in ("model", "config_name"))
    if weights is None and name is None:
        raise UserError(f"{source} says no model; add config_name (a name such as llama2-7b) or model (a folder)")
    task, resume = "train" if command == "pretrain" else "finetune", yaml.get("resume", str) is not None
    rest = {"model": weights} if resume and weights else {}  # its own checkpoints stand in that place of the YAML
    taken = {"model", "config_name", "data", "output", "eval_data", "resume", "workers", "parallel", _LENGTHS[task]}
    return Run(
        model=config_of(weights or name),
        training=TrainingArguments(**training.fields("", TrainingArguments)),
        parallel=parallel.for_workers(yaml.get("workers", int) or max(parallel.world, parallel.model_degree)),
        task=task,
        data=yaml.get("data", str, ""),
        output=yaml.get("output", str, "./output"),
        eval_data=yaml.get("eval_data", str),
        weights=None if resume else weights,
        length=yaml.get(_LENGTHS[task], int, known[_LENGTHS[task]]),
        resume=resume,
        options={key: value for key, value in values.items() if key not in taken | names} | rest,
    )


def _options(run: "Run") -> dict[str, Any]:
    """Returns the YAML of a command for a run, without the model's sizes: what differs from the defaults."""
    values: dict[str, Any] = {"data": run.data} if run.data else {}
    values["output"] = run.output
    values |= {"model": run.weights} if run.weights else {}
    values |= {"eval_data": run.eval_data} if run.eval_data else {}
    values |= {_LENGTHS[run.task]: run.length} if run.length else {}
    values |= {"resume": "auto"} if run.resume else {}
    values |= run.options | _changed(run.training, TrainingArguments())
    if layout := _changed(run.parallel, ParallelConfig(data=1)):
        values["parallel"] = layout
    return values


def _changed(values: Any, defaults: Any) -> dict[str, Any]:
    before = dataclasses.asdict(defaults)
    return {key: value for key, value in dataclasses.asdict(values).items() if value != before[key]}
