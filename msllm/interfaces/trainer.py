"""The Trainer that readers of MindFormers know: a task and a model in; train, finetune, evaluate, predict.

It opens models, reads data and chooses the loss; what runs is msllm.training.Trainer, the one loop.
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from msllm.errors import UserError, nearest
from msllm.interfaces import pipelines
from msllm.interfaces.arguments import check_recompute, lora_of, parallel_config, read_options, refuse_others
from msllm.interfaces.tasks import TASKS, Data, Model, Task, name_of, task_class
from msllm.layers import use_core
from msllm.models.config import ModelConfig
from msllm.models.presets import config_of
from msllm.models.pretrained import model_class
from msllm.parallel import Server, join
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import check_layout, sizes
from msllm.training import checkpoint
from msllm.training import trainer as loop
from msllm.training.arguments import TrainingArguments
from msllm.training.checkpoint import TrainerState
from msllm.tuning.config import LoraConfig
from msllm.tuning.training import build_trainer

_WRITING = ("text-generation", "summarization", "translation")  # their losses are those of tokens
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_RESUME = ("resume_from_checkpoint", "resume_training", "do_eval")


class Trainer:
    """Trains, fine-tunes and evaluates a model on a task, and predicts with it.

    Args:
        task: text_generation (pre-training and instructions), summarization, fill_mask (BERT's pre-training),
            translation, text_classification, token_classification, question_answering, similarity or multiple_choice.
        model: Hugging Face folder; for new random weights a preset of msllm.models.presets, a configuration, a
            config.json or the mapping in it; or a model.
        args: TrainingArguments, a mapping of their values, or a YAML file of them; the two latter may have output_dir
            and overwrite_output_dir too.
        train_dataset, eval_dataset: what the commands read for the task (paths, names on the hub), or a list of such or
            of records; see the task's class in msllm.interfaces.language_tasks and labelled_tasks. The second may lie
            in the folder of the first, validation.bin beside train.bin.
        tokenizer: a Tokenizer or its folder; None: the model's folder, or that of the data.
        optimizers: "adamw" or "lamb".
        pet_method: "lora", or a LoraConfig, trains adapters of models that predict the next token.
        model_name: the same as ``model``, as MindFormers calls it.
        output_dir: folder of the result; else that of ``args``, or "output".
        parallel: how the run is spread over the workers of msrun, or of msllm.parallel.run_job.
        options: of the task, the fields of its class, such as max_length.

    Attributes:
        model: what was given; after training, what was trained.
        tokenizer: what was given, or was opened with the model.

    Raises:
        UserError: an unknown task, model or option; an argument that is not supported, with what is there instead.
    """

    def __init__(
        self,
        task: str = "text_generation",
        model: Model | Mapping | None = None,
        args: TrainingArguments | Mapping | str | Path | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer=None,
        optimizers: str | None = None,
        pet_method: str | LoraConfig | None = None,
        model_name: str | None = None,
        output_dir: str | Path | None = None,
        parallel: ParallelConfig | None = None,
        **options,
    ):
        self.task, self._task = _task(task, options)
        if model is not None and model_name is not None:
            raise UserError("model and model_name were given, and they are the same; give one of them")
        self.model = _model(model if model is not None else model_name)
        chosen = read_options(args, output_dir, optimizers)
        self.args, self.output, self.overwrite = chosen.training, chosen.output, chosen.overwrite
        self.train_dataset, self.eval_dataset, self.tokenizer = train_dataset, eval_dataset, tokenizer
        self.lora = lora_of(pet_method)
        if self.lora is not None and not self._task.adapts:
            raise UserError(f"pet_method is given, and {self.task} trains whole models here; leave it out")
        self.parallel = parallel or ParallelConfig()

    def train(
        self,
        train_checkpoint: str | Path | bool | None = None,
        resume_from_checkpoint: str | Path | bool | None = None,
        resume_training: bool | None = None,
        do_eval: bool = True,
        **others,
    ) -> TrainerState | None:
        """Trains the model from where it is: new random weights, those of its folder, or of a checkpoint.

        Args:
            train_checkpoint: a folder of weights to start from; True takes the output folder's newest.
            resume_from_checkpoint: a checkpoint of an interrupted run, which goes on as if nothing had been; True takes
                the output folder's newest, or starts where there is none.
            resume_training: True is resume_from_checkpoint True.
            do_eval: evaluate while training, where there are data for it.

        Returns:
            The state at the end; None in a process that serves parameters.

        Raises:
            UserError: no data; what msllm.training.Trainer raises.
        """
        refuse_others(others, ["train_checkpoint", *_RESUME])
        return self._run(self._source(train_checkpoint), _resume(resume_from_checkpoint, resume_training), do_eval)

    def finetune(
        self,
        finetune_checkpoint: str | Path | bool | None = None,
        resume_from_checkpoint: str | Path | bool | None = None,
        resume_training: bool | None = None,
        do_eval: bool = True,
        **others,
    ) -> TrainerState | None:
        """As ``train``, from weights that were trained before.

        Args:
            finetune_checkpoint: their folder; True takes the output folder's newest; None: those of the model.
            resume_from_checkpoint, resume_training, do_eval: see train.

        Raises:
            UserError: there are no weights; as train.
        """
        refuse_others(others, ["finetune_checkpoint", *_RESUME])
        source = self._with_weights(self._source(finetune_checkpoint), "finetune_checkpoint")
        return self._run(source, _resume(resume_from_checkpoint, resume_training), do_eval)

    def evaluate(self, eval_dataset: Any = None, eval_checkpoint: str | Path | bool | None = None, **others) -> dict:
        """Measures the model.

        Args:
            eval_dataset: as the Trainer's; None: the Trainer's.
            eval_checkpoint: a folder of weights; True takes the output folder's newest; None: the model's.

        Returns:
            The mean losses ("loss", and its terms where there are several), for tasks that write "perplexity", and the
            task's figures: ROUGE, BLEU, accuracy, F1 and so on.

        Raises:
            UserError: no data, or no weights.
        """
        refuse_others(others, ["eval_dataset", "eval_checkpoint"])
        source = self._with_weights(self._source(eval_checkpoint), "eval_checkpoint")
        chosen = self._eval_source() if eval_dataset is None else eval_dataset
        if chosen is None:
            raise UserError("eval_dataset is missing; give evaluate, or the Trainer, what to evaluate on")
        network, tokenizer, records = self._open(source, chosen)
        data = self._task.encode(network, tokenizer, records, self.args, 1, training=False)
        pad = tokenizer.pad_token_id
        runner = loop.Trainer(network, data.args, data.examples, self.output, data.examples, pad, data.objective)
        losses = runner.evaluate()
        network.set_train(False)
        if self.task in _WRITING:
            losses["perplexity"] = math.exp(losses.get("lm_loss", losses["loss"]))
        return losses | self._task.figures(network, tokenizer, data)

    def predict(
        self,
        input_data: Any = None,
        predict_checkpoint: str | Path | bool | None = None,
        batch_size: int | None = None,
        **options,
    ) -> list:
        """Predicts by msllm.pipeline.

        Args:
            input_data: an input of the task's pipeline, or a list of them.
            predict_checkpoint: a folder of weights; True takes the output folder's newest; None: the model's.
            batch_size: inputs a forward pass.
            options: of the pipeline.

        Returns:
            The result of each input, a dict, or a list of them where the task has several for one.

        Raises:
            UserError: nothing to predict, no weights, or what the pipeline raises.
        """
        if input_data is None:
            raise UserError("input_data is missing; give an input, or a list of them")
        source = self._with_weights(self._source(predict_checkpoint), "predict_checkpoint")
        size = {} if batch_size is None else {"batch_size": batch_size}
        options = {**self._task.predicting(), **size, **options}
        pipe = pipelines.pipeline(self._task.pipeline, source, self._tokenizer_for(source), **options)
        results = pipe([input_data] if pipe.is_one(input_data) else input_data)
        # A text has one continuation, which the pipeline puts in a list, as transformers does.
        return [result[0] for result in results] if self.task == "text-generation" else results

    def set_parallel_config(self, **values) -> None:
        """Sets how runs are spread, in MindFormers' words; see msllm.interfaces.arguments.parallel_config."""
        known = inspect.signature(parallel_config).parameters
        for name in values:
            if name not in known:
                raise UserError(f"set_parallel_config has no {name}{nearest(name, known)}; it has {', '.join(known)}")
        recompute = self.parallel.recompute
        self.parallel = dataclasses.replace(parallel_config(**values), recompute=recompute)

    def set_recompute_config(
        self,
        recompute: bool = False,
        parallel_optimizer_comm_recompute: bool = False,
        select_recompute: bool = False,
        mp_comm_recompute: bool = True,
        recompute_slice_activation: bool = False,
    ) -> None:
        """Sets whether the backward pass computes blocks again; the others must be as they are."""
        check_recompute(
            parallel_optimizer_comm_recompute=parallel_optimizer_comm_recompute,
            select_recompute=select_recompute,
            mp_comm_recompute=mp_comm_recompute,
            recompute_slice_activation=recompute_slice_activation,
        )
        self.parallel = dataclasses.replace(self.parallel, recompute=recompute)

    def _run(self, source: Model, resume: str | None, do_eval: bool) -> TrainerState | None:
        if self.train_dataset is None:
            raise UserError("train_dataset is missing; give the Trainer what to train on")
        if self.lora is not None and not isinstance(source, str):
            raise UserError(f"adapters name the folder of their model, and this is {name_of(source)}; give its folder")
        checkpoint.source(self.output, resume, self.overwrite)
        workers = join(self.parallel, self.output, resume)
        if isinstance(workers, Server):
            return workers.serve()
        network, tokenizer, records = self._open(source, self.train_dataset)
        self._check_layout(network.config, 1 if workers is None else workers.world)
        world = 1 if workers is None else workers.data_world
        data = self._task.encode(network, tokenizer, records, self.args, world, training=True)
        held_out = self._eval_source() if do_eval else None
        measured = None
        if held_out is not None:
            measured = self._task.encode(
                network, tokenizer, self._task.read(held_out), self.args, world, training=False
            )
        sharded = workers is not None and workers.sharded
        runner = self._runner(network, tokenizer, source, data, measured, workers, sharded)
        try:
            state = runner.train(resume, self.overwrite)
        finally:
            use_core(None)  # what shares the tokens of an example is for this run
        if sharded:  # each worker has a part of the model, the folder the whole
            workers.barrier()
        self.model, self.tokenizer = str(self.output) if sharded else network, tokenizer
        return state

    def _runner(self, network, tokenizer, source, data: Data, measured: Data | None, workers, sharded: bool):
        task = self._task
        more: dict[str, Any] = {}
        if measured is not None and not sharded:  # figures need a whole model
            more["metrics"] = lambda: task.logged(task.figures(network, tokenizer, measured))
        if task.settings() is not None:
            more["settings"] = task.settings()
        return build_trainer(
            network,
            tokenizer,
            source,
            data.examples,
            None if measured is None else measured.examples,
            self.output,
            data.args,
            data.objective,
            self.lora,
            workers,
            **more,
        )

    def _open(self, source: Model, dataset: Any) -> tuple:
        """Returns network, tokenizer and records."""
        self._task.begin(source)
        records = self._task.read(dataset)
        network, tokenizer = self._task.open(source, self._tokenizer_for(source), records, self.args.seed)
        return network, tokenizer, records

    def _tokenizer_for(self, source: Model):
        """Returns the Trainer's tokenizer, or None where weights come from a checkpoint that has its own."""
        files = [Path(source) / name for name in _TOKENIZER] if isinstance(source, str) else []
        return None if source != self.model and any(file.is_file() for file in files) else self.tokenizer

    def _check_layout(self, config: ModelConfig, world: int) -> None:
        spread = self.parallel.for_workers(world)
        if not spread.plain:
            check_layout(spread, self.args, config.model_type, sizes(config), None)

    def _eval_source(self) -> Any:
        if self.eval_dataset is not None or self.train_dataset is None:
            return self.eval_dataset
        return self._task.held_out(self.train_dataset)

    def _source(self, given: str | Path | bool | None) -> Model:
        """Returns where weights come from: a checkpoint that a method was given, or the model."""
        if given is None or given is False:
            return self.model
        if given is not True:
            return str(given)
        found = checkpoint.find(self.output)
        if (self.output / "config.json").is_file():
            return str(self.output)
        if not found:
            raise UserError(f"{self.output} holds no checkpoint; train first, or give the folder of one")
        return str(found[-1])

    def _with_weights(self, source: Model, name: str) -> Model:
        if isinstance(source, ModelConfig):
            raise UserError(f"{name_of(source)} has no trained weights; train it first, or give {name}= a folder")
        return source


def _task(name: str, options: dict) -> tuple[str, Task]:
    if not isinstance(name, str):
        raise UserError(f"task is a {type(name).__name__}, expected its name; the order is Trainer(task, model, args)")
    known = name.strip().lower().replace("_", "-")
    known = pipelines.ALIASES.get(known, known)
    if known not in TASKS:
        raise UserError(f"unknown task {name!r}{nearest(known, TASKS)}; known are {', '.join(TASKS)}")
    kind = task_class(known)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    refuse_others({n: v for n, v in options.items() if n not in names}, names)
    return known, kind(**{n: v for n, v in options.items() if n in names})


def _model(model: Model | Mapping | None) -> Model:
    if model is None:
        raise UserError("model is missing; give a folder, a preset such as gpt2, a configuration or a model")
    if isinstance(model, Mapping):
        return model_class(dict(model), "model").config_class.from_dict(model)
    if isinstance(model, str | Path):
        return str(model) if Path(model).is_dir() else config_of(model)
    if not isinstance(model, nn.Cell | ModelConfig):
        raise UserError(
            f"model is a {type(model).__name__}, expected a folder, a preset such as gpt2, a configuration or a model"
        )
    return model


def _resume(given: str | Path | bool | None, training: bool | None) -> str | None:
    if given is True or (training and not given):
        return "auto"
    return str(given) if given else None
