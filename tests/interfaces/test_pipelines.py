"""msllm.pipeline beside transformers' pipeline, on tiny random models with randomised biases and norms."""

import numpy as np
import pytest

import msllm
from msllm.errors import UserError

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
TEXTS = [
    "ada lives in rome .",
    "bob went home by train and the unaffables play is good , he went to work by train",
    "who lives where ? unknownword",
]


@pytest.fixture(scope="module")
def both(zoo):
    """Returns a function: task, class -> our pipeline and transformers'."""

    def make(task, name):
        folder = zoo(name)
        # One text at a time: transformers' default; ours pads, and must give the same.
        return msllm.pipeline(task, folder, batch_size=2), transformers.pipeline(task, str(folder), device="cpu")

    return make


def same(ours, theirs, tolerance=TOLERANCE):
    """Compares results part by part: numbers to the tolerance, all else exactly."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            same(ours[name], theirs[name], tolerance)
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for mine, other in zip(ours, theirs):
            same(mine, other, tolerance)
    elif isinstance(theirs, float | np.floating):
        assert ours == pytest.approx(float(theirs), abs=tolerance)
    else:
        assert ours == theirs


def test_greedy_texts_and_ids_equal_transformers(both):
    ours, theirs = both("text-generation", "GPT2LMHeadModel")
    prompts = ["Ada lives in", "who", "the film is good and the play"]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = theirs(prompts, **options)
    same(ours(prompts, **options), expected)
    same(ours(prompts[1], **options), expected[1])
    new = ours(prompts[0], return_full_text=False, **options)
    same(new, theirs(prompts[0], return_full_text=False, **options))
    assert prompts[0] + new[0]["generated_text"] == expected[0][0]["generated_text"]
    ids = ours(prompts, return_tensors=True, **options)
    same(ids, theirs(prompts, return_tensors=True, **options))
    assert len(ids[0][0]["generated_token_ids"]) > 8


def test_a_chat_gets_an_answer_of_the_assistant(both):
    ours, theirs = both("text-generation", "GPT2LMHeadModel")
    chat = [{"role": "user", "content": "who lives in Rome?"}]
    options = {"max_new_tokens": 5, "do_sample": False}
    same(ours(chat, **options), theirs(chat, **options))
    same(ours([chat, chat], **options), theirs([chat, chat], **options))


def test_filled_masks_equal_transformers(both):
    ours, theirs = both("fill-mask", "BertForMaskedLM")
    one, two = "ada [MASK] in rome .", "[MASK] lives in [MASK] unaffable"
    same(ours(one), theirs(one))
    same(ours([one, two], top_k=3), theirs([one, two], top_k=3))


def test_classes_equal_transformers(both):
    ours, theirs = both("text-classification", "BertForSequenceClassification")
    same(ours(TEXTS[0]), theirs(TEXTS[0]))
    same(ours(TEXTS), theirs(TEXTS))
    same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))
    same(ours(TEXTS[0], top_k=2), theirs(TEXTS[0], top_k=2))
    pair = {"text": "ada lives", "text_pair": "who lives ?"}
    same(ours([pair]), theirs([pair]))


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_tags_equal_transformers(both, strategy):
    ours, theirs = both("token-classification", "BertForTokenClassification")
    for ignored in (["O"], []):
        options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        expected = theirs(TEXTS, **options)
        assert any(expected)
        same(ours(TEXTS, **options), expected)
        same(ours(TEXTS[2], **options), expected[2])


def test_answers_equal_transformers_also_over_windows(both):
    ours, theirs = both("question-answering", "BertForQuestionAnswering")
    context = "ada lives in rome . bob , unaffable , lives in paris and he went home by train ."
    one = {"question": "who lives in rome ?", "context": context}
    same(ours(one), theirs(**one))
    same(ours(question=one["question"], context=context, top_k=4), theirs(**one, top_k=4))
    many = {"max_seq_len": 16, "doc_stride": 4}
    same(ours(one, **many), theirs(**one, **many))
    questions = [one["question"], "where ?"]
    same(
        ours(question=questions, context=context, align_to_words=False, max_answer_len=3, **many),
        theirs(question=questions, context=[context] * 2, align_to_words=False, max_answer_len=3, **many),
    )


@pytest.mark.parametrize("name", ["BertModel", "GPT2LMHeadModel"])
def test_features_equal_transformers_and_embeddings_are_their_mean(both, zoo, name):
    ours, theirs = both("feature-extraction", name)
    texts = ["Ada lives in Rome, Bob in Paris.", "who"] if name.startswith("GPT2") else TEXTS
    expected = [np.array(x) for x in theirs(texts)]
    for mine, other in zip(ours(texts), expected, strict=True):
        assert mine.dtype == np.float32 and mine.shape == other.shape
        assert np.abs(mine - other).max() < TOLERANCE * np.abs(other).max()
    vector = msllm.pipeline("embeddings", zoo(name), normalize=True)(texts[0])
    mean = expected[0][0].mean(0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=TOLERANCE)


def test_the_task_may_be_left_to_the_model(zoo):
    for name, task in (
        ("GPT2LMHeadModel", "text-generation"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForTokenClassification", "token-classification"),
        ("BertModel", "feature-extraction"),
    ):
        assert msllm.pipeline(model=zoo(name)).task == task


def test_a_model_comes_with_its_tokenizer(zoo):
    folder = zoo("BertForMaskedLM")
    model, tokenizer = msllm.from_pretrained(folder), msllm.load_tokenizer(folder)
    text = "ada lives in [MASK]"
    assert msllm.pipeline("fill-mask", model, tokenizer)(text) == msllm.pipeline("fill_mask", folder)(text)
    assert msllm.pipeline("fill-mask", model, folder)([]) == []
    with pytest.raises(UserError, match="tokenizer is missing, and the model is a BertForMaskedLM"):
        msllm.pipeline("fill-mask", model)


def test_mistakes_are_one_line(zoo):
    masked, gpt2 = zoo("BertForMaskedLM"), zoo("GPT2LMHeadModel")

    def refused(message, *arguments, **options):
        with pytest.raises(UserError, match=message):
            msllm.pipeline(*arguments, **options)

    refused(r"unknown task 'text_generatoin' \(did you mean 'text-generation'\?\); known are", "text_generatoin", gpt2)
    refused("model is missing", "fill-mask")
    refused("gpt2 is a preset: it says how large a model is", "text-generation", "gpt2")
    refused("nowhere is not a folder", "text-generation", "nowhere")
    refused("holds a BertForMaskedLM, which does not predict the next token", "text-generation", masked)
    refused(
        "holds a BertForMaskedLM, question-answering wants a model whose class ends with",
        "question-answering",
        masked,
    )
    refused("holds a GPT2LMHeadModel, which does not translate", "translation_de_to_en", gpt2)
    refused(
        r"text-generation has no option max_new_token \(did you mean 'max_new_tokens'\?\)",
        "text-generation",
        gpt2,
        max_new_token=3,
    )
    refused("batch_size is 0, expected 1 or more", "text-generation", gpt2, batch_size=0)
    pipe = msllm.pipeline("fill-mask", masked)
    for message, inputs, options in (
        ("input 2 has no .MASK., and nothing to fill in", ["a [MASK]", "ada"], {}),
        ("input 1 is int '3', fill-mask takes a text", [3], {}),
        ("top_k is 0", "a [MASK]", {"top_k": 0}),
        ("fill-mask has no option targets", "a [MASK]", {"targets": ["ada"]}),
    ):
        with pytest.raises(UserError, match=message):
            pipe(inputs, **options)
    ask = msllm.pipeline("question-answering", zoo("BertForQuestionAnswering"))
    with pytest.raises(UserError, match="takes question and context"):
        ask(question="who ?")
    with pytest.raises(UserError, match="input 1: context is ' ', expected a text"):
        ask(question="who ?", context=" ")
    tag = msllm.pipeline("ner", zoo("BertForTokenClassification"))
    with pytest.raises(UserError, match="aggregation_strategy is 'first', expected none or simple"):
        tag("ada", aggregation_strategy="first")
