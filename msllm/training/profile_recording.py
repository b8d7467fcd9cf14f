"""What a worker notes while a run is profiled. All times are ns of time.time_ns, the clock of MindSpore's profiler."""

import dataclasses
from collections.abc import Mapping

# The spans of a step, none inside another. OTHER is what it does beside training: evaluation and checkpoints.
SPANS = DATA, FORWARD_BACKWARD, OPTIMIZER, OTHER = "data", "forward_backward", "optimizer", "other"


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimiser step on one worker: from the request for its batch until the loop is done with it.

    Attributes:
        number: from 1.
        start, end: ns.
        tokens: real ones, of this worker.
        places: of tokens in the padded batches of this worker.
    """

    number: int
    start: int
    end: int
    tokens: int
    places: int


@dataclasses.dataclass(frozen=True)
class Operator:
    """A call of one: of MindSpore's or of the C++ kernels'; ``collective`` where it moves data between devices."""

    name: str
    source: str
    start: int
    end: int
    collective: bool = False


@dataclasses.dataclass(frozen=True)
class Message:
    """A call that sends to other workers or receives from them.

    Attributes:
        operation: such as all-reduce; of two workers, "send", "receive", and "delivery", the end of a send that went
            on beside other work.
        group: name of the group.
        channel: names those that take part; what they do there they do in the same order.
    """

    operation: str
    group: str
    channel: str
    start: int
    end: int


@dataclasses.dataclass
class Recording:
    """What one worker notes.

    Attributes:
        rank, data_rank: of the worker; those of one data_rank read the same examples.
        host: its machine.
        met: when it left the barrier before the first of the steps.
        settings: what advice depends on, see Profile.
        steps, spans, operators, messages: in the order of their ends; a span is (name, start, end).
        on_device: whether the operators ran on a device of their own, beside this process.
    """

    rank: int = 0
    data_rank: int = 0
    host: str = ""
    met: int = 0
    settings: Mapping = dataclasses.field(default_factory=dict)
    steps: list[Step] = dataclasses.field(default_factory=list)
    spans: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    operators: list[Operator] = dataclasses.field(default_factory=list)
    messages: list[Message] = dataclasses.field(default_factory=list)
    on_device: bool = False
