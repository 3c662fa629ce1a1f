"""Central differences that know how far they can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Differences(NamedTuple):
    """Derivatives by central differences, with bounds for the true ones; each (outputs, inputs)."""

    central: np.ndarray
    low: np.ndarray
    high: np.ndarray


ROUNDING = 32.0
"""by how many roundings of its largest number a function's value is taken to be off"""


Function = Callable[[np.ndarray], np.ndarray]


def central_differences(
    function: Function, rounded: Function, x: np.ndarray, steps: np.ndarray, eps: np.ndarray
) -> Differences:
    """
    Differentiate a function by central differences with half of ``steps``, the whole ones telling how far to trust them.

    A smooth function's differences converge, which bounds their error. Where the slope itself jumps (contact, a limit), the
    second difference over the step does not shrink with it, and every value between the slopes to the left and to the right is
    within the bounds.

    :param function: (inputs,) to (outputs,)
    :param rounded: the inputs (inputs,) as the function's types leave them
    :param x: (inputs,)
    :param steps: (inputs,), positive
    :param eps: (inputs,), relative rounding error of what the function computes from each
    :return: derivatives and their bounds
    """
    value = function(x).astype(np.float64)
    shape = (len(value), len(x))
    central, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, step in enumerate(steps):
        (far, far_left, far_right), (near, left, right) = (
            _slopes(function, rounded, value, x, i, size) for size in (step, step / 2)
        )
        scale = max(1.0, float(np.abs(value).max(initial=0.0)), float(np.abs(x).max()))
        doubt = 3 * np.abs(near - far) + ROUNDING * eps[i] * scale / step
        kink = np.abs(right - left) > 0.6 * np.abs(far_right - far_left)
        central[:, i] = near
        low[:, i] = np.where(kink, np.minimum(np.minimum(left, right), near), near) - doubt
        high[:, i] = np.where(kink, np.maximum(np.maximum(left, right), near), near) + doubt
    return Differences(central, low, high)


def _slopes(
    function: Function, rounded: Function, value: np.ndarray, x: np.ndarray, i: int, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central, left and right difference quotients by entry i, with the steps as rounding leaves them."""
    ends = []
    for sign in (-1, 1):
        moved = x.copy()
        moved[i] += sign * step
        moved = rounded(moved)
        ends.append((float(moved[i]) - float(x[i]), function(moved).astype(np.float64)))
    (back, below), (ahead, above) = ends
    return (above - below) / (ahead - back), (below - value) / back, (above - value) / ahead
