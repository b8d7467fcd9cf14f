"""MindSpore's own auto-parallel front end on a machine without Ascend cards: everything that depends on its insides.

python -m msllm.parallel.auto.simulate REQUEST.json RESULT.json

The front end asks which device it compiles for, how many cards there are, and which of them this is. Here it is told
"Ascend", and the numbers of the request; it then cuts every operator and puts in every collective, checks the graph,
and stops where it would open the device. What follows on a real card (fusing operators, planning memory, choosing
kernels) does not run, so nothing is said of a peak of memory or of seconds. A process does this once and ends: its
MindSpore believes in cards that are not there.

Works with the MindSpore 2.9.0 for Linux on x86-64, whose symbols are named below.
"""

import contextlib
import ctypes
import functools
import gc
import inspect
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from msllm.errors import UserError

VERSION = "2.9.0"
_LIBRARY = "libmindspore_core.so"
_GET_INSTANCE = "_ZN9mindspore9MsContext11GetInstanceEv"
_GET_PARAM = "_ZNK9mindspore9MsContext9get_paramISsEERKT_NS_10MsCtxParamE"
_ASSIGN = "_ZNSs6assignEPKc"
_VALIDATED = "Create device context failed"  # the first thing that needs a card, after the graph was checked


def check_platform() -> None:
    """Raises UserError where the front end cannot be told so."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise UserError(
            f"the compile check knows MindSpore's insides on Linux on x86-64, this is {sys.platform} on "
            f"{platform.machine()}; run it on such a machine, or use msllm parallel plan"
        )
    version = metadata.version("mindspore")
    if version != VERSION:
        raise UserError(
            f"the compile check knows the insides of MindSpore {VERSION}, found {version}; install mindspore=={VERSION}"
        )
    import mindspore

    path = Path(mindspore.__file__).parent / "lib" / _LIBRARY
    library = ctypes.CDLL(str(path))
    missing = [name for name in (_GET_INSTANCE, _GET_PARAM) if not hasattr(library, name)]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}, which the compile check needs; install mindspore=={VERSION} anew")


def environment(graphs: str | Path) -> dict[str, str]:
    """Returns what the process must have in its environment: the checked graph alone is written, into a folder."""
    return {
        # Millions of small pieces of graphs come and go: kept in the thread's own cache, they take a sixth less time.
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=60000:glibc.malloc.tcache_max=4096:glibc.malloc.mxfast=0:"
        "glibc.malloc.top_pad=268435456:glibc.malloc.trim_threshold=4294967296",
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_SAVE_GRAPHS_PATH": str(graphs),
        "MS_DEV_DUMP_IR_PASSES": "validate",
        "GLOG_v": "4",  # a search tries many strategies and reports as an error each one that does not fit
        "MSLLM_KERNELS": "stock",
    }


@contextlib.contextmanager
def _target(name: str) -> Iterator[None]:
    """While open, MindSpore's context names another device: the string itself is written over."""
    import mindspore as ms

    core = ctypes.CDLL(str(Path(ms.__file__).parent / "lib" / _LIBRARY))
    strings = ctypes.CDLL("libstdc++.so.6")
    instance = getattr(core, _GET_INSTANCE)
    instance.argtypes, instance.restype = [ctypes.c_void_p], ctypes.c_void_p
    pointer = (ctypes.c_void_p * 2)()  # a std::shared_ptr, returned through its address
    instance(ctypes.addressof(pointer))
    parameter = getattr(core, _GET_PARAM)
    parameter.argtypes, parameter.restype = [ctypes.c_void_p, ctypes.c_uint], ctypes.c_void_p
    target = parameter(pointer[0], int(ms._c_expression.ms_ctx_param.device_target))
    assign = getattr(strings, _ASSIGN)
    assign.argtypes, assign.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
    assign(target, name.encode())
    try:
        yield
    finally:
        assign(target, b"CPU")


def _pretend(world: int, rank: int) -> None:
    """Lets operators of communication know the sizes of groups that nobody has opened; groups are named "size-..."."""
    import mindspore.ops.operations.comm_ops as operators
    import mindspore.parallel._tensor as slices  # of constants
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    def size(group=None) -> int:
        named = re.match(r"(\d+)-", str(group))
        return int(named[1]) if named else world

    operators.get_group_size = size
    operators.get_rank = slices.get_rank = lambda group=None: rank % size(group)
    auto_parallel_context()._context_handle.set_hccl_test_avaible(True)  # spelt so


def plain_gradients_of_collectives() -> None:
    """Lets MindSpore differentiate its collectives without the code that watches gradients.

    What it writes for each parameter asks whether norms are to be printed, files to be written and values to be
    sampled, which nobody wants here; it parses and examines that anew for every parameter, for a quarter of the time.
    The graphs are the same: tests compare.
    """
    from mindspore.ops._grad_experimental import grad_comm_ops
    from mindspore.ops._grad_experimental.grad_base import bprop_getters
    from mindspore.ops.operations.comm_ops import AllGather, AllReduce, ReduceOp, ReduceScatter

    whole = {AllGather: grad_comm_ops.get_bprop_all_gather, AllReduce: grad_comm_ops.get_bprop_all_reduce}

    def named(operator, prefix: str, like):
        if getattr(like, "instance_name", None):
            operator.set_prim_instance_name(prefix + like.instance_name)
        return operator

    @bprop_getters.register(AllGather)
    def of_all_gather(gather):
        values = gather.get_attr_dict()
        if values["mean_flag"]:
            return whole[AllGather](gather)
        scatter = ReduceScatter(ReduceOp.SUM, values["group"]).add_prim_attr("fusion", values["fusion"])
        scatter = named(scatter, "grad_", gather)

        def bprop(x, out, dout):
            return (scatter(dout),)

        return bprop

    @bprop_getters.register(AllReduce)
    def of_all_reduce(reduce):
        if reduce.op != ReduceOp.SUM:
            return whole[AllReduce](reduce)
        backward = named(AllReduce(ReduceOp.SUM, reduce.group), "grad", reduce)

        def bprop(x, out, dout):
            return (backward(dout),)

        return bprop


def _parse_once() -> None:
    """Lets MindSpore, which parses the layers of all blocks one by one, read the source of each class once."""
    inspect.getsourcelines = functools.cache(inspect.getsourcelines)
    gc.disable()  # what a parser makes is garbage at the end alone


def compile_front_end(request: Mapping) -> dict:
    """Compiles one card's program; see the module.

    Args:
        request: ``parallel``, values of a ParallelConfig with ``data`` filled in; ``rank``; ``config``, values of a
            model's config.json; ``length`` and ``rows``, the tokens of an example and the examples of a card in a step;
            ``dtype``, name of MindSpore's type of activations; ``fused``, see Cuts (default true); ``training``,
            values of TrainingArguments (default a weight decay); ``strategy``, a file that MindSpore writes.

    Returns:
        seconds, peak_bytes of this process, and the whole shapes of the trained parameters by name.

    Raises:
        UserError: with the first line of MindSpore's message where it does not compile.
    """
    import mindspore as ms
    import numpy as np

    from msllm.models.pretrained import model_class
    from msllm.parallel.auto.cuts import Cuts
    from msllm.parallel.auto.program import build, set_context
    from msllm.parallel.config import ParallelConfig
    from msllm.training.arguments import TrainingArguments

    start = time.perf_counter()
    config = ParallelConfig(**request["parallel"])
    set_context(config, request["rank"], request["strategy"])
    _pretend(config.world, request["rank"])
    plain_gradients_of_collectives()
    _parse_once()
    cls = model_class(request["config"])
    model = cls(cls.config_class.from_dict(request["config"]))
    shapes = {p.name: tuple(p.shape) for p in model.trainable_params()}
    cuts = Cuts.of(config, getattr(ms, request["dtype"]), request.get("fused", True))
    training = TrainingArguments(**request.get("training", {"weight_decay": 0.1}))
    program, step = build(model, config, training, cuts)
    rows = request["rows"] * (1 if config.search == "none" else config.data)
    batch = ms.Tensor(np.zeros((rows, request["length"]), np.int32))
    from mindspore.common.api import _cell_graph_executor

    with program.compiling(), _target("Ascend"):
        try:
            _cell_graph_executor.compile(step, batch, batch)
        except Exception as e:
            if _VALIDATED not in str(e):
                raise UserError(f"MindSpore does not compile this layout: {_first_line(e)}") from None
    return {
        "seconds": time.perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "shapes": shapes,
    }


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\n")]
    return lines[0] if lines else type(error).__name__


def main(request: str, result: str) -> None:
    """The process: reads a request, writes a result, or the error."""
    try:
        found = compile_front_end(json.loads(Path(request).read_text()))
    except UserError as e:
        found = {"error": str(e)}
    Path(result).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # the end of a process with cards that are not there is not MindSpore's strength


if __name__ == "__main__":
    main(*sys.argv[1:])
