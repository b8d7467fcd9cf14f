"""Auto classes: what comes out is transformers' kind of thing, and its values; names, presets, wrong classes."""

import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.errors import UserError
from msllm.models.gpt2 import GPT2Config

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
IDS = np.array([[2, 5, 7, 8, 9, 3]], np.int32)


def test_importing_msllm_waits_for_nothing():
    code = "import sys, msllm; msllm.__all__; print({'mindspore', 'numpy', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    for name in msllm.__all__:
        assert getattr(msllm, name)
    with pytest.raises(AttributeError, match="module 'msllm' has no attribute 'Trainor'"):
        _ = msllm.Trainor


def test_configurations_of_presets_folders_and_families(zoo):
    assert msllm.AutoConfig.from_pretrained("llama2-7b").num_hidden_layers == 32
    small = msllm.AutoConfig.from_pretrained("gpt2", n_layer=2, num_attention_heads=4)
    assert (small.n_layer, small.n_head, small.n_embd) == (2, 4, 768)
    folder = zoo("BertForTokenClassification")
    assert msllm.AutoConfig.from_pretrained(folder).labels == ["O", "B-PER", "I-PER", "B-LOC"]
    made = msllm.AutoConfig.for_model("gpt2", n_layer=3)
    assert isinstance(made, GPT2Config) and made.n_layer == 3
    for message, call in (
        (
            r"a gpt2 has no n_layers \(did you mean 'n_layer'\?\)",
            lambda: msllm.AutoConfig.from_pretrained("gpt2", n_layers=2),
        ),
        (r"unknown model 'gpt-2' \(did you mean 'gpt2'\?\)", lambda: msllm.AutoConfig.from_pretrained("gpt-2")),
        (r"unknown model_type 'gpt'", lambda: msllm.AutoConfig.for_model("gpt")),
        ("n_embd = 768 is not a multiple of n_head = 7", lambda: msllm.AutoConfig.from_pretrained("gpt2", n_head=7)),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("GPT2LMHeadModel", "AutoModel"),
        ("GPT2LMHeadModel", "AutoModelForPreTraining"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("BertForMaskedLM", "AutoModel"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("BertForTokenClassification", "AutoModelForTokenClassification"),
        ("BertForQuestionAnswering", "AutoModelForQuestionAnswering"),
    ],
)
def test_outputs_equal_those_of_transformers_class(zoo, name, auto):
    folder = zoo(name)
    ours = getattr(msllm, auto).from_pretrained(folder)
    theirs = getattr(transformers, auto).from_pretrained(folder).eval()
    assert type(ours).__name__ == type(theirs).__name__ and not ours.training
    assert ours.config.vocab_size == theirs.config.vocab_size
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS).long(), return_dict=False)[0].numpy()
    found = ours(Tensor(IDS))
    found = (found[0] if isinstance(found, tuple) else found).asnumpy()
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def test_a_head_that_a_folder_lacks_is_new_and_the_body_is_its(zoo, caplog):
    folder = zoo("BertForMaskedLM")
    model = msllm.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert model.config.labels == [f"LABEL_{i}" for i in range(5)] and "classifier.weight" in caplog.text
    body = msllm.AutoModel.from_pretrained(folder)
    np.testing.assert_array_equal(
        model.bert.encoder.layer[1].output.dense.weight.asnumpy(), body.encoder.layer[1].output.dense.weight.asnumpy()
    )


def test_new_random_weights_from_a_configuration():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=30, tie_word_embeddings=False)
    model = msllm.AutoModelForCausalLM.from_config(config)
    assert model.config.architectures == ["GPT2LMHeadModel"] and model(Tensor(IDS)).shape == (1, 6, 30)
    assert msllm.AutoModel.from_config(config)(Tensor(IDS)).shape == (1, 6, 16)
    classes = msllm.AutoModelForSequenceClassification.from_config(config)
    assert type(classes).__name__ == "GPT2ForSequenceClassification"


def test_tokenizers_and_wrong_classes_name_the_right_way(zoo, tmp_path):
    gpt2, bert = zoo("GPT2LMHeadModel"), zoo("BertForMaskedLM")
    assert msllm.AutoTokenizer.from_pretrained(bert).encode("ada lives") == msllm.load_tokenizer(bert).encode(
        "ada lives"
    )
    (tmp_path / "config.json").write_text('{"model_type": "transformer"}')
    for auto, folder, message in (
        (
            "AutoModelForCausalLM",
            bert,
            "a bert has no next-token model here, and this is a BertForMaskedLM; use AutoModelForMaskedLM",
        ),
        ("AutoModelForMaskedLM", gpt2, "a gpt2 has no masked-word model here, .* use AutoModelForCausalLM"),
        ("AutoModelForSeq2SeqLM", gpt2, "a gpt2 has no encoder-decoder model here, .* use AutoModelForCausalLM"),
        ("AutoModelForCausalLM", tmp_path, "this is a TransformerForTranslation; use AutoModelForSeq2SeqLM"),
        ("AutoModel", tmp_path, "no body by itself here; use AutoModelForSeq2SeqLM"),
        ("AutoModel", "gpt2", r"gpt2 is a preset.* AutoModel.from_config\(AutoConfig.from_pretrained"),
        ("AutoModelForCausalLM", "gpt2", r"gpt2 is a preset.* AutoModelForCausalLM.from_config"),
        ("AutoTokenizer", "gpt2", "gpt2 is a preset.* give the folder that holds the tokenizer"),
        ("AutoModel", "nowhere", "nowhere is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            getattr(msllm, auto).from_pretrained(folder)
    with pytest.raises(UserError, match="num_labels is 3, and a GPT2LMHeadModel has no classes"):
        msllm.AutoModelForCausalLM.from_pretrained(gpt2, num_labels=3)
