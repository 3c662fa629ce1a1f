"""What central differences say of given derivatives: right, wrong, or nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sb3_gippo.checker.differences import Differences

SMALL = 1e-3
"""entries below this share of their row's largest may be as wrong as one of that size, and so may those whose input, in all
its range, moves the output by less than this share of it"""
SHOWN = 0.5
"""a derivative is judged if the differences exclude one that is off by more than this share of it, as one that is missing"""


class Verdict(NamedTuple):
    """What differences say of given derivatives, each (outputs, inputs)."""

    error: np.ndarray
    """how far they are off, as a share of what is tolerated"""
    judged: np.ndarray
    """whether the differences would have shown a wrong one"""

    @property
    def settled(self) -> np.ndarray:
        """:return: which are right, (outputs, inputs)"""
        return self.judged & (self.error <= 1)


class Given(NamedTuple):
    """Derivatives as an environment gives them, with what is needed to tell large from small, whatever the units."""

    derivatives: np.ndarray
    """(outputs, inputs)"""
    tolerance: np.ndarray | float
    """relative, (outputs, inputs)"""
    outputs: np.ndarray
    """how large these are, (outputs,)"""
    inputs: np.ndarray
    """how large these are, (inputs,), positive"""

    @property
    def small(self) -> np.ndarray:
        """:return: what is small beside the largest of its row, both as a number and by what it does, (outputs, inputs)"""
        size = np.abs(self.derivatives)
        largest = size.max(axis=1, keepdims=True, initial=0.0)
        effect = (size * self.inputs).max(axis=1, keepdims=True, initial=0.0)
        return SMALL * np.minimum(largest, effect / self.inputs)

    @property
    def tolerated(self) -> np.ndarray:
        """:return: how far entries may be off at least, however small they are, (outputs, inputs)"""
        return self.tolerance * np.maximum(self.small, SMALL * self.outputs[:, None] / self.inputs)

    def verdict(self, differences: Differences) -> Verdict:
        """
        An entry is judged if all that is within the bounds of its difference is near it: a wrong one would have been
        outside. Of one that is zero nothing tells how large it ought to be, so that must be near as seen by its row, or the
        output must not have moved at all.

        :param differences: of the same outputs by the same inputs
        """
        given, (central, low, high, still) = self.derivatives, differences
        room = np.where(given > central, high - central, central - low)
        size = np.maximum(np.abs(given), np.abs(central))
        off = np.abs(given - central)
        tolerated = room + np.maximum(self.tolerance * size, self.tolerated)
        error = np.divide(off, tolerated, out=np.zeros_like(off), where=off > 0)
        near = np.maximum(SHOWN, self.tolerance) * np.maximum(size, self.small)
        judged = np.maximum(high - given, given - low) <= near
        return Verdict(error, judged | (still & (given == 0)))
