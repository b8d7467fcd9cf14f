"""What a task is worth without a neural network."""

from collections.abc import Sequence

from msllm.data.order import random_order
from msllm.errors import UserError

_LEAST = 10  # texts of which a tenth can be held out


def bag_of_words(
    texts: Sequence[str], labels: Sequence, test_texts: Sequence[str], characters: bool, seed: int = 0
) -> list:
    """Returns the classes that logistic regression over counts predicts.

    Args:
        texts, labels: of training; a label is a name or a number.
        test_texts: to predict.
        characters: features are one, two and three characters, as suits Chinese; otherwise one and two words.
        seed: of the split that chooses the strength of regularisation: one tenth of the training part.

    Raises:
        UserError: fewer than 10 training texts, or all of one class but for those that are held out.
    """
    if len(texts) < _LEAST:
        raise UserError(
            f"{len(texts)} texts to learn from, expected {_LEAST} or more, a tenth of which is held out; give more"
        )
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    grams = {"analyzer": "char", "ngram_range": (1, 3)} if characters else {"ngram_range": (1, 2)}
    vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, **grams)
    labels, order = list(labels), random_order(len(texts), seed)
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]
    if len({labels[i] for i in rest}) < 2:
        raise UserError(
            f"the {len(rest)} texts to learn from are all of the class {labels[rest[0]]!r}, expected two or more "
            f"classes; give texts of another"
        )
    features = vectorizer.fit_transform(texts)

    def fitted(strength: float, rows) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(features[rows], [labels[i] for i in rows])

    scores = {c: fitted(c, rest).score(features[held], [labels[i] for i in held]) for c in (0.3, 1.0, 3.0, 10.0)}
    best = max(scores, key=scores.get)
    return fitted(best, order).predict(vectorizer.transform(test_texts)).tolist()
