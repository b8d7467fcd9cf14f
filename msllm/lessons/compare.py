"""How a result differs from the right one, in words: its type, its shape, its first wrong value."""

import numbers
from collections.abc import Mapping

import numpy as np


def difference(got, expected, tolerance: float) -> list[str]:
    """Returns a line or two on what is wrong with ``got``; an empty list when it is right.

    Args:
        got, expected: numpy arrays, numbers, strings, None, mappings, or lists and tuples (one is as good as the
            other) of these.
        tolerance: of floats, relative to the largest expected one.
    """
    if got is None and expected is not None:
        return ["returned nothing (None); is a return missing?"]
    if isinstance(expected, np.ndarray):
        return _array_difference(got, expected, tolerance)
    if isinstance(expected, Mapping):
        return _mapping_difference(got, expected)
    if isinstance(expected, (list, tuple)):
        return _sequence_difference(got, expected)
    if isinstance(expected, float):
        return _number_difference(got, expected, tolerance)
    if got != expected:
        return [f"returned {describe(got)}, right is {describe(expected)}"]
    return []


def agree(got, expected, tolerance: float) -> bool:
    """Returns whether two results are the same, NaN being equal to NaN; their float types may differ."""
    if isinstance(expected, (np.ndarray, float)):
        if not isinstance(got, (np.ndarray, numbers.Real)) or np.shape(got) != np.shape(expected):
            return False
        return not _wrong_places(np.asarray(got), np.asarray(expected), tolerance).any()
    return not difference(got, expected, tolerance)


def describe(value) -> str:
    """Returns a value as a few words: a large or float array by its type and shape, the rest as Python writes it."""
    if isinstance(value, np.ndarray) and (value.size > 16 or _kind(value) == "float"):
        return f"{value.dtype} {value.shape}"
    text = repr(value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _array_difference(got, expected: np.ndarray, tolerance: float) -> list[str]:
    if not isinstance(got, np.ndarray):
        return [f"returned a value of type {type(got).__name__}, expected a numpy array of shape {expected.shape}"]
    if got.shape != expected.shape:
        turned = " (the axes are swapped)" if got.shape == expected.shape[::-1] else ""
        return [f"returned shape {got.shape}, expected {expected.shape}{turned}"]
    if _kind(got) != _kind(expected):
        return [f"returned {got.dtype}, expected {expected.dtype}"]
    wrong = _wrong_places(got, expected, tolerance)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return [
            f"{wrong.sum()} of {wrong.size} values are wrong, the first at {list(at)}: "
            f"it is {_short(got[at])}, right is {_short(expected[at])}"
        ]
    if got.dtype != expected.dtype and _kind(expected) == "float":
        return [f"the values are right, but {got.dtype}; expected {expected.dtype}"]
    return []


def _wrong_places(got: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray:
    if _kind(expected) != "float" or _kind(got) not in ("float", "integer"):
        return got != expected
    finite = np.abs(expected[np.isfinite(expected)])
    bound = tolerance * (finite.max() if finite.size else 1.0)
    return ~np.isclose(got.astype(np.float64), expected.astype(np.float64), rtol=0, atol=bound, equal_nan=True)


def _kind(array: np.ndarray) -> str:
    return {"f": "float", "i": "integer", "u": "integer", "b": "bool"}.get(array.dtype.kind, str(array.dtype))


def _number_difference(got, expected: float, tolerance: float) -> list[str]:
    if np.ndim(got):
        return [f"returned shape {np.shape(got)}, expected one number; is a mean or a sum missing?"]
    if isinstance(got, np.ndarray) and got.dtype.kind in "fiu":
        got = got.item()
    if not isinstance(got, numbers.Real) or isinstance(got, bool):
        return [f"returned a value of type {type(got).__name__}, expected a number"]
    if not agree(got, expected, tolerance):
        return [f"returned {_short(got)}, right is {_short(expected)}"]
    return []


def _mapping_difference(got, expected: Mapping) -> list[str]:
    if not isinstance(got, Mapping):
        return [f"returned a value of type {type(got).__name__}, expected a {type(expected).__name__}"]
    for key, value in expected.items():
        if key not in got:
            return [f"{key!r} is missing; its value is {value!r}"]
        if got[key] != value:
            return [f"the value of {key!r} is {describe(got[key])}, right is {value!r}"]
    more = [key for key in got if key not in expected]
    return [f"{describe(more[0])} is there ({describe(got[more[0]])}), and should not be"] if more else []


def _sequence_difference(got, expected: list | tuple) -> list[str]:
    if not isinstance(got, (list, tuple)):
        return [f"returned a value of type {type(got).__name__}, expected {describe(expected)}"]
    if tuple(got) != tuple(expected):
        return [f"returned {describe(got)}, right is {describe(expected)}"]
    return []


def _short(value) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
