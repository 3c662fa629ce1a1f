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
    still: np.ndarray
    """whether the output stayed the same, to the last bit, however the input was moved"""

    @classmethod
    def unknown(cls, outputs: int, inputs: int) -> Differences:
        """:return: those of a function nobody looked at: anything is within the bounds"""
        shape = (outputs, inputs)
        return cls(np.zeros(shape), np.full(shape, -np.inf), np.full(shape, np.inf), np.zeros(shape, dtype=bool))

    @property
    def doubt(self) -> np.ndarray:
        """:return: how far the bounds are apart"""
        return self.high - self.low

    def excludes(self, other: Differences) -> np.ndarray:
        """:return: where no derivative is within the bounds of both"""
        return (self.high < other.low) | (other.high < self.low)

    def replaced(self, where: np.ndarray, other: Differences) -> Differences:
        """:return: those of ``other``, where so, and these elsewhere"""
        return Differences(*(np.where(where, theirs, mine) for mine, theirs in zip(self, other)))


ROUNDING = 32.0
"""by how many roundings of the numbers it comes from a function's value is taken to be off"""


Function = Callable[[np.ndarray], np.ndarray]


def central_differences(
    function: Function,
    rounded: Function,
    x: np.ndarray,
    steps: np.ndarray,
    eps: np.ndarray,
    sizes: np.ndarray | float = 0.0,
) -> Differences:
    """
    Differentiate a function by central differences with half of ``steps``, the whole ones telling how far to trust them.

    A smooth function's differences converge, which bounds their error. Where the slope itself jumps (contact, a limit), the
    second difference over the step does not shrink with it, and every value between the slopes to the left and to the right is
    within the bounds.

    :param function: (inputs,) to (outputs,)
    :param rounded: the inputs (inputs,) as the function's types leave them
    :param x: (inputs,)
    :param steps: (inputs,); by inputs whose step is zero, or too short to be seen, nothing is known
    :param eps: (inputs,), relative rounding error of what the function computes from each
    :param sizes: (outputs,), how large the function's values are elsewhere, of which one here may be a small difference
    :return: derivatives and their bounds
    """
    value = function(x).astype(np.float64)
    found = Differences.unknown(len(value), len(x))
    central, low, high, still = found
    moves = np.zeros(central.shape)
    for i, step in enumerate(steps):
        ends = [_ends(function, rounded, x, i, size) for size in (step, step / 2)]
        if any(back == 0 or ahead == 0 for (back, _), (ahead, _) in ends):
            continue
        (far, far_left, far_right), (near, left, right) = (_slopes(value, *pair) for pair in ends)
        doubt = 3 * np.abs(near - far)
        kink = np.abs(right - left) > 0.6 * np.abs(far_right - far_left)
        bounds = (
            np.where(kink, np.minimum(np.minimum(left, right), near), near) - doubt,
            np.where(kink, np.maximum(np.maximum(left, right), near), near) + doubt,
        )
        # Where the function has no value, its slope may be anything.
        finite = np.isfinite(bounds).all(axis=0)
        central[finite, i] = near[finite]
        low[finite, i], high[finite, i] = bounds[0][finite], bounds[1][finite]
        still[:, i] = finite & np.logical_and.reduce([end == value for pair in ends for _, end in pair])
        # What the input adds to the value: large numbers that cancel leave their rounding behind. At a jump one slope is none.
        moves[finite, i] = (np.minimum(np.abs(left), np.abs(right)) * max(abs(x[i]), step))[finite]
    scale = np.maximum(np.maximum(np.abs(value), sizes), moves.max(axis=1, initial=0.0))[:, None]
    room = ROUNDING * eps * scale / np.where(steps > 0, steps, 1.0)
    return Differences(central, low - room, high + room, still)


End = tuple[float, np.ndarray]


def _ends(function: Function, rounded: Function, x: np.ndarray, i: int, step: float) -> tuple[End, End]:
    """How far entry i is moved back and ahead, as rounding leaves it, and the values there."""
    ends = []
    for sign in (-1, 1):
        moved = x.copy()
        moved[i] += sign * step
        moved = rounded(moved)
        by = float(moved[i]) - float(x[i])
        ends.append((by, function(moved).astype(np.float64) if by else np.zeros(0)))
    return ends[0], ends[1]


def _slopes(value: np.ndarray, back: End, ahead: End) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central, left and right difference quotients."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (
            (ahead[1] - back[1]) / (ahead[0] - back[0]),
            (back[1] - value) / back[0],
            (ahead[1] - value) / ahead[0],
        )
