"""msllm analogy: arithmetic with the word embeddings of a BERT: king - man + woman."""

import json

import numpy as np

from msllm.errors import UserError, nearest


def analogy(
    model: str,
    positive: list[str],
    negative: list[str] | None = None,
    candidates: list[str] | None = None,
    top_k: int = 10,
    json_output: bool = False,
) -> None:
    """Adds and subtracts words by their embeddings in a BERT, and prints the words nearest to the sum.

    Args:
        model: Hugging Face folder of a BERT, with any head or none.
        positive: words that are added.
        negative: words that are subtracted.
        candidates: the words to choose from; without it, the whole words of the vocabulary.
        top_k: words to print.
        json_output: print one JSON object.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}, expected 1 or more; change it")
    if not positive:
        raise UserError("positive is empty; give one word or more")
    from msllm.tokenization import load_tokenizer

    table = word_embeddings(model)
    tokenizer = load_tokenizer(model)
    if tokenizer.vocab_size > len(table):
        raise UserError(
            f"{model}: the tokenizer has {tokenizer.vocab_size} ids, the model {len(table)} word embeddings; use the "
            f"tokenizer that belongs to the model"
        )
    pieces: dict[str, list[str]] = {}
    words = {w: _vector(w, tokenizer, table, pieces) for w in [*positive, *(negative or ()), *(candidates or ())]}
    # Vectors have unit length: a word counts the same however long its embedding is (3CosAdd, Levy and Goldberg 2014).
    total = sum(words[w] for w in positive) - sum((words[w] for w in negative or ()), np.zeros(table.shape[1]))
    given = {*positive, *(negative or ())}
    if candidates:
        names = [w for w in dict.fromkeys(candidates) if w not in given]
        if not names:
            raise UserError("candidates has no word besides those that are added or subtracted; give others")
        rows = np.stack([words[w] for w in names])
    else:
        used = {tuple(tokenizer.encode(w, add_special_tokens=False)) for w in given}
        ids = [i for i in _whole_words(tokenizer) if (i,) not in used]
        names, rows = [tokenizer.id_to_token(i) for i in ids], _unit(table[ids])
    cosines = rows @ (total / max(np.linalg.norm(total), 1e-12))
    best = np.argsort(-cosines, kind="stable")[:top_k]
    found = [{"word": names[i], "cosine": float(cosines[i])} for i in best]
    if json_output:
        print(json.dumps({"words": found, "pieces": pieces}, ensure_ascii=False))
        return
    for word, parts in pieces.items():
        print(f"{word} has {len(parts)} pieces, their mean is used: {' '.join(parts)}")
    for row in found:
        print(f"{row['word']}  {row['cosine']:.4f}")


def word_embeddings(model: str) -> np.ndarray:
    """Returns the word embeddings (V, D), float64, of a BERT's folder; UserError where it holds none."""
    from msllm.models.pretrained import model_class, read_config
    from msllm.models.weights import read_weights

    kind = model_class(read_config(model), f"{model}/config.json")
    if kind.config_class.__name__ != "BertConfig":
        raise UserError(f"{model} holds a {kind.__name__}, analogy wants a BERT; give a BERT's folder")
    tensors = read_weights(model)
    name = "embeddings.word_embeddings.weight"
    table = tensors.get(f"bert.{name}", tensors.get(name))
    if table is None:
        raise UserError(f"{model}: the weights lack {name}{nearest(name, tensors)}; copy the model again")
    return np.asarray(table, np.float64)


def _vector(word: str, tokenizer, table: np.ndarray, pieces: dict[str, list[str]]) -> np.ndarray:
    """Returns the unit vector of a word; notes its pieces where it has several."""
    ids = tokenizer.encode(word, add_special_tokens=False)
    if not ids or tokenizer.unk_token_id in ids:
        raise UserError(f"the model does not know the word {word!r}: its vocabulary lacks a part of it; give another")
    if len(ids) > 1:
        pieces[word] = [tokenizer.id_to_token(i) for i in ids]
    return _unit(table[ids].mean(axis=0))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _whole_words(tokenizer) -> list[int]:
    """Returns the ids that are words by themselves: no continuation, no special or unused token."""
    special = tokenizer.special_ids
    return [i for i in range(tokenizer.vocab_size) if i not in special and _is_word(tokenizer.id_to_token(i) or "")]


def _is_word(token: str) -> bool:
    return not token.startswith(("##", "[unused")) and any(map(str.isalpha, token))
