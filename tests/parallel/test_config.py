"""The configuration: what does not fit is refused with values that do, and what fits passes."""

import dataclasses
import itertools
import re

import pytest

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig

MODEL = {"heads": 12, "kv_heads": 4, "layers": 6, "inner": 40, "vocab_size": 67, "experts": 8}


def refused(match: str, call, *args, **kwargs) -> str:
    """The message of a UserError, which is one line that ``match`` fits as a whole."""
    with pytest.raises(UserError) as e:
        call(*args, **kwargs)
    message = str(e.value)
    assert re.fullmatch(match, message), message
    return message


def proposed(message: str, before: str = "use ") -> list[int]:
    """The numbers that a message proposes behind some words: "use 1, 2 or 4"."""
    found = re.search(before + r"((?:\d+, )*\d+(?: or \d+)?)", message)
    assert found, message
    return [int(n) for n in re.findall(r"\d+", found[1])]


def config(**values) -> ParallelConfig:
    """One whose data-parallel degree is known, as for_workers leaves it."""
    return ParallelConfig(**{"data": 1, **values})


def check(layout: ParallelConfig, **sizes) -> None:
    layout.check(**{**MODEL, **sizes})


def test_data_parallelism_takes_what_is_left():
    layout = ParallelConfig(tensor=2, pipeline=2, micro_batches=4)
    filled = layout.for_workers(12)
    assert filled == dataclasses.replace(layout, data=3) and layout.data == 0
    assert (filled.world, filled.model_degree) == (12, 4)
    assert filled.for_workers(12) == filled
    assert ParallelConfig(sequence=4, expert=2).for_workers(8).data == 2
    assert ParallelConfig().for_workers(1) == ParallelConfig(data=1)


@pytest.mark.parametrize("name", ["tensor", "pipeline", "sequence", "expert", "micro_batches", "chunks"])
@pytest.mark.parametrize("value", [0, -2])
def test_degrees_below_one_are_refused(name, value):
    layout = ParallelConfig(**{name: value})
    refused(rf"parallel\.{name} is {value}, expected 1 or more; leave it out for 1", layout.for_workers, 4)
    ParallelConfig(**{name: 1}).for_workers(4)


def test_data_below_zero_is_refused():
    message = r"parallel\.data is -1, expected 1 or more; leave it out for what is left"
    refused(message, ParallelConfig(data=-1).for_workers, 4)
    assert ParallelConfig().for_workers(4).data == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer", 4, r"parallel\.optimizer is 4, expected one of 0, 1, 2, 3; change it"),
        (
            "attention",
            "rings",
            r"parallel\.attention is 'rings' \(did you mean 'ring'\?\), expected .* ring, heads.*",
        ),
        ("schedule", "1b1f", r"parallel\.schedule is '1b1f'.*, expected one of gpipe, 1f1b, interleaved; change it"),
        ("cut", "even", r"parallel\.cut is 'even', expected one of layers, cost; change it"),
    ],
)
def test_unknown_choices_are_refused(name, value, message):
    refused(message, ParallelConfig(**{name: value}).for_workers, 4)


@pytest.mark.parametrize(
    ("degrees", "workers", "product", "values"),
    [
        ({"tensor": 2, "pipeline": 2}, 7, "2 x 2 x 1 = 4", [4, 8]),
        ({"tensor": 4}, 3, "4 x 1 x 1 = 4", [4]),
        ({"tensor": 3, "sequence": 2}, 16, "3 x 1 x 2 = 6", [12, 18]),
    ],
)
def test_workers_that_the_degrees_do_not_divide_are_refused(degrees, workers, product, values):
    layout = ParallelConfig(**degrees)
    message = refused(
        rf"{workers} workers cannot be divided by tensor x pipeline x sequence = {product}; use .* workers, or other "
        rf"degrees",
        layout.for_workers,
        workers,
    )
    assert proposed(message) == values
    for value in values:
        assert layout.for_workers(value).world == value


def test_degrees_of_other_workers_are_refused():
    layout = ParallelConfig(data=3, tensor=2)
    start = r"data x tensor x pipeline x sequence = 3 x 2 x 1 x 1 = 6, and there are "
    message = refused(start + r"8 workers; use 6 workers or parallel\.data 4", layout.for_workers, 8)
    assert layout.for_workers(*proposed(message)[:1]) == layout
    assert dataclasses.replace(layout, data=4).for_workers(8).data == 4
    message = refused(start + r"7 workers; use 6 workers, or other degrees", layout.for_workers, 7)
    assert proposed(message) == [6]


@pytest.mark.parametrize(("data", "expert", "values"), [(6, 4, [1, 2, 3, 6]), (24, 9, [4, 6, 8, 12]), (1, 2, [1])])
def test_experts_that_data_parallel_workers_cannot_share_are_refused(data, expert, values):
    layout = ParallelConfig(tensor=2, expert=expert)
    message = refused(
        rf"parallel\.expert = {expert} does not divide parallel\.data = {data}: .*; use an expert degree of .*",
        layout.for_workers,
        2 * data,
    )
    assert proposed(message, "degree of ") == values
    for value in values:
        assert dataclasses.replace(layout, expert=value).for_workers(2 * data).data == data


@pytest.mark.parametrize(
    ("tensor", "sizes", "what", "values"),
    [
        (5, {}, "12 attention heads, 2", [1, 2, 4]),
        (3, {}, "4 key-value heads, 1", [1, 2, 4]),
        (4, {"inner": 42}, "42 feed-forward units, 2", [1, 2]),
        (24, {"heads": 64, "kv_heads": 64, "inner": 256}, "64 attention heads, 16", [4, 8, 16, 32]),
        (12, {"kv_heads": 7}, "7 key-value heads, 7", [1]),
    ],
)
def test_tensor_degrees_divide_heads_and_width(tensor, sizes, what, values):
    message = refused(
        rf"parallel\.tensor = {tensor} does not divide the {what} would be left over; use .*",
        check,
        config(tensor=tensor),
        **sizes,
    )
    assert proposed(message) == values
    for value in values:
        check(config(tensor=value), **sizes)


def test_each_tensor_worker_has_a_token_of_the_vocabulary():
    message = refused(
        r"parallel\.tensor = 4 is more than the 3 tokens of the vocabulary; use 1 or 2",
        check,
        config(tensor=4),
        vocab_size=3,
    )
    for value in proposed(message):
        check(config(tensor=value), vocab_size=3)
    check(config(tensor=4), vocab_size=4)


@pytest.mark.parametrize(
    ("tensor", "sequence", "sizes", "what", "values"),
    [
        (2, 4, {}, "12 attention heads", [1, 2]),
        (2, 3, {}, "4 key-value heads", [1, 2]),
        (2, 5, {"heads": 48, "kv_heads": 48}, "48 attention heads", [2, 3, 4, 6]),
        (1, 8, {}, "12 attention heads", [1, 2, 4]),
    ],
)
def test_exchanging_tokens_for_heads_needs_heads(tensor, sequence, sizes, what, values):
    layout = config(tensor=tensor, sequence=sequence, attention="heads")
    message = refused(
        rf"parallel\.tensor x sequence = {tensor} x {sequence} do not divide the {what}, as attention heads needs; "
        rf"use --parallel\.attention ring, or a sequence of .*",
        check,
        layout,
        **sizes,
    )
    assert proposed(message, "a sequence of ") == values
    for value in values:
        check(dataclasses.replace(layout, sequence=value), **sizes)
    check(dataclasses.replace(layout, attention="ring"), **sizes)


def test_stages_need_layers():
    start = r"6 layers cannot fill parallel\.pipeline x chunks = "
    message = refused(start + r"7 x 1 = 7 stages; use at most 6 of them", check, config(pipeline=7))
    check(config(pipeline=proposed(message, "at most ")[0]))
    interleaved = {"schedule": "interleaved", "micro_batches": 6}
    message = refused(
        start + r"2 x 4 = 8 stages; use at most 6 of them", check, config(pipeline=2, chunks=4, **interleaved)
    )
    check(config(pipeline=2, chunks=proposed(message, "at most ")[0] // 2, **interleaved))


@pytest.mark.parametrize(("pipeline", "chunks"), [(1, 2), (2, 1), (1, 1)])
def test_the_interleaved_schedule_needs_stages_and_chunks(pipeline, chunks):
    layout = config(pipeline=pipeline, chunks=chunks, schedule="interleaved", micro_batches=2)
    instead = "1f1b and chunks 1" if chunks > 1 else "1f1b"
    refused(
        rf"the interleaved schedule needs parallel\.chunks and pipeline of 2 or more, they are {chunks} and "
        rf"{pipeline}; use more, or --parallel\.schedule {instead}",
        check,
        layout,
    )
    other = {"schedule": "1f1b", **({"chunks": 1} if "chunks 1" in instead else {})}
    check(dataclasses.replace(layout, **other))
    check(dataclasses.replace(layout, pipeline=2, chunks=2))


@pytest.mark.parametrize(("pipeline", "micro_batches", "values"), [(2, 5, [4, 6]), (3, 2, [3])])
def test_the_interleaved_schedule_needs_a_multiple_of_stages(pipeline, micro_batches, values):
    layout = config(pipeline=pipeline, chunks=2, schedule="interleaved", micro_batches=micro_batches)
    message = refused(
        rf"the interleaved schedule needs a multiple of parallel\.pipeline = {pipeline} micro_batches, not "
        rf"{micro_batches}; use .*",
        check,
        layout,
    )
    assert proposed(message) == values
    for value in values:
        check(dataclasses.replace(layout, micro_batches=value))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_chunks_belong_to_the_interleaved_schedule(schedule):
    layout = config(pipeline=2, chunks=3, schedule=schedule, micro_batches=2)
    refused(
        rf"parallel\.chunks is 3 and the schedule is {schedule}; leave chunks out, or use --parallel\.schedule "
        rf"interleaved",
        check,
        layout,
    )
    check(dataclasses.replace(layout, chunks=1))
    check(dataclasses.replace(layout, schedule="interleaved"))


def test_experts_need_a_model_that_has_some():
    layout = config(data=2, expert=2)
    refused(r"parallel\.expert is 2 and the model has no experts; leave it out", check, layout, experts=0)
    check(config(data=2), experts=0)
    check(layout)


@pytest.mark.parametrize(("data", "expert", "values"), [(12, 3, [1, 2, 4]), (24, 6, [1, 2, 4, 8]), (5, 5, [1])])
def test_expert_degrees_divide_experts(data, expert, values):
    layout = ParallelConfig(expert=expert).for_workers(data)
    message = refused(
        rf"parallel\.expert = {expert} does not divide the 8 experts, {8 % expert} would be left over; use .*",
        check,
        layout,
    )
    assert proposed(message) == values
    for value in values:
        check(ParallelConfig(expert=value).for_workers(data))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_data_parallel_worker_has_nobody_to_share_with(stage):
    layout = config(tensor=2, optimizer=stage)
    refused(
        rf"parallel\.optimizer is {stage}, parallel\.data and parallel\.sequence are 1: there is nobody to share with; "
        "use 0",
        check,
        layout,
    )
    check(dataclasses.replace(layout, optimizer=0))


@pytest.mark.parametrize(("stage", "expert"), [(2, 1), (3, 1), (3, 2)])
def test_stages_share_no_gradients(stage, expert):
    layout = config(data=2, pipeline=2, expert=expert, optimizer=stage)
    refused(
        rf"parallel\.optimizer is {stage} and parallel\.pipeline 2: each micro-batch would move all gradients; use "
        rf"--parallel\.optimizer 1",
        check,
        layout,
    )
    check(dataclasses.replace(layout, optimizer=1))


def test_experts_share_no_parameters():
    layout = config(data=2, expert=2, optimizer=3)
    refused(
        r"parallel\.optimizer is 3 and parallel\.expert 2: the experts of a block have other owners than the rest of "
        r"it; use --parallel\.optimizer 2",
        check,
        layout,
    )
    check(dataclasses.replace(layout, optimizer=2))


def test_norms_are_split_among_several():
    layout = config(data=2, split_norms=True)
    refused(
        r"parallel\.split_norms is set and parallel\.tensor is 1: there is nobody to share with; leave it out",
        check,
        layout,
    )
    check(dataclasses.replace(layout, split_norms=False))
    check(dataclasses.replace(layout, tensor=2))


@pytest.mark.parametrize(
    ("degrees", "length", "pieces", "words", "values"),
    [
        ({"sequence": 2}, 30, 4, r"parallel\.sequence", [28, 32]),
        ({"sequence": 2, "attention": "heads"}, 31, 2, r"parallel\.sequence", [30, 32]),
        ({"tensor": 4, "split_norms": True}, 3, 4, r"parallel\.split_norms", [4]),
        ({"sequence": 3, "tensor": 2, "split_norms": True}, 32, 12, r"parallel\.sequence with .*split_norms", [24, 36]),
    ],
)
def test_examples_are_cut_into_like_pieces(degrees, length, pieces, words, values):
    layout = config(**degrees)
    assert layout.length_multiple == pieces
    message = refused(
        rf"examples of {length} tokens cannot be split into {pieces} pieces, as {words} needs; use a length of .*",
        check,
        layout,
        length=length,
    )
    assert proposed(message, "a length of ") == values
    for value in values:
        check(layout, length=value)
    check(layout)  # what comes in batches of many lengths is padded


@pytest.mark.parametrize(
    ("degrees", "batch", "batches", "counts"),
    [
        ({"micro_batches": 4}, 10, [8, 12], [1, 2, 5, 10]),
        ({"micro_batches": 40}, 96, [80, 120], [16, 24, 32, 48]),
        ({"micro_batches": 8}, 3, [8], [1, 3]),
        ({"micro_batches": 8, "pipeline": 4, "schedule": "interleaved", "chunks": 2}, 12, [8, 16], [4, 12]),
        ({"micro_batches": 4, "pipeline": 2, "schedule": "interleaved", "chunks": 2}, 9, [8, 12], None),
    ],
)
def test_batches_are_cut_into_like_micro_batches(degrees, batch, batches, counts):
    layout = config(**degrees)
    message = refused(
        rf"a batch of {batch} examples cannot be cut into {layout.micro_batches} micro-batches; use a batch of .*",
        check,
        layout,
        batch=batch,
        layers=8,
    )
    assert proposed(message, "use a batch of ") == batches
    for value in batches:
        check(layout, batch=value, layers=8)
    if counts is None:
        assert "micro_batches of" not in message
        return
    assert proposed(message, r"or parallel\.micro_batches of ") == counts
    for value in counts:
        check(dataclasses.replace(layout, micro_batches=value), batch=batch, layers=8)


def test_layouts_that_fit_pass():
    """Every combination, and not one of them is stopped; each divides the workers as it says."""
    degrees = itertools.product((1, 2, 3), (1, 2, 4), (1, 2, 3), (1, 2), (0, 1), ("ring", "heads"), (False, True))
    count = 0
    for data, tensor, pipeline, sequence, optimizer, attention, split in degrees:
        layout = ParallelConfig(
            tensor=tensor,
            pipeline=pipeline,
            sequence=sequence,
            optimizer=optimizer if data > 1 else 0,
            expert=data if data < 3 else 1,
            attention=attention if tensor * sequence <= 4 else "ring",
            split_norms=split and tensor > 1,
            micro_batches=6,
            chunks=2 if pipeline > 1 else 1,
            schedule="interleaved" if pipeline > 1 else "gpipe",
            cut="cost",
            recompute=True,
        ).for_workers(data * tensor * pipeline * sequence)
        check(layout, length=layout.length_multiple * 3, batch=12)
        assert layout.data == data and layout.world == data * layout.model_degree
        count += 1
    assert count == 432


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_and_parameters_are_shared_without_stages(stage):
    check(config(data=4, tensor=2, sequence=2, optimizer=stage), length=16, batch=3)


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({}, "one worker"),
        ({"data": 2, "tensor": 2, "optimizer": 1}, "dp2 tp2 zero1"),
        ({"data": 4, "sequence": 2, "tensor": 8, "pipeline": 3, "expert": 2}, "dp4 sp2 tp8 pp3 ep2"),
        ({"data": 0, "micro_batches": 8, "recompute": True}, "one worker"),
    ],
)
def test_words(degrees, words):
    assert str(config(**degrees)) == words
