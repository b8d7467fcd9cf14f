"""The encoder-decoder Transformer beside torch.nn.Transformer on shared weights, values and gradients."""

import numpy as np
import pytest
from mindspore import Tensor

torch = pytest.importorskip("torch")

from msllm.layers import sinusoidal  # noqa: E402
from msllm.models.pretrained import from_pretrained  # noqa: E402
from msllm.models.transformer import TransformerConfig, TransformerForTranslation  # noqa: E402
from msllm.training.alone import Alone  # noqa: E402
from msllm.training.optimizer import AdamW  # noqa: E402
from msllm.training.step import build_step  # noqa: E402
from msllm.training.translation import translation  # noqa: E402

TOLERANCE = 1e-5  # of the largest value, in fp32
EPSILON = 1e-3  # of Adam: with a tiny one, the sign of a gradient that is rounding noise would be a full step
V, D, START = 50, 32, 2
PAIRS = [
    {"input_ids": [7, 8, 9, 4, 5, 3], "labels": [11, 12, 3]},
    {"input_ids": [6, 3], "labels": [20, 21, 22, 23, 24, 25, 3]},
    {"input_ids": [31, 7, 44, 3], "labels": [9, 3]},
]


def both(pre_norm, activation="relu", tied=True, final_norm=True):
    """Our model and PyTorch's with the same weights, all far from their initial values."""
    config = TransformerConfig.from_dict(
        {
            "vocab_size": V,
            "d_model": D,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "attention_heads": 4,
            "ffn_dim": 48,
            "dropout": 0.0,
            "pre_norm": pre_norm,
            "final_norm": final_norm,
            "activation": activation,
            "tie_word_embeddings": tied,
            "max_positions": 16,
            "eos_token_id": 3,
            "decoder_start_token_id": START,
        }
    )
    model = TransformerForTranslation(config).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():
        noise = rng.normal(size=parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(parameter.asnumpy() + 0.2 * noise))
    return model, TorchTranslator(config, model.state_dict())


class TorchTranslator(torch.nn.Module):
    """Embeddings and head around torch.nn.Transformer."""

    def __init__(self, config, weights):
        super().__init__()
        weights = {name: torch.tensor(value) for name, value in weights.items()}
        self.source = torch.nn.Parameter(weights.pop("source_embedding.weight"))
        self.tied = config.tie_word_embeddings
        if not self.tied:
            self.target = torch.nn.Parameter(weights.pop("target_embedding.weight"))
            self.generator = torch.nn.Parameter(weights.pop("generator.weight"))
        self.body = torch.nn.Transformer(
            D, 4, 2, 3, 48, 0.0, config.activation, batch_first=True, norm_first=config.pre_norm
        )
        if not config.final_norm:
            self.body.encoder.norm = self.body.decoder.norm = None
        self.body.load_state_dict(weights)  # names and shapes are PyTorch's own
        self.positions = torch.tensor(sinusoidal(16, D))

    def forward(self, source, mask, target):
        table = self.source if self.tied else self.target
        x, y = (
            w[torch.tensor(i).long()] * D**0.5 + self.positions[: i.shape[1]]
            for w, i in ((self.source, source), (table, target))
        )
        causal = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = torch.tensor(mask) == 0
        out = self.body(x, y, tgt_mask=causal, src_key_padding_mask=hidden, memory_key_padding_mask=hidden)
        return out @ (self.source if self.tied else self.generator).T


def difference(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def batch():
    return translation(START).collate(PAIRS, pad_token_id=0)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("pre_norm", "activation", "tied", "final_norm"),
    [(False, "relu", True, True), (True, "gelu", False, True), (False, "relu", True, None)],
)
def test_logits(pre_norm, activation, tied, final_norm):
    model, reference = both(pre_norm, activation, tied, final_norm)
    b = batch()
    ours = model(*(Tensor(b[key]) for key in ("input_ids", "attention_mask", "decoder_input_ids"))).asnumpy()
    theirs = reference(b["input_ids"], b["attention_mask"], b["decoder_input_ids"])
    assert difference(ours, theirs) < TOLERANCE


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("pre_norm", [False, True])
def test_smoothed_loss_and_weights_after_three_steps(pre_norm):
    model, reference = both(pre_norm)
    model.set_train(True)
    objective, b = translation(START, 0.1), batch()
    rates = [1e-2, 1e-3, 1e-3]
    alone = Alone()
    step = build_step(alone, objective, AdamW(alone.prepare(model, objective, False), (0.9, 0.98), EPSILON, 0.0), 0.0)
    optimizer = torch.optim.AdamW(reference.parameters(), 1e-2, (0.9, 0.98), EPSILON, 0.0)
    labels = torch.tensor(b["labels"]).long().reshape(-1)
    for rate in rates:
        ours = objective.total(step([objective.to_device(b)], rate)[0])
        logits = reference(b["input_ids"], b["attention_mask"], b["decoder_input_ids"]).reshape(-1, V)
        theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        assert abs(ours - theirs.item()) < TOLERANCE * theirs.item()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        theirs.backward()
        optimizer.step()
    ours, wanted = model.state_dict(), reference.body.state_dict()
    for name, value in wanted.items():
        assert difference(ours[name], value) < TOLERANCE, name


@pytest.mark.parametrize("pre_norm", [False, True])
def test_cached_decoding_equals_the_whole_pass(pre_norm):
    model, _ = both(pre_norm)
    b = batch()
    source, mask = Tensor(b["input_ids"]), Tensor(b["attention_mask"])
    whole = model(source, mask, Tensor(b["decoder_input_ids"])).asnumpy()
    cache = model.make_cache(source, mask, 16)
    for t in range(whole.shape[1]):
        logits = model.next_logits(Tensor(b["decoder_input_ids"][:, t : t + 1]), cache).asnumpy()
        assert np.abs(logits - whole[:, t]).max() < TOLERANCE * np.abs(whole).max()


def test_a_folder_loads_to_the_same_model(tmp_path):
    model, _ = both(False, tied=False)
    model.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved")
    for mine, other in zip(model.get_parameters(), again.get_parameters(), strict=True):
        assert mine.name == other.name
        np.testing.assert_array_equal(mine.asnumpy(), other.asnumpy())
    assert again.config.final_norm is True


def test_evaluation_has_no_smoothing():
    model, reference = both(False)
    objective, b = translation(START, 0.1), batch()
    tensors, count = objective.to_device(b)
    value = objective.loss(model.set_train(False), tensors).asnumpy() / count
    logits = reference(b["input_ids"], b["attention_mask"], b["decoder_input_ids"]).reshape(-1, V)
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(b["labels"]).long().reshape(-1)).item()
    assert abs(value - plain) < TOLERANCE * plain
