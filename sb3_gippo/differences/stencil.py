"""Forward and central differences within bounds."""

from __future__ import annotations

import numpy as np


def stencil(
    z: np.ndarray, low: np.ndarray, high: np.ndarray, epsilon: float, central: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Where a function must be evaluated to be differentiated at z. At a bound the step is to the inside.

    :param z: (n,)
    :param low: (n,)
    :param high: (n,)
    :param epsilon: step
    :param central: whether steps are made to both sides
    :return: points (p, n), of which the first is z; for each entry of the derivative the rows whose values are to be
        subtracted, above (n,) and below (n,), and what the difference is to be divided by (n,)
    """
    fits_above, fits_below = z + epsilon <= high, z - epsilon >= low
    upper = np.where(fits_above, z + epsilon, z)
    lower = np.where(~fits_above | (central & fits_below), z - epsilon, z)
    points, rows = [z[None]], []
    used = 1
    for ends in (upper, lower):
        moved = np.flatnonzero(ends != z)
        copies = np.tile(z, (len(moved), 1))
        copies[np.arange(len(moved)), moved] = ends[moved]
        row = np.zeros(len(z), dtype=int)
        row[moved] = used + np.arange(len(moved))
        used += len(moved)
        points.append(copies)
        rows.append(row)
    return np.concatenate(points), rows[0], rows[1], upper - lower
