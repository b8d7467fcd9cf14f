"""The graphs that auto-parallel makes for cards, computed in numpy: they train as one process does.

More layouts: python -m tests.parallel.auto_numbers
"""

import dataclasses

import numpy as np
import pytest

from msllm.errors import UserError
from msllm.parallel.auto import simulate
from tests.parallel import auto_numbers
from tests.parallel.graph_interpreter import Card, run_step
from tests.parallel.graph_text import Graph, Node, Use, read


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A case of data, tensor and optimizer parallelism, and the folders of its cards' graphs."""
    try:
        simulate.check_platform()
    except UserError as e:
        pytest.skip(str(e))
    (case,) = (c for c in auto_numbers.cases() if (c.family, c.name) == ("gpt2", "optimizer 1"))
    case = dataclasses.replace(case, values={"n_layer": 1})
    return case, auto_numbers.compile_cards(case, tmp_path_factory.mktemp("cards"))


def test_cards_train_as_one_process_does(compiled):
    found = auto_numbers.compare(*compiled)
    assert found.worst < auto_numbers.BOUND, found


def test_a_wrong_graph_is_noticed(compiled, monkeypatch):
    """Of two cards' gradients, the larger one is taken instead of the sum."""

    def read_wrongly(folder):
        graph = read(folder)
        nodes = [n for n in graph.nodes if n.kind == "ReduceScatter"]
        assert len(nodes) > 10
        for node in nodes:
            node.attributes["op"] = "max"
        return graph

    monkeypatch.setattr(auto_numbers, "read", read_wrongly)
    found = auto_numbers.compare(*compiled)
    assert found.gradient > 0.01 and found.norm > 0.01 and found.parameter > 0.001, found


def node(number, kind, *inputs, **attributes):
    return Node(str(number), kind, "", inputs, attributes, None, None)


def cards(*nodes_per_card):
    """Cards of one parameter w, whose programs return their last node."""
    graphs = [Graph({"w": (np.float32, (2,))}, nodes, Use(nodes[-1].number)) for nodes in nodes_per_card]
    return [Card(graph, {"w": np.array([rank, 10.0 * rank], np.float32)}) for rank, graph in enumerate(graphs)]


def collective(number, kind, of, members, op="sum"):
    return node(number, kind, Use(of), group_rank_ids=members, op=op)


def test_what_cards_exchange():
    def program(rank):
        pair = (0, 1) if rank < 2 else (2, 3)
        return [
            collective(0, "AllReduce", "w", pair),
            collective(1, "AllGather", "w", pair),
            collective(2, "ReduceScatter", "1", (0, 1, 2, 3)),
            collective(3, "AllReduce", "w", (0, 1, 2, 3), "max"),
            node(4, "MakeTuple", Use("0"), Use("2"), Use("3")),
        ]

    # The gathered ones are 0 0 1 10 and 2 20 3 30, each on two cards.
    found = run_step(cards(*map(program, range(4))))
    assert [summed.tolist() for summed, _, _ in found] == [[1, 10], [1, 10], [5, 50], [5, 50]]
    assert [part.tolist() for _, part, _ in found] == [[4], [40], [8], [80]]
    assert [most.tolist() for _, _, most in found] == [[3, 30]] * 4


def test_what_stages_send_and_parameters_keep():
    sender = [
        node(0, "Send", Use("w"), dest_rank=1, sr_tag=0),
        node(1, "Assign", Use("w"), np.float32([7, 8]), "UMonad[U]"),
        node(2, "Send", Use("w"), dest_rank=1, sr_tag=1),
        node(3, "Load", Use("w"), "UMonad[U]"),
    ]
    receiver = [
        node(0, "Receive", "UMonad[U]", src_rank=0, sr_tag=1),
        node(1, "Receive", "UMonad[U]", src_rank=0, sr_tag=0),
        node(2, "AssignAdd", Use("w"), Use("0"), "UMonad[U]"),
        node(3, "MakeTuple", Use("2"), Use("1")),
    ]
    pair = cards(sender, receiver)
    kept, (added, first) = run_step(pair)
    assert kept.tolist() == [7, 8] and first.tolist() == [0, 0] and added.tolist() == [8, 18]
    assert pair[0].state["w"].tolist() == [7, 8] and pair[1].state["w"].tolist() == [8, 18]


@pytest.mark.parametrize(
    ("mine", "other", "message"),
    [
        ([collective(0, "AllReduce", "w", (0, 1))], [collective(0, "AllGather", "w", (0, 1))], "wait for each other"),
        ([collective(0, "AllReduce", "w", (0, 1))], [node(0, "Load", Use("w"))], "wait for each other"),
        ([node(0, "Send", Use("w"), dest_rank=1, sr_tag=0)], [node(0, "Load", Use("w"))], "never received"),
        ([collective(0, "AllReduce", "w", (1,))], [collective(0, "AllReduce", "w", (1,))], "not for it"),
        ([node(0, "Conjure", Use("w"))], [node(0, "Load", Use("w"))], "operator Conjure"),
    ],
)
def test_programs_that_cannot_be_run(mine, other, message):
    with pytest.raises(RuntimeError, match=message):  # a NotImplementedError is one
        run_step(cards(mine, other))


def test_text_is_read_and_what_depends_on_left_out_constants_is_not_known(tmp_path):
    lines = [
        "# Total subgraphs: 1",
        "%para1_w: <Ref[Tensor[Float32]], (2), ref_key=w, is_parameter>  :  has_default",
        "subgraph @main() {",
        "  %0(CNode_1) = PrimFunc_Add(%para1_w, Tensor(shape=[2], dtype=Float32, value=[ 1.50000000e+00,",
        " -2.00000000e+00])) {instance name: add} primitive_attrs: {keep: Bool(1), pairs: ((2, 1), (I64(3)))}",
        "      : (<Ref[Tensor[Float32]], (2)>, <Tensor[Float32], (2), value=...>) -> (<Tensor[Float32], (2)>)",
        "  Return(%0)",
    ]
    (tmp_path / "1_validate_2.ir").write_text("\n".join(lines))
    graph = read(tmp_path)
    (add,) = graph.nodes
    assert graph.parameters == {"w": (np.float32, (2,))} and add.instance == "add" and add.inputs[0] == Use("w")
    assert add.attributes == {"keep": True, "pairs": ((2, 1), (3,))} and add.shape == (2,)
    assert run_step([Card(graph, {"w": np.ones(2, np.float32)})])[0].tolist() == [2.5, -1.0]
    text = "\n".join(lines).replace("[ 1.50000000e+00,\n -2.00000000e+00]", "[...]")
    (tmp_path / "1_validate_2.ir").write_text(text)
    assert np.isnan(run_step([Card(read(tmp_path), {"w": np.ones(2, np.float32)})])[0]).all()
