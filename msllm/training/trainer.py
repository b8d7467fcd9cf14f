"""The one training loop."""

import functools
import itertools
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from msllm import data, kernels, signals
from msllm.data.batching import lengths_of, micro_batches, tokens_and_places
from msllm.errors import UserError
from msllm.files import atomic_files, read_json_lines
from msllm.training import checkpoint
from msllm.training.alone import Alone
from msllm.training.arguments import TrainingArguments
from msllm.training.checkpoint import TrainerState
from msllm.training.objective import CAUSAL_LM, Objective
from msllm.training.optimizer import Optimizer
from msllm.training.profile import FOLDER, profile_of
from msllm.training.profile_recording import DATA, OTHER
from msllm.training.report import Report, Silence
from msllm.training.schedule import learning_rate_factor
from msllm.training.step import build_step

_RESULTS = ("log.jsonl", "loss.png")
_PARTS = "parts"  # of the result, before the first worker has put them together


class Trainer:
    """Trains a model, writes checkpoints and a log, and goes on where an earlier run stopped.

    Args:
        model: an nn.Cell; its trainable parameters are trained.
        args: the options.
        train_data: encoded examples, each with input_ids, labels and whatever the objective asks for; ``lengths`` and
            ``checksum`` of a data set that has them spare a look at all its examples.
        output: folder of the result.
        eval_data: as train_data; None turns evaluation off.
        pad_token_id: what fills short rows; None pads with 0.
        objective: how examples become a batch, and the losses of a batch; next-token prediction by default.
        write_model: (folder) -> None, writes what a reader of the result needs; default model.write_files.
        read_model: (folder) -> None, sets the model from a checkpoint; default reads safetensors.
        metrics: () -> figures of the model, such as accuracy, that go to the log with each evaluation.
        workers: of a run of several processes, what msllm.parallel.join returned; None where this is the only one.
        settings: what else changes the losses, such as an adapter's options; a resumed run must have the same.
    """

    def __init__(
        self,
        model,
        args: TrainingArguments,
        train_data: Sequence[Mapping],
        output: str | Path,
        eval_data: Sequence[Mapping] | None = None,
        pad_token_id: int | None = None,
        objective: Objective = CAUSAL_LM,
        write_model: Callable[[Path], None] | None = None,
        read_model: Callable[[Path], None] | None = None,
        metrics: Callable[[], dict[str, float]] | None = None,
        workers=None,
        settings: Mapping | None = None,
    ):
        self.model, self.args, self.train_data, self.eval_data = model, args, train_data, eval_data
        self.output, self.pad_token_id, self.objective = Path(output), pad_token_id, objective
        self.write_model, self.read_model = write_model or model.write_files, read_model or self._read_full_model
        self.metrics, self.workers, self.settings = metrics, workers or Alone(), dict(settings or {})
        self.rank, self.data_world = self.workers.rank, self.workers.data_world
        self._parameters = self.workers.prepare(model, objective, args.jit)
        if not len(train_data):
            raise UserError("there is no training example; give more data")
        # A compiled step takes one shape: every batch gets the length of the longest example.
        fixed = args.jit or self.workers.fixed_shapes
        parts = [part for part in (train_data, eval_data) if fixed and part is not None and len(part)]
        self.fixed_length = max((int(max(lengths_of(part, objective.length))) for part in parts), default=None)
        self.steps_per_epoch = math.ceil(self._batches_per_epoch() / args.gradient_accumulation_steps)
        self.total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        self.warmup = args.warmup_steps or math.ceil(args.warmup_ratio * self.total)
        self.state = TrainerState(fingerprint=self._fingerprint())
        self.report: Report | None = None
        self.profile = profile_of(args, self.output, self.workers)
        self._interrupted = ""

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        """Holds the moments of all trained parameters: made when it is needed, which an evaluation alone has not."""
        a = self.args
        kind = self.workers.optimizers[a.optim]
        return kind(self._parameters, (a.adam_beta1, a.adam_beta2), a.adam_epsilon, a.weight_decay)

    @functools.cached_property
    def step_function(self) -> Callable:
        """One step of the optimiser, see build_step."""
        return build_step(self.workers, self.objective, self.optimizer, self.args.max_grad_norm, self.profile)

    def train(self, resume: str | None = None, overwrite: bool = False) -> TrainerState:
        """Runs to the end and leaves the result in ``output``.

        Args:
            resume: None starts anew; "auto" goes on from the newest checkpoint in ``output``, or starts where there
                is none; a path goes on from that checkpoint.
            overwrite: remove what an earlier run left in ``output``; with "auto", only where that run is at its end or
                was made with other data or options.

        Raises:
            UserError: ``output`` holds another run; the loss is no number; the run was interrupted (a checkpoint
                was saved); a checkpoint of other data or options.
        """
        self.workers.agree(self.state.fingerprint)
        source = checkpoint.source(self.output, resume, overwrite or self.rank > 0)  # the first worker refuses
        if source is not None and overwrite and resume == "auto" and (reason := self._cannot_resume(source)):
            self._tell(f"{reason}: starting from the first step")
            source = None
        elif source is None and resume == "auto":
            self._tell(f"{self.output} holds no checkpoint: starting from the first step")
        self.workers.barrier()  # all have looked before the first one empties the folder
        if source is None:
            self.profile.check(self.total)
            if self.rank == 0:
                self._empty_output()
        kernels.set_seed(self.args.seed + self.workers.random_offset)  # workers drop out differently
        ms.set_seed(self.args.seed)
        if source is not None:
            self._restore(source)
            self.profile.check(self.total - self.state.step)
            self._tell(f"going on from {source}, after step {self.state.step} of {self.total}")
        elif self.eval_data is not None:
            self.evaluate(batches=2)  # a mistake in the data or a lack of memory shows now, not after an epoch
        self.report = (Report if self.rank == 0 else Silence)(self.output, self.total, self.state.step)
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
            with signals.wait():
                self._finish()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.report.close()
            self.workers.close()
        return self.state

    def _finish(self) -> None:
        """Leaves the result in the output folder."""
        self.workers.settle()
        if self.args.load_best_model_at_end and self.state.best_step is not None:
            self._read(self.output / f"checkpoint-{self.state.best_step}")
        self.model.set_train(False)
        if self.workers.sharded:
            self.workers.write_whole(self.output / _PARTS, self._write_result)
        elif self.rank == 0:
            self._write_result()

    def _write_result(self) -> None:
        with atomic_files(self.output) as tmp:
            self.write_model(tmp)

    def _loop(self) -> None:
        self.model.set_train(True)
        groups = self._groups()
        while self.state.step < self.total:
            with self.profile.step(self.state.step + 1):
                self._step(groups)

    def _step(self, groups: Iterator[list[dict[str, np.ndarray]]]) -> None:
        """One step of the optimiser, and what is due after it."""
        args, span = self.args, self.profile.span
        with span(DATA):
            group = next(groups)
        rate = args.learning_rate * learning_rate_factor(
            args.lr_scheduler_type, self.state.step, self.warmup, self.total
        )
        with signals.wait():
            with span(DATA):
                pieces = [piece for batch in group for piece in micro_batches(batch, self.workers.micro_batches)]
                pieces = [self.objective.to_device(piece) for piece in pieces]
            means, norm = self.step_function(pieces, rate)
        step, loss = self.state.step + 1, self.objective.total(means)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"loss {loss} and gradient norm {norm} at step {step}, learning rate {rate:.3g}: "
                f"training stopped, {self._last_checkpoint()}; lower learning_rate or add warm-up"
            )
        self.state.step = step
        entry = None
        if step % args.logging_steps == 0 or step == self.total:
            entry = {
                "epoch": round(step / self.steps_per_epoch, 4),
                **self._figures(means),
                "learning_rate": rate,
                "grad_norm": norm,
            }
        tokens, places = map(sum, zip(*map(tokens_and_places, group)))
        self.profile.batch(tokens, places)
        self.report.step(step, self.data_world * tokens, entry, loss)
        with signals.wait():
            with span(OTHER):
                improved = self._evaluate_if_due()
            stop = self._stop()
            due = args.save_steps and step % args.save_steps == 0 and step < self.total
            if due or improved or stop:
                with span(OTHER):
                    self._save()
        if stop and step < self.total:
            raise UserError(
                f"stopped by {stop} after step {step} of {self.total}; saved "
                f"{self.output / f'checkpoint-{step}'}; go on with the same command and --resume auto"
            )

    def _stop(self) -> str:
        """Returns what interrupted this run, or "": the same for all workers, who stop at one step."""
        if self.workers.stop(bool(self._interrupted)):
            return self._interrupted or "a signal to another worker"
        return ""

    def _groups(self) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yields the micro-batches of each optimiser step from the current step on, epoch after epoch."""
        size = self.args.gradient_accumulation_steps
        epoch, done = divmod(self.state.step, self.steps_per_epoch)
        while True:
            group = []
            for batch in self._batches(self.train_data, self.args.per_device_train_batch_size, epoch, done * size):
                group.append(batch)
                if len(group) == size:
                    yield group
                    group = []
            if group:
                yield group
            epoch, done = epoch + 1, 0

    def _batches(self, examples, batch_size: int, epoch: int, start: int = 0, shuffle: bool = True) -> Iterator[dict]:
        """Yields this worker's numpy batches of an epoch, from batch ``start`` on."""
        return data.batches(
            examples,
            batch_size * self.data_world,
            epoch=epoch,
            start=start,
            shuffle=shuffle,
            seed=self.args.seed,
            pad_token_id=self.pad_token_id,
            group_by_length=self.args.group_by_length and shuffle,
            max_tokens=self.args.train_batch_tokens if shuffle else 0,
            rank=self.workers.data_rank,
            world=self.data_world,
            pad_to_multiple_of=self.fixed_length or self.workers.length_multiple,
            collate=self.objective.collate,
            length=self.objective.length,
        )

    def _batches_per_epoch(self) -> int:
        args = self.args
        lengths = lengths_of(self.train_data, self.objective.length) if args.train_batch_tokens else self.train_data
        size = args.per_device_train_batch_size * self.data_world
        return len(data.batch_indices(lengths, size, max_tokens=args.train_batch_tokens))

    def evaluate(self, batches: int | None = None) -> dict[str, float]:
        """Returns the mean losses over the evaluation data, or its first ``batches`` batches: see _figures."""
        self.workers.settle()
        self.model.set_train(False)
        total, count = 0.0, 0.0
        order = self._batches(self.eval_data, self.args.per_device_eval_batch_size, 0, shuffle=False)
        for batch in itertools.islice(order, batches):
            tensors, targets = self.objective.to_device(batch)
            tensors, targets = self.workers.local(tensors, self.objective.counts(targets))
            total, count = total + self.workers.evaluate(tensors), count + targets
        total, count = self.workers.sum_terms(total), self.workers.sum_array(count)
        figures = self._figures(total / np.maximum(1, count))
        if batches is None and self.metrics is not None:
            figures |= self.metrics()
        self.model.set_train(True)
        return figures

    def _figures(self, means: np.ndarray) -> dict[str, float]:
        """Names the whole loss, and its terms where there are several."""
        terms = dict(zip(self.objective.terms, map(float, means))) if len(means) > 1 else {}
        return {"loss": self.objective.total(means), **terms}

    def _evaluate_if_due(self) -> bool:
        """Evaluates where the options say so; returns whether this is the best loss so far."""
        step, every = self.state.step, self.args.eval_steps
        if self.eval_data is None or not (step == self.total or (every and step % every == 0)):
            return False
        figures = self.evaluate()
        loss = figures["loss"]
        self.report.write({"step": step, **{f"eval_{name}": value for name, value in figures.items()}})
        self.report.say(f"step {step}  evaluation " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        worse = not math.isfinite(loss) or (self.state.best_loss is not None and loss >= self.state.best_loss)
        if not self.workers.any(not worse):  # all workers save, or none: rounding may differ between them
            return False
        self.state.best_loss, self.state.best_step = loss, step
        return step < self.total or self.args.load_best_model_at_end

    def _save(self) -> None:
        self.workers.settle()
        self.state.rng_state = kernels.get_rng_state()
        if self.workers.sharded:
            info = {"step": self.state.step, "optimizer_step": self.optimizer.step_count}
            self.workers.save(self.output / f"checkpoint-{self.state.step}", self.optimizer, info)
        if self.rank == 0:
            self.report.sync()
            if self.workers.sharded:
                checkpoint.finish(self.output, self.state)
            else:
                checkpoint.save(self.output, self.state, self.optimizer.state_dict(), self.write_model)
            checkpoint.prune(self.output, self.args.save_total_limit, self.state.best_step)
        self.workers.barrier()  # the first one to leave ends them all, and others read what was saved

    def _tell(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr)

    def _empty_output(self) -> None:
        checkpoint.clear(self.output)
        for folder in (_PARTS, FOLDER):
            checkpoint.remove(self.output / folder)
        for name in _RESULTS:
            (self.output / name).unlink(missing_ok=True)
        with atomic_files(self.output):
            pass  # a folder that cannot be written shows now

    def _cannot_resume(self, source: Path) -> str | None:
        """Returns why the run that left a checkpoint is not to be gone on with, None where it is."""
        log = self.output / "log.jsonl"
        if log.is_file() and any(entry.get("step") == self.total for entry in read_json_lines(log)[-2:]):
            return f"{self.output} holds a run that is at its end"
        return self._difference(source, checkpoint.load(source)[0])

    def _difference(self, path: Path, state: TrainerState) -> str | None:
        """Returns the first option in which a checkpoint is of another run than this one."""
        mine, theirs = self._fingerprint(), state.fingerprint
        for key in [*theirs, *(k for k in mine if k not in theirs)]:
            if mine.get(key) != theirs.get(key):
                return f"{path} was written with {key} = {theirs.get(key)}, now it is {mine.get(key)}"
        return None

    def _restore(self, path: Path) -> None:
        state, optimizer = checkpoint.load(path)
        if difference := self._difference(path, state):
            raise UserError(f"{difference}; resume with the same value, or start anew in another output")
        self.state = state
        if self.workers.sharded:
            self.optimizer.step_count = self.workers.load(path, self.optimizer)["optimizer_step"]
            return
        self.read_model(path)
        try:
            self.optimizer.load_state_dict(optimizer)
        except KeyError as e:
            raise UserError(
                f"{path} holds no optimiser state for {e.args[0]}; it belongs to another model or "
                f"another choice of trained parameters"
            ) from None
        offset = self.workers.random_offset
        kernels.set_rng_state({**state.rng_state, "seed": state.rng_state["seed"] + offset})

    def _read(self, path: Path) -> None:
        """Sets the weights from a checkpoint of this run."""
        if self.workers.sharded:
            self.workers.load(path)
        else:
            self.read_model(path)

    def _read_full_model(self, path: Path) -> None:
        from msllm.models.weights import read_weights

        self.model.load(read_weights(path), path)

    def _fingerprint(self) -> dict:
        """What a resumed run must share with the run that it continues, or its losses would differ."""
        args = self.args
        return {
            "data": checkpoint.checksum(self.train_data),
            "seed": args.seed,
            "steps": self.total,
            # Of all workers together: their number has no effect.
            "batch size": 0 if args.train_batch_tokens else args.per_device_train_batch_size * self.data_world,
            "train_batch_tokens": args.train_batch_tokens,
            "optim": args.optim,
            "adam_beta1": args.adam_beta1,
            "adam_beta2": args.adam_beta2,
            "adam_epsilon": args.adam_epsilon,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "group_by_length": args.group_by_length,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": args.lr_scheduler_type,
            "warmup": self.warmup,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            **self._model_settings(),
            **self.settings,
        }

    def _model_settings(self) -> dict:
        """What the model's configuration says: two models of equal shapes may still compute differently."""
        config = getattr(self.model, "config", None)
        values = config.to_dict() if hasattr(config, "to_dict") else {}
        return json.loads(json.dumps({f"{key} of the model": value for key, value in values.items()}))

    def _last_checkpoint(self) -> str:
        found = checkpoint.find(self.output)
        return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved yet"

    def _on_signal(self, number, frame) -> None:
        self._interrupted = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
        signal.signal(number, signal.default_int_handler)  # a second Ctrl-C does not wait for the step
