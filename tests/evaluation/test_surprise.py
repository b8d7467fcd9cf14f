"""Surprise in bits beside transformers' GPT-2, by hand, window by window; the command's output and pictures."""

import json
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from msllm.commands import surprise as command
from msllm.errors import UserError
from msllm.evaluation.surprise import attention_maps, surprise, token_texts, windows
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel

V, POSITIONS = 53, 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' GPT-2 with random weights, biases and norms, and the same model read from its files."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from msllm import from_pretrained

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return theirs, from_pretrained(folder)


def expected(theirs, ids):
    """Log-probabilities in float64 of each token but the first, (N - 1, V); ids fit into the context."""
    import torch

    with torch.no_grad():
        return torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1).numpy()


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(0, V, length).tolist()


def test_bits_entropy_and_alternatives_equal_transformers(pair):
    theirs, model = pair
    ids = random_ids(POSITIONS)
    log_p = expected(theirs, ids)[:-1]
    found = surprise(model, ids, top_k=4)
    bits = -log_p[np.arange(len(ids) - 1), ids[1:]] / math.log(2)
    assert np.isnan(found.bits[0]) and found.rank[0] == -1
    assert np.abs(found.bits[1:] - bits).max() < 1e-5
    entropy = -(np.exp(log_p) * log_p).sum(1) / math.log(2)
    assert np.abs(found.entropy[1:] - entropy).max() < 1e-5
    order = np.argsort(-log_p, axis=1)
    assert (found.top_ids[1:] == order[:, :4]).all()
    assert np.abs(found.top_probabilities[1:] - np.exp(np.take_along_axis(log_p, order[:, :4], 1))).max() < 1e-5
    assert (found.rank[1:] == 1 + np.argmax(order == np.array(ids[1:])[:, None], axis=1)).all()


def test_the_mean_is_transformers_loss(pair):
    import torch

    theirs, model = pair
    ids = random_ids(POSITIONS, 1)
    with torch.no_grad():
        loss = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    found = surprise(model, ids)
    assert found.bits_per_token == pytest.approx(loss / math.log(2), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 3, 6, None])
@pytest.mark.parametrize("length", [13, 14, 25, 40])
def test_a_long_text_is_scored_window_by_window(pair, stride, length):
    theirs, model = pair
    ids, step = random_ids(length, 2), stride or POSITIONS // 2
    found = surprise(model, ids, stride=stride)
    assert found.scored.tolist() == [False] + [True] * (length - 1)
    for i in range(1, length):
        # Any window that reads i - 1 and begins not later than allowed: the one that gives this value.
        begins = [b for b in windows(length - 1, POSITIONS, step) if b < i <= b + POSITIONS]
        context = ids[begins[0] : i]
        assert len(context) >= min(i, POSITIONS - step, step)
        bits = -expected(theirs, context)[-1, ids[i]] / math.log(2)
        assert found.bits[i] == pytest.approx(bits, abs=1e-5)


def test_windows_by_hand():
    assert windows(4, 4, 2) == windows(3, 4, 2) == [0]
    assert windows(10, 4, 2) == [0, 2, 4, 6] and windows(9, 4, 2) == [0, 2, 4, 5]


def test_a_prefix_gives_the_first_token_a_score_and_has_none_itself(pair):
    _, model = pair
    ids = random_ids(8, 3)
    whole, found = surprise(model, ids), surprise(model, ids[2:], prefix=ids[:2])
    assert np.allclose(found.bits, whole.bits[2:], atol=1e-9) and found.scored.all()
    assert surprise(model, ids[1:2], prefix=ids[:1]).bits[0] == pytest.approx(whole.bits[1], abs=1e-5)


class Fixed(nn.Cell):
    """Predicts the same whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.max_length = np.array(logits, np.float32), 4
        self.config = GPT2Config(vocab_size=len(logits))

    def construct(self, input_ids):
        return Tensor(np.broadcast_to(self.logits, (1, input_ids.shape[1], len(self.logits))).copy())


def test_by_hand():
    # 1/2, 1/4, 1/8, 1/8: 1, 2, 3 and 3 bits, entropy 1/2 + 2/4 + 3/8 + 3/8 = 1.75.
    found = surprise(Fixed(np.log([0.5, 0.25, 0.125, 0.125])), [0, 0, 1, 2, 3, 0, 1], top_k=9)
    assert found.bits[1:] == pytest.approx([1, 2, 3, 3, 1, 2], abs=1e-6)
    assert found.entropy[1:] == pytest.approx([1.75] * 6, abs=1e-6)
    assert found.rank[1:].tolist() == [1, 2, 3, 3, 1, 2]
    assert found.top_ids[1].tolist() == [0, 1, 2, 3]
    assert found.total == pytest.approx(12, abs=1e-5) and found.perplexity == pytest.approx(4, abs=1e-5)
    texts = ["a", "b", "", "日本", "c", "d", "e"]
    assert found.bits_per_character(texts) == pytest.approx(12 / 6)
    assert found.bits_per_byte(texts) == pytest.approx(12 / 10)


def test_large_logits_and_impossible_tokens():
    found = surprise(Fixed([1000.0, 0.0, -np.inf]), [0, 0, 1, 2])
    assert found.bits[1] == 0 and found.bits[2] == pytest.approx(1000 / math.log(2)) and found.bits[3] == np.inf
    assert (found.entropy[1:] == 0).all()


def test_the_model_is_left_in_its_mode(pair):
    _, model = pair
    model.set_train(True)
    first, second = surprise(model, random_ids(9)), surprise(model, random_ids(9))  # with dropout they would differ
    assert model.training and (first.bits[1:] == second.bits[1:]).all()
    model.set_train(False)


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([1], {}, "the text has 1 token, and one is predicted from those before it; give a longer text"),
        ([], {"prefix": [1, 2]}, "the text has 0 tokens"),
        ([1, 53], {}, "the id 53 is not in the model's vocabulary of 53"),
        ([1, 2], {"stride": 0}, "stride is 0, expected 1 to 6"),
        ([1, 2], {"stride": 7}, "stride is 7, expected 1 to 6, half of the model's context of 12 tokens"),
        ([1, 2], {"top_k": 0}, "top_k is 0, expected 1 or more"),
    ],
)
def test_bad_input_is_one_line(pair, ids, options, message):
    with pytest.raises(UserError, match=message):
        surprise(pair[1], ids, **options)


def test_damaged_weights_are_told():
    with pytest.raises(UserError, match="not numbers at token 1 or soon after it; its weights are damaged"):
        surprise(Fixed([0.0, np.nan]), [0, 1, 1])


def test_attention_equals_transformers(pair):
    import torch

    theirs, model = pair
    ids = random_ids(9, 5)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        weights = theirs(torch.tensor([ids]), output_attentions=True).attentions
    maps = attention_maps(model, ids)
    assert maps.shape == (2, 4, 9, 9)
    assert np.abs(maps - np.concatenate([w.numpy() for w in weights])).max() < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-2 with a byte-level tokenizer, which writes a Chinese character with three tokens."""
    from msllm.tokenization import train_tokenizer

    place = tmp_path_factory.mktemp("model") / "gpt2"
    tokenizer = train_tokenizer(["say one two three four, word by word"], 290)
    ms.set_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=24, n_layer=2, n_head=6, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(place, tokenizer)
    return str(place)


TEXT = "say one 日 two $3$\nthree"


def test_the_texts_of_tokens_make_the_text(folder):
    from msllm.tokenization import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for text in (TEXT, "日", "é\u200d🙂 x"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == text
    assert token_texts(tokenizer, tokenizer.encode("日", add_special_tokens=False)) == ["", "", "日"]


def test_the_command_prints_a_line_a_token(folder, capsys):
    command.surprise(folder, TEXT, top_k=2)
    lines = capsys.readouterr().out.splitlines()
    command.surprise(folder, TEXT, top_k=2, json_output=True)
    told = json.loads(capsys.readouterr().out)
    assert lines[0].split() == ["bits", "rank", "token", "expected"] and len(lines) == told["tokens"] + 2
    first = told["rows"][0]
    assert lines[1].split()[:2] == ["-", "-"] and first["bits"] is None and first["expected"] == []
    assert [float(line.split()[0]) for line in lines[2:-1]] == [round(r["bits"], 2) for r in told["rows"][1:]]
    assert told["scored"] == told["tokens"] - 1 and all(len(r["expected"]) == 2 for r in told["rows"][1:])
    assert f"{told['bits_per_token']:.3f} bits per token" in lines[-1]
    assert f"perplexity {told['perplexity']:.2f}" in lines[-1]
    mean = sum(r["bits"] for r in told["rows"][1:]) / told["scored"]
    assert told["perplexity"] == pytest.approx(2**mean)


def test_colours_only_when_asked_for_outside_of_a_terminal(folder, capsys):
    command.surprise(folder, TEXT)
    assert "\x1b[" not in capsys.readouterr().out
    command.surprise(folder, TEXT, color=True)
    out = capsys.readouterr().out
    assert "\x1b[" in out and "up to 1" in out and "more" in out and "bits per token" in out


def test_pictures_with_and_without_a_font(folder, tmp_path, capsys, monkeypatch):
    from msllm.lessons import figures

    bars, maps = tmp_path / "bars.png", tmp_path / "maps.svg"
    command.surprise(folder, "say $one$ two", picture=str(bars), attention=str(maps), heads=0, layer=0)
    notes = capsys.readouterr().err
    assert "no font" not in notes and f"wrote {bars}" in notes and f"wrote {maps}" in notes
    assert bars.read_bytes().startswith(b"\x89PNG") and maps.read_text().count("<image") == 6
    monkeypatch.setattr(figures, "_families", lambda text: None)
    command.surprise(folder, TEXT, attention=str(maps))
    assert "no font here has all characters" in capsys.readouterr().err
    assert maps.read_text().count("<image") == 4


def test_labels_are_numbers_where_no_font_has_them():
    from msllm.lessons.figures import drawable, heat_maps, surprise_bars

    missing = chr(0x10FFFD)  # the last private character
    assert drawable(["abc", "é", "$"]) and not drawable([missing])
    figure = heat_maps([np.eye(2)] * 3, ["a", "b", "c"], [missing, "x"], [missing, "x"], across=2)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1"]
    assert len(figure.axes) == 4 and not figure.axes[3].axison
    figure = surprise_bars(["$a$", "b"], [math.nan, 2.0], [math.nan, 1.0], [[], ["x 0.50"]])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["$a$", "b"]
    assert not figure.axes[0].get_yticklabels()[0].get_parse_math()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": "say", "file": "x"}, "both --text and --file were given"),
        ({"text": " "}, "--text is empty; give a text"),
        ({"text": "say one", "top_k": 0}, "top_k is 0"),
        ({"text": "say one", "heads": -1}, "heads is -1, expected 0"),
        ({"text": "say one", "picture": "x.bmp"}, "picture is 'x.bmp', expected a name that ends with .png"),
        ({"text": "say one", "attention": "x.png", "layer": 2}, "layer is 2, expected 0 to 1, or -1"),
        ({"text": "say one", "attention": "x.png", "heads": 7}, "heads is 7, the model has 6"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(folder, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.surprise(folder, **options)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_llama_with_bos_scores_its_first_token_and_draws(tiny_model, tmp_path, capsys):
    from msllm.tokenization import load_tokenizer

    scored_first = bool(load_tokenizer(tiny_model).prefix_ids)
    (tmp_path / "text.txt").write_text("say one two\n")
    command.surprise(
        str(tiny_model), file=str(tmp_path / "text.txt"), attention=str(tmp_path / "a.png"), json_output=True
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"][0]["bits"] is not None) == scored_first and told["text"] == "say one two"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
