"""The one training loop."""

import itertools
import math
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from msllm import data, kernels, signals
from msllm.errors import UserError
from msllm.files import atomic_files
from msllm.training import checkpoint
from msllm.training.arguments import TrainingArguments
from msllm.training.checkpoint import TrainerState
from msllm.training.losses import causal_lm_loss, to_device
from msllm.training.optimizer import AdamW
from msllm.training.report import Report
from msllm.training.schedule import learning_rate_factor
from msllm.training.step import build_step

_RESULTS = ("log.jsonl", "loss.png")


class Trainer:
    """Trains a model, writes checkpoints and a log, and goes on where an earlier run stopped.

    Args:
        model: an nn.Cell; its trainable parameters are trained.
        args: the options.
        train_data: encoded examples, each with input_ids and labels; see msllm.data.collate.
        output: folder of the result.
        eval_data: as train_data; None turns evaluation off.
        pad_token_id: what fills short rows; None pads with 0.
        loss: (model, tensors) -> summed loss; see causal_lm_loss.
        write_model: (folder) -> None, writes what a reader of the result needs; default model.write_files.
        read_model: (folder) -> None, sets the model from a checkpoint; default reads safetensors.
    """

    def __init__(
        self,
        model,
        args: TrainingArguments,
        train_data: Sequence[Mapping],
        output: str | Path,
        eval_data: Sequence[Mapping] | None = None,
        pad_token_id: int | None = None,
        loss: Callable = causal_lm_loss,
        write_model: Callable[[Path], None] | None = None,
        read_model: Callable[[Path], None] | None = None,
    ):
        self.model, self.args, self.train_data, self.eval_data = model, args, train_data, eval_data
        self.output, self.pad_token_id, self.loss = Path(output), pad_token_id, loss
        self.write_model, self.read_model = write_model or model.write_files, read_model or self._read_full_model
        self.optimizer = AdamW(
            model.trainable_params(), (args.adam_beta1, args.adam_beta2), args.adam_epsilon, args.weight_decay
        )
        self.step_function = build_step(model, loss, self.optimizer, args.max_grad_norm, args.jit)
        if not train_data:
            raise UserError("there is no training example; give more data")
        examples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(len(train_data) / examples_per_step)
        # A compiled step takes one shape: every batch gets the length of the longest example.
        self.fixed_length = max(len(e["input_ids"]) for e in [*train_data, *(eval_data or ())]) if args.jit else None
        self.total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        self.warmup = args.warmup_steps or math.ceil(args.warmup_ratio * self.total)
        self.state = TrainerState(fingerprint=self._fingerprint())
        self.report: Report | None = None
        self._interrupted = ""

    def train(self, resume: str | None = None, overwrite: bool = False) -> TrainerState:
        """Runs to the end and leaves the result in ``output``.

        Args:
            resume: None starts anew; "auto" goes on from the newest checkpoint in ``output``, or starts where there
                is none; a path goes on from that checkpoint.
            overwrite: remove what an earlier run left in ``output``.

        Raises:
            UserError: ``output`` holds another run; the loss is no number; the run was interrupted (a checkpoint
                was saved); a checkpoint of other data or options.
        """
        source = self._prepare_output(resume, overwrite)
        kernels.set_seed(self.args.seed)
        ms.set_seed(self.args.seed)
        if source is not None:
            self._restore(source)
            print(f"going on from {source}, after step {self.state.step} of {self.total}", file=sys.stderr)
        elif self.eval_data is not None:
            self.evaluate(batches=2)  # a mistake in the data or a lack of memory shows now, not after an epoch
        self.report = Report(self.output, self.total, self.state.step)
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.report.close()
        if self.args.load_best_model_at_end and self.state.best_step is not None:
            self.read_model(self.output / f"checkpoint-{self.state.best_step}")
        self.model.set_train(False)
        with atomic_files(self.output) as tmp:
            self.write_model(tmp)
        return self.state

    def _loop(self) -> None:
        args, report = self.args, self.report
        self.model.set_train(True)
        groups = self._groups()
        while self.state.step < self.total:
            group = next(groups)
            rate = args.learning_rate * learning_rate_factor(
                args.lr_scheduler_type, self.state.step, self.warmup, self.total
            )
            with signals.wait():
                loss, norm = self.step_function([to_device(batch) for batch in group], rate)
            step = self.state.step + 1
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
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                }
            report.step(step, sum(int(b["attention_mask"].sum()) for b in group), entry, loss)
            with signals.wait():
                improved = self._evaluate_if_due()
            due = args.save_steps and step % args.save_steps == 0 and step < self.total
            if due or improved or self._interrupted:
                with signals.wait():
                    self._save()
            if self._interrupted and step < self.total:
                raise UserError(
                    f"stopped by {self._interrupted} after step {step} of {self.total}; saved "
                    f"{self.output / f'checkpoint-{step}'}; go on with the same command and --resume auto"
                )

    def _groups(self) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yields the micro-batches of each optimiser step from the current step on, epoch after epoch."""
        size = self.args.gradient_accumulation_steps
        epoch, done = divmod(self.state.step, self.steps_per_epoch)
        while True:
            group = []
            for batch in data.batches(
                self.train_data,
                self.args.per_device_train_batch_size,
                epoch=epoch,
                start=done * size,
                seed=self.args.seed,
                pad_token_id=self.pad_token_id,
                group_by_length=self.args.group_by_length,
                pad_to_multiple_of=self.fixed_length,
            ):
                group.append(batch)
                if len(group) == size:
                    yield group
                    group = []
            if group:
                yield group
            epoch, done = epoch + 1, 0

    def evaluate(self, batches: int | None = None) -> float:
        """Returns the mean loss per target over the evaluation data, or its first ``batches`` batches."""
        self.model.set_train(False)
        total, count = 0.0, 0
        order = data.batches(
            self.eval_data,
            self.args.per_device_eval_batch_size,
            shuffle=False,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=self.fixed_length,
        )
        for batch in itertools.islice(order, batches):
            tensors, targets = to_device(batch)
            total += float(self.loss(self.model, tensors).asnumpy())
            count += targets
        self.model.set_train(True)
        return total / max(1, count)

    def _evaluate_if_due(self) -> bool:
        """Evaluates where the options say so; returns whether this is the best loss so far."""
        step, every = self.state.step, self.args.eval_steps
        if self.eval_data is None or not (step == self.total or (every and step % every == 0)):
            return False
        loss = self.evaluate()
        self.report.write({"step": step, "eval_loss": loss})
        self.report.say(f"step {step}  evaluation loss {loss:.4f}")
        if self.state.best_loss is not None and loss >= self.state.best_loss:
            return False
        self.state.best_loss, self.state.best_step = loss, step
        return step < self.total or self.args.load_best_model_at_end

    def _save(self) -> None:
        self.state.rng_state = kernels.get_rng_state()
        self.report.sync()
        checkpoint.save(self.output, self.state, self.optimizer.state_dict(), self.write_model)
        checkpoint.prune(self.output, self.args.save_total_limit, self.state.best_step)

    def _prepare_output(self, resume: str | None, overwrite: bool) -> Path | None:
        """Returns the checkpoint to go on from; refuses a folder that is in use."""
        found = checkpoint.find(self.output)
        if resume not in (None, "auto"):
            return Path(resume)
        if resume == "auto" and found:
            return found[-1]
        if resume == "auto":
            print(f"{self.output} holds no checkpoint: starting from the first step", file=sys.stderr)
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output} is a file, expected a folder for the result; choose another output")
        used = sorted(p.name for p in self.output.iterdir()) if self.output.is_dir() else []
        if used and not overwrite and not (resume == "auto" and "config.json" not in used):
            raise UserError(
                f"{self.output} is not empty (it holds {', '.join(used[:4])}); choose another output, "
                f"or add --overwrite, or --resume auto to go on from a checkpoint"
            )
        for path in found:
            shutil.rmtree(path)
        for name in _RESULTS:
            (self.output / name).unlink(missing_ok=True)
        with atomic_files(self.output):
            pass  # a folder that cannot be written shows now
        return None

    def _restore(self, path: Path) -> None:
        state, optimizer = checkpoint.load(path)
        mine = self._fingerprint()
        for key, value in state.fingerprint.items():
            if mine.get(key) != value:
                raise UserError(
                    f"{path} was written with {key} = {value}, now it is {mine.get(key)}; "
                    f"resume with the same value, or start anew in another output"
                )
        self.read_model(path)
        try:
            self.optimizer.load_state_dict(optimizer)
        except KeyError as e:
            raise UserError(
                f"{path} holds no optimiser state for {e.args[0]}; it belongs to another model or "
                f"another choice of trained parameters"
            ) from None
        kernels.set_rng_state(state.rng_state)
        self.state = state

    def _read_full_model(self, path: Path) -> None:
        from msllm.models.weights import read_weights

        self.model.load(read_weights(path), path)

    def _fingerprint(self) -> dict:
        """What a resumed run must share with the run that it continues, or its losses would differ."""
        args = self.args
        return {
            "data": _checksum(self.train_data),
            "seed": args.seed,
            "steps": self.total,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "group_by_length": args.group_by_length,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": args.lr_scheduler_type,
            "warmup": self.warmup,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
        }

    def _last_checkpoint(self) -> str:
        found = checkpoint.find(self.output)
        return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved yet"

    def _on_signal(self, number, frame) -> None:
        self._interrupted = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
        signal.signal(number, signal.default_int_handler)  # a second Ctrl-C does not wait for the step


def _checksum(examples: Sequence[Mapping]) -> str:
    """Names the content of a data set: the number of examples and a checksum of their ids and labels."""
    crc = 0
    for example in examples:
        for key in ("input_ids", "labels"):
            crc = zlib.crc32(np.asarray(example[key], np.int32).tobytes(), crc)
    return f"{len(examples)} examples, {crc:08x}"
