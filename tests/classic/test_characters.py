"""Characters as ids, windows that predict each once, one-hot vectors."""

import numpy as np
import pytest

from msllm.classic import Alphabet, cosine_similarity, one_hot, random_windows, sliding_windows, split
from msllm.data import IGNORED
from msllm.errors import UserError


def test_alphabet():
    alphabet = Alphabet("to be or not\n")
    assert alphabet.characters == "\n benort" and len(alphabet) == 8
    assert alphabet.decode(alphabet.encode("be not")) == "be not"
    assert alphabet.encode("\nt").tolist() == [0, 7]
    with pytest.raises(UserError, match="character 'x', which is none of the 8"):
        alphabet.encode("box")


def test_split():
    assert split(1115394) == 1003854 and split(10, 0.5) == 5
    with pytest.raises(UserError, match=r"share is 1\.5"):
        split(10, 1.5)


@pytest.mark.parametrize(
    "start, length, context", [(90, 65, 1), (90, 9, 8), (3, 9, 8), (1, 7, 4), (99, 5, 1), (50, 500, 1)]
)
def test_sliding_windows_predict_every_id_once(start, length, context):
    ids = np.arange(100, dtype=np.int32)
    predicted = []
    for window in sliding_windows(ids, start, length, context):
        kept = window["labels"] != IGNORED
        assert len(window["input_ids"]) <= length and (np.diff(window["input_ids"]) == 1).all()
        assert (window["labels"][kept] == window["input_ids"][kept]).all()
        places = np.flatnonzero(kept)
        assert (places >= np.minimum(context, window["labels"][kept])).all() and places.min() > 0
        predicted += window["labels"][kept].tolist()
    assert predicted == list(range(start, 100))


def test_random_windows():
    ids = np.arange(20, dtype=np.int32)
    windows = random_windows(ids, 5, 400, seed=3)
    starts = {int(w["input_ids"][0]) for w in windows}
    assert len(windows) == 400 and starts == set(range(16))
    for w in windows[:20]:
        assert (np.diff(w["input_ids"]) == 1).all() and len(w["input_ids"]) == 5
        assert w["labels"].tolist() == [IGNORED, *w["input_ids"][1:]]
    again = random_windows(ids, 5, 400, seed=3)
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(windows, again))


def test_window_refusals():
    ids = np.arange(20, dtype=np.int32)
    with pytest.raises(UserError, match="20 ids, a window 21"):
        random_windows(ids, 21, 1)
    with pytest.raises(UserError, match="context is 5, expected 1 to 4"):
        sliding_windows(ids, 10, 5, 5)
    with pytest.raises(UserError, match="start is 0"):
        sliding_windows(ids, 0, 5)


def test_one_hot():
    vectors = one_hot([2, 0], 4)
    assert vectors.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    table = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_array_equal(vectors @ table, table[[2, 0]])
    np.testing.assert_array_equal(cosine_similarity(one_hot(range(4), 4)), np.eye(4))
    assert cosine_similarity(np.array([[1.0, 1.0], [2.0, 0.0]]))[0, 1] == pytest.approx(0.5**0.5)
    with pytest.raises(IndexError):
        one_hot([4], 4)
