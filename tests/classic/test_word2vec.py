"""Skip-gram: the loss and its gradients against PyTorch, one step against plain numpy, what it learns."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from msllm.classic import SkipGram, words
from msllm.classic.word2vec import negative_sampling_loss
from msllm.errors import UserError


def test_words():
    found = words("The king's men, O! 'tis Caesar\nto-day -- o'er")
    assert " ".join(found) == "the king's men o tis caesar to day o'er"


def test_loss_and_gradients_equal_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    center, context = rng.standard_normal((7, 5)), rng.standard_normal((7, 4, 5))
    theirs = [torch.tensor(x, requires_grad=True) for x in (center, context)]
    scores = torch.einsum("bd,bkd->bk", *theirs)
    labels = torch.zeros(7, 4, dtype=torch.float64)
    labels[:, 0] = 1  # equation 4 is the cross-entropy of telling the neighbour from noise
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    loss.backward()
    mine = [Tensor(x.astype(np.float32)) for x in (center, context)]
    value, grads = ms.value_and_grad(negative_sampling_loss, (0, 1))(*mine)
    assert float(value.asnumpy()) == pytest.approx(loss.item(), rel=1e-5)
    for grad, want in zip(grads, theirs):
        want = want.grad.numpy()
        assert np.abs(grad.asnumpy() - want).max() <= 1e-5 * np.abs(want).max()


def test_the_exercise_is_checked_by_the_loss_of_the_library():
    from msllm.lessons import find_chapter

    torch = pytest.importorskip("torch")
    check = find_chapter("1").tasks("skip_gram")[2].check

    def library(v, u):
        if np.abs(v).max() > 100:  # too large for float32
            signs = torch.tensor([1.0] + [-1.0] * (len(u) - 1), dtype=torch.float64)
            return -torch.nn.functional.logsigmoid(torch.from_numpy(u) @ torch.from_numpy(v) * signs).sum().item()
        rows = (Tensor(x[None].astype(np.float32)) for x in (v, u))
        return float(negative_sampling_loss(*rows).asnumpy())

    check(library)


def two_classes(length=6000, seed=0):
    """Sentences "determiner noun verb" of invented words: words of a class stand in the same company."""
    rng = np.random.default_rng(seed)
    classes = [[f"{kind}{i}" for i in range(6)] for kind in ("det", "noun", "verb")]
    return [str(rng.choice(classes[i % 3])) for i in range(length)], classes


@pytest.fixture(scope="module")
def trained():
    corpus, classes = two_classes()
    model = SkipGram(corpus, width=8, window=1, negatives=3, subsample=1.0)
    return model, model.train(epochs=5, learning_rate=0.05, batch_size=128), classes


def test_words_of_a_class_end_up_near(trained):
    model, losses, classes = trained
    assert losses[-1] < losses[0] and losses[-1] < 4 * np.log(2)  # 4 ln 2 is the loss of zero vectors
    for kind in classes:
        for word in kind:
            assert {found for found, _ in model.nearest(word, 5)} == set(kind) - {word}
    (found, cosine), *_ = model.nearest("noun0")
    v = model.vectors()
    assert cosine == pytest.approx(float(v[model.index["noun0"]] @ v[model.index[found]]), rel=1e-5)


def test_analogy_leaves_out_the_words_asked_about(trained):
    model, _, _ = trained
    rows = model.vectors()
    target = rows[model.index["verb0"]] - rows[model.index["noun0"]] + rows[model.index["noun1"]]
    cosines = rows @ target / np.linalg.norm(target)
    order = [model.vocabulary[i] for i in np.argsort(-cosines)]
    want = [w for w in order if w not in ("noun0", "verb0", "noun1")][:4]
    assert [w for w, _ in model.analogy("noun0", "verb0", "noun1", 4)] == want
    assert want[0].startswith("verb")


def test_one_step_is_gradient_descent_on_the_touched_rows():
    corpus, _ = two_classes(600)
    model = SkipGram(corpus, width=8, negatives=2)
    rng = np.random.default_rng(4)
    for table in (model.center, model.context):
        table.set_data(Tensor(rng.standard_normal(table.shape).astype(np.float32)))
    v, u = (table.asnumpy().astype(np.float64) for table in (model.center, model.context))
    pairs = np.array([[0, 3], [0, 3], [5, 0], [2, 7]], np.int32)  # a pair twice: both count
    model.rng = np.random.default_rng(9)
    noise = np.searchsorted(model.noise, np.random.default_rng(9).random((4, 2)) * model.noise[-1])
    dv, du, loss = np.zeros_like(v), np.zeros_like(u), 0.0
    for (i, o), negatives in zip(pairs, noise):
        for j, label in [(o, 1), *((n, 0) for n in negatives)]:
            p = 1 / (1 + np.exp(-v[i] @ u[j]))
            loss -= np.log(p if label else 1 - p)
            dv[i] += (p - label) * u[j]
            du[j] += (p - label) * v[i]
    assert model.step(pairs, 0.1) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(model.center.asnumpy(), v - 0.1 * dv, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.context.asnumpy(), u - 0.1 * du, rtol=1e-5, atol=1e-6)


def test_noise_subsampling_and_pairs():
    corpus = ["a"] * 800 + ["b"] * 100 + ["c"] * 100 + ["rare"]
    model = SkipGram(corpus, min_count=2, subsample=0.05, window=3)
    assert model.vocabulary == ["a", "b", "c"] and len(model.ids) == 1000
    assert model.keep == pytest.approx([(0.05 / 0.8) ** 0.5, 0.5**0.5, 0.5**0.5])
    weights = np.array([0.8, 0.1, 0.1]) ** 0.75
    assert np.diff(model.noise, prepend=0) == pytest.approx(weights)
    kept = SkipGram([str(i) for i in range(50)], min_count=1, subsample=1.0, window=3)
    place = np.array([int(w) for w in kept.vocabulary])
    distance = np.concatenate([np.diff(place[kept.pairs()], axis=1)[:, 0] for _ in range(200)])
    assert set(np.abs(distance)) == {1, 2, 3} and abs(distance.mean()) < 0.1
    shares = [np.mean(np.abs(distance) == d) for d in (1, 2, 3)]  # reach 1, 2 or 3: in 3, 2 and 1 of 3 cases
    assert shares == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.02)


def test_refusals(trained):
    model, _, _ = trained
    with pytest.raises(UserError, match=r"'nuon1' is not among the 18 words.*did you mean 'noun1'"):
        model.nearest("nuon1")
    with pytest.raises(UserError, match="0 words of the text appear 5 times or more"):
        SkipGram(["a", "b"])
    small = SkipGram(["a", "b"] * 3, min_count=1, subsample=1e-9)
    with pytest.raises(UserError, match=r"subsampling with 1e-09 leaves 0 of the text's 6 words.*raise subsample"):
        small.train(1)
    assert len(SkipGram(["a", "b"], min_count=1, subsample=1.0).pairs()) == 2


def test_same_seed_same_vectors():
    corpus, _ = two_classes(900)
    runs = []
    for seed in (1, 1, 2):
        model = SkipGram(corpus, width=4, seed=seed)
        runs.append((model.train(2, batch_size=32), model.vectors()))
    assert runs[0][0] == runs[1][0] and (runs[0][1] == runs[1][1]).all()
    assert runs[0][0] != runs[2][0]
