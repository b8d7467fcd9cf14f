"""The book's Transformer cell beside torch.nn.Transformer: values, gradients, keys and values, masks, experts."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

torch = pytest.importorskip("torch")

import msllm  # noqa: E402
from msllm import kernels  # noqa: E402
from msllm.errors import UserError  # noqa: E402

TOLERANCE = 1e-5  # of the largest value, in fp32
B, S, T, D, H, F = 2, 6, 5, 16, 2, 24
SIZES = {"hidden_size": D, "batch_size": B, "ffn_hidden_size": F, "src_seq_length": S, "tgt_seq_length": T}


def cell(**more):
    """A cell whose parameters, biases and norms too, are far from their initial values."""
    ms.set_seed(0)
    network = msllm.Transformer(**{**SIZES, "encoder_layers": 2, "decoder_layers": 2, **more}).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in network.get_parameters():
        noise = rng.normal(size=parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(parameter.asnumpy() + 0.2 * noise))
    return network


@pytest.fixture(scope="module")
def inputs():
    """Encoder inputs and masks, decoder inputs and masks, memory mask; the masks are as (row, key) as can be."""
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=(B, length, D)).astype(np.float32) for length in (S, T)]
    masks = [(rng.random((B, *shape)) < 0.6).astype(np.float32) for shape in ((S, S), (T, T), (T, S))]
    for mask in masks:
        mask[:, :, 0] = 1  # a query without any key is torch's NaN
    masks[1] *= np.tril(np.ones((T, T), np.float32))
    return vectors[0], masks[0], vectors[1], masks[1], masks[2]


def layer_weights(layer, cross: bool) -> dict:
    """The weights of a layer under the names of torch.nn.TransformerDecoderLayer (or EncoderLayer)."""
    own = {name: torch.tensor(p.asnumpy()) for name, p in layer.parameters_and_names()}
    names = {"self_attn.in_proj.": "self_attn.in_proj_", "feed_forward.": ""}
    names |= {f"norms.{i}.": f"norm{i + 1}." for i in range(3)}
    theirs = {}
    for name, value in own.items():
        for mine, other in names.items():
            name = name.replace(mine, other)
        theirs[name] = value
    if cross:
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"multihead_attn.{part}.{kind}") for part in ("q_proj", "kv_proj")]
            theirs[f"multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    return theirs


def torch_twin(network, activation):
    """torch.nn.Transformer with the weights of a pre-norm cell, without the norms that end its stacks."""
    options = {"norm_first": True, "batch_first": True, "dropout": 0.0, "activation": activation}
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(D, H, F, **options), len(network.encoder), enable_nested_tensor=False
    )
    decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(D, H, F, **options), len(network.decoder))
    model = torch.nn.Transformer(D, H, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    for stack, mine in ((encoder, network.encoder), (decoder, network.decoder)):  # it has drawn its weights by now
        for theirs, ours in zip(stack.layers, mine):
            theirs.load_state_dict(layer_weights(ours, stack is decoder))
    return model.double().eval()


def torch_output(model, inputs):
    x, x_mask, y, y_mask, memory_mask = (torch.tensor(value, dtype=torch.float64) for value in inputs)
    hidden = [(mask == 0).repeat_interleave(H, 0) for mask in (x_mask, y_mask, memory_mask)]
    return model(x.requires_grad_(), y, src_mask=hidden[0], tgt_mask=hidden[1], memory_mask=hidden[2]), x


def close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


def tensors(values):
    return [Tensor(value) for value in values]


@pytest.mark.parametrize(
    ("act", "activation"),
    [
        ("gelu", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", "relu"),
        (nn.GELU(approximate=False), "gelu"),
    ],
    ids=["gelu", "relu", "cell"],
)
def test_equals_torch_under_any_mask_with_its_gradients(inputs, act, activation):
    network = cell(hidden_act=act, num_heads=H)
    twin = torch_twin(network, activation)
    theirs, x = torch_output(twin, inputs)
    close(network(*tensors(inputs))[0].asnumpy(), theirs.detach())
    weights = np.random.default_rng(2).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.tensor(weights)).sum().backward()
    parameters, weights = list(network.trainable_params()), Tensor(weights)
    grads = ms.grad(lambda *values: (network(*values)[0] * weights).sum(), 0, parameters)(*tensors(inputs))
    close(grads[0].asnumpy(), x.grad)
    names = [p.name for p in parameters]
    place = names.index("decoder.1.multihead_attn.q_proj.weight")
    close(grads[1][place].asnumpy(), twin.decoder.layers[1].multihead_attn.in_proj_weight.grad[:D])


def test_the_residual_may_be_the_norm_which_is_post_norm_with_a_norm_in_front(inputs):
    network = cell(post_layernorm_residual=True, decoder_layers=0, hidden_act="relu")
    first, second = (layer_weights(layer, False) for layer in network.encoder)
    x = torch.nn.functional.layer_norm(torch.tensor(inputs[0]), (D,), first["norm1.weight"], first["norm1.bias"])
    hidden = (torch.tensor(inputs[1]) == 0).repeat_interleave(H, 0)
    # The norm behind a layer is the one that the next layer begins with; behind the last there is none.
    for weights, after in ((first, second), (second, None)):
        layer = torch.nn.TransformerEncoderLayer(D, H, F, 0.0, batch_first=True)
        behind = {f"norm2.{kind}": after[f"norm1.{kind}"] for kind in ("weight", "bias")} if after else {}
        inner = {f"norm1.{kind}": weights[f"norm2.{kind}"] for kind in ("weight", "bias")}
        layer.load_state_dict(weights | inner | behind)
        if after is None:
            layer.norm2 = torch.nn.Identity()
        x = layer.train()(x, src_mask=hidden)  # in training mode, torch's fused path for inference does not run
    output, present, nothing = network(*tensors(inputs[:2]))
    close(output.asnumpy(), x.detach())
    assert nothing is None and len(present) == 2


def test_keys_and_values_are_those_of_each_layer(inputs):
    network = cell()
    output, encoder, decoder = network(*tensors(inputs))
    assert output.shape == (B, T, D) and len(encoder) == len(decoder) == 2
    C = D // H
    assert [x.shape for x in encoder[0]] == [(B, H, C, S), (B, H, S, C)]
    assert [x.shape for x in decoder[1]] == [(B, H, C, T), (B, H, T, C), (B, H, C, S), (B, H, S, C)]
    weights = layer_weights(network.encoder[0], False)
    x = torch.nn.functional.layer_norm(torch.tensor(inputs[0]), (D,), weights["norm1.weight"], weights["norm1.bias"])
    qkv = torch.nn.functional.linear(x, weights["self_attn.in_proj_weight"], weights["self_attn.in_proj_bias"])
    k, v = qkv[..., D : 2 * D].reshape(B, S, H, C), qkv[..., 2 * D :].reshape(B, S, H, C)
    close(encoder[0][0].asnumpy(), k.permute(0, 2, 3, 1))
    close(encoder[0][1].asnumpy(), v.permute(0, 2, 1, 3))


def test_flat_inputs_come_out_flat_and_no_mask_hides_nothing(inputs):
    network = cell()
    ones = [np.ones_like(value) for value in inputs]
    with_masks = network(*tensors((inputs[0], ones[1], inputs[2], ones[3], ones[4])))[0].asnumpy()
    flat = network(Tensor(inputs[0].reshape(-1, D)), None, Tensor(inputs[2].reshape(-1, D)))[0].asnumpy()
    close(flat, with_masks.reshape(-1, D))


def test_a_query_without_a_key_gets_nothing_from_attention(inputs):
    network = cell(encoder_layers=1, decoder_layers=0)
    mask = inputs[1].copy()
    mask[1, 2] = 0
    attention = network.encoder[0].self_attn
    attention.out_proj.bias.set_data(ops.zeros_like(attention.out_proj.bias))
    output = network(Tensor(inputs[0]), Tensor(mask))[0].asnumpy()
    feed_forward = network.encoder[0].transform(Tensor(inputs[0])).asnumpy()
    close(output[1, 2], feed_forward[1, 2])
    assert np.isfinite(output).all()


def test_experts_weigh_feed_forward_layers_and_add_the_balancing_loss(inputs):
    moe = {"expert_num": 4, "num_experts_chosen": 1, "capacity_factor": 4.0, "aux_loss_factor": 0.5}
    network = cell(encoder_layers=1, decoder_layers=0, moe_config=moe)
    layer = network.encoder[0]
    output, _, _, loss = network(*tensors(inputs[:2]))
    x, _ = layer.attend_to_itself(*tensors(inputs[:2]))
    normed = layer.norms[1](x)
    router = normed.asnumpy().reshape(-1, D) @ layer.feed_forward.gate.weight.asnumpy().T
    chances = np.exp(router) / np.exp(router).sum(1, keepdims=True)
    every = np.stack([expert(normed).asnumpy().reshape(-1, D) for expert in layer.feed_forward.experts], 1)
    best = chances.argmax(1)
    rows = np.arange(len(best))
    expected = x.asnumpy().reshape(-1, D) + chances[rows, best, None] * every[rows, best]
    close(output.asnumpy().reshape(-1, D), expected)
    asked = np.bincount(best, minlength=4) / len(best)
    assert float(loss) == pytest.approx(0.5 * 4 * (asked * chances.mean(0)).sum(), rel=1e-5)


def test_lambda_func_sees_every_layer_and_what_it_sets_stays():
    seen = []

    def stage(network, layer_id, offset, parallel_config, layers):
        seen.append((type(network).__name__, layer_id, offset, layers))
        network.pipeline_stage = (layer_id + offset) // 2

    network = cell(lambda_func=stage)
    assert seen == [
        ("EncoderLayer", 0, 0, 4),
        ("EncoderLayer", 1, 0, 4),
        ("DecoderLayer", 0, 2, 4),
        ("DecoderLayer", 1, 2, 4),
    ]
    assert [layer.pipeline_stage for layer in network.decoder] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_past": True}, "use_past is True, .* decode with msllm.pipeline"),
        ({"softmax_compute_type": ms.float16}, "softmax_compute_type is Float16"),
        ({"parallel_config": "x"}, r"parallel_config is not the default.*parallel=ParallelConfig"),
        ({"hidden_act": "reluu"}, r"hidden_act is 'reluu' \(did you mean 'relu'\?\)"),
        ({"num_heads": 3}, "hidden_size = 16 is not a multiple of num_heads = 3"),
        ({"hidden_dropout_rate": 1.5}, "hidden_dropout_rate is 1.5, expected at least 0"),
        ({"encoder_layers": 0}, "encoder_layers is 0, expected 1 or more"),
        ({"moe_config": {"experts": 4}}, "moe_config has experts"),
    ],
)
def test_what_has_no_meaning_here_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        cell(**options)


def test_inputs_are_compared_with_the_sizes_of_the_cell(inputs):
    network = cell()
    given = tensors(inputs)

    def refused(message, *values):
        with pytest.raises(UserError, match=message):
            network(*values)

    refused(r"encoder_inputs is \(2, 5, 16\), expected \(2, 6, 16\); the cell was made", given[2], None, given[2])
    refused(r"encoder_inputs is \(1, 6, 16\), expected", given[0][:1], None, given[2])
    refused(r"encoder_masks is \(2, 5, 5\), expected \(2, 6, 6\)", given[0], given[3], given[2])
    refused(r"memory_mask is \(2, 5, 5\), expected \(2, 5, 6\)", *given[:4], given[3])
    refused(r"decoder_inputs is missing, expected \(2, 5, 16\)", *given[:2])
    anything = cell(batch_size=None, decoder_layers=0)
    assert anything(given[0][:1], None)[0].shape == (1, S, D)


def test_it_compiles_under_jit_with_stock_kernels(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MindSpore leaves the graph that it refuses
    network, given = cell(encoder_layers=1, decoder_layers=1), tensors(inputs)
    eager = network(*given)
    chosen = kernels.active()
    try:
        kernels.use("stock")

        @ms.jit
        def forward(*values):
            return network(*values)

        compiled = forward(*given)
        close(compiled[0].asnumpy(), eager[0].asnumpy())
        close(compiled[2][0][2].asnumpy(), eager[2][0][2].asnumpy())
        with pytest.raises(UserError, match="encoder_inputs is"):
            forward(given[2], *given[1:])
    finally:
        kernels.use(chosen)
