"""--profile: notes what the steps of a run are busy with.

``profile_split`` divides the time of the steps into parts, ``profile_advice`` says what to change, ``profile_report``
shows and writes both. All times are ns of time.time_ns, the clock of MindSpore's profiler.
"""

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from msllm import kernels, signals
from msllm.errors import UserError
from msllm.kernels.watch import watched
from msllm.training.arguments import TrainingArguments
from msllm.training.profile_operators import read_operators
from msllm.training.profile_recording import Message, Operator, Recording, Step

FOLDER = "profile"  # in the output
WARM_UP = 3  # steps before those that are noted: the first ones reserve memory, start threads and compile
_NOTHING = contextlib.nullcontext()


class Off:
    """A run without --profile: what the loop says of itself is not noted."""

    def check(self, steps: int) -> None:
        """Any number of steps is enough."""

    def step(self, number: int):
        """A block that is one step."""
        return _NOTHING

    def span(self, name: str):
        """A block that is one part of a step."""
        return _NOTHING

    def batch(self, tokens: int, places: int) -> None:
        """What the step trains on."""


class Profile(Off):
    """Notes ``profile_steps`` steps of a run after WARM_UP others, and shows what it found when they are over.

    Args:
        args: options of the run.
        folder: gets operators.csv, trace_view.json, summary.json and step.png, and what MindSpore's profiler wrote.
        workers: see Trainer; each notes its own steps, the first one shows them all.

    It changes nothing that is computed. A run that is broken off meanwhile leaves no profile.
    """

    def __init__(self, args: TrainingArguments, folder: Path, workers):
        self.args, self.folder, self.workers = args, folder, workers
        self._seen, self._recording, self._batch = 0, None, (0, 0)
        self._open = contextlib.ExitStack()

    def check(self, steps: int) -> None:
        """Raises UserError where the run has fewer steps left than are to be noted."""
        if WARM_UP + self.args.profile_steps > steps:
            most = steps - WARM_UP
            advice = f"give at most --profile_steps {most}" if most > 0 else "train longer, or leave out profile"
            raise UserError(
                f"profile_steps is {self.args.profile_steps} and comes after {WARM_UP} steps of warm-up, and the run "
                f"has {steps} steps left; {advice}"
            )

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A block that is one step; see Off."""
        if self._seen == WARM_UP:
            with signals.wait():
                self._start()
        self._seen += 1
        if self._recording is None:
            yield
            return
        start = time.time_ns()
        try:
            yield
        except BaseException:
            self._stop()
            raise
        recording = self._recording
        recording.steps.append(Step(number, start, time.time_ns(), *self._batch))
        with signals.wait():
            self._profiler.step()
            if len(recording.steps) == self.args.profile_steps:
                recording.operators += read_operators(self._raw)
                self._keep()
                self._stop()
                self._finish(recording)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A block that is one part of a step, not inside another; see Off."""
        start = time.time_ns()
        try:
            yield
        finally:
            if self._recording is not None:
                self._recording.spans.append((name, start, time.time_ns()))

    def batch(self, tokens: int, places: int) -> None:
        """What the step trains on: real tokens and all places of this worker's batches."""
        self._batch = tokens, places

    def _start(self) -> None:
        workers = self.workers
        # MindSpore's profiler refuses paths with other than plain letters, which an output may have.
        self._raw = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="msllm-profile-")))
        workers.barrier()
        self._recording = Recording(
            workers.rank, workers.data_rank, socket.gethostname(), time.time_ns(), on_device=kernels.DEVICE != "CPU"
        )
        self._open.enter_context(watched(self._note_kernel))
        workers.watch(self._send)
        self._open.callback(workers.watch, None)
        self._profiler = _mindspore_profiler(self._raw, self.args.profile_steps)
        self._open.callback(self._profiler.stop)

    def _stop(self) -> None:
        self._recording = None
        self._open.close()

    def _keep(self) -> None:
        """Puts what MindSpore's profiler wrote, which tools of its own read, beside the other files."""
        kept = self.folder / "mindspore" / f"rank_{self.workers.rank}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self._raw, kept)

    def _note_kernel(self, name: str, start: int, end: int) -> None:
        self._recording.operators.append(Operator(name, "C++ kernel", start, end))

    def _send(self, operation: str, group: str, channel: str, action):
        start = time.time_ns()
        try:
            return action()
        finally:
            self._recording.messages.append(Message(operation, group, channel, start, time.time_ns()))

    def _finish(self, recording: Recording) -> None:
        from msllm.training.profile_advice import advise
        from msllm.training.profile_report import tell, write
        from msllm.training.profile_split import summarize

        recording.settings = {
            "kernels": kernels.active(),
            "device": kernels.DEVICE,
            **{name: getattr(self.args, name) for name in _SETTINGS},
        }
        recordings = self.workers.objects(recording)
        if self.workers.rank:
            return
        summary = summarize(recordings)
        summary["advice"] = advise(summary)
        write(self.folder, summary, recordings)
        tell(self.folder, summary, sys.stderr)


_SETTINGS = (
    "per_device_train_batch_size",
    "train_batch_tokens",
    "gradient_accumulation_steps",
    "group_by_length",
    "jit",
    "eval_steps",
    "save_steps",
)


def profile_of(args: TrainingArguments, output: Path, workers) -> Off:
    """Returns what notes the steps of a run, as its options say."""
    return Profile(args, output / FOLDER, workers) if args.profile else Off()


def _mindspore_profiler(folder: Path, steps: int):
    """Starts MindSpore's profiler for so many steps."""
    from mindspore.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    device = kernels.DEVICE != "CPU"
    profiler = profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.NPU] if device else [])],
        schedule=schedule(wait=0, warmup=1, active=steps, repeat=1, skip_first=0),
        # What it finds on a CPU can be read as it is; a device's needs to be put in order first.
        on_trace_ready=tensorboard_trace_handler(str(folder), analyse_flag=device),
    )
    profiler.step()  # its own warm-up
    return profiler
