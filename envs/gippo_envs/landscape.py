"""The picture of a function to be minimised: its curve, or its landscape over two variables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from gippo_envs.rendering import Canvas, Color, Point

SIZE = 400
"""of the picture, pixels"""
MARGIN = 0.1
"""around the action box [-1, 1]², in its units"""
MINIMUM, GUESS, CURVE, AXIS, OUTLINE = (60, 186, 84), (214, 48, 39), (59, 82, 139), (150, 150, 150), (255, 255, 255)
COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
"""from 0 to the highest value"""


def curve(values: np.ndarray, minimum: float, guess: tuple[float, float] | None) -> np.ndarray:
    """
    A function of one variable, its value upwards from 0, with a green point at the minimum and a red one at the guess.

    :param values: (n,), at n places spread evenly over [-1, 1]
    :param minimum: where it is, in [-1, 1]; its value is 0
    :param guess: where it is, and its value
    :return: an image (height, width, 3) of unsigned bytes
    """
    canvas = _canvas()
    heights = 2 * values / values.max() - 1
    points = list(zip(np.linspace(-1, 1, len(values)).tolist(), heights.tolist()))
    canvas.line((-1.0, -1.0), (1.0, -1.0), AXIS, 0.01)
    for start, end in pairwise(points):
        canvas.line(start, end, CURVE, 0.015)
    _mark(canvas, (minimum, -1.0), MINIMUM, MINIMUM)
    if guess is not None:
        place = (float(np.clip(guess[0], -1, 1)), float(np.clip(2 * guess[1] / values.max() - 1, -1, 1)))
        canvas.line((place[0], -1.0), place, GUESS, 0.01)
        _mark(canvas, place, GUESS, GUESS)
    return canvas.array()


def landscape(values: np.ndarray, minimum: Point, guess: tuple[float, float, float] | None) -> np.ndarray:
    """
    A function over two variables, dark where it is low (the scale is logarithmic), with a green point at the minimum and a
    red ring at the guess, filled with the colour of the guess's own value.

    :param values: (n, n), at places spread evenly over [-1, 1]², the first variable along the first axis
    :param minimum: where it is
    :param guess: where it is, two numbers, and its value
    :return: an image (height, width, 3) of unsigned bytes
    """
    canvas = _canvas()
    # Rows of an image go down, and along them the first variable grows.
    canvas.image(_colors(values.T[::-1], values.max()), (-1.0, -1.0), (1.0, 1.0))
    _mark(canvas, minimum, MINIMUM, MINIMUM)
    if guess is not None:
        x, y, value = guess
        red, green, blue = _colors(np.array(value), values.max()).tolist()
        _mark(canvas, (float(np.clip(x, -1, 1)), float(np.clip(y, -1, 1))), GUESS, (red, green, blue))
    return canvas.array()


def _canvas() -> Canvas:
    return Canvas(SIZE, SIZE, (0.0, 0.0), SIZE / (2 + 2 * MARGIN))


def _colors(values: np.ndarray, highest: float) -> np.ndarray:
    """:return: colours (..., 3) of unsigned bytes for values from 0 to the highest"""
    level = np.log1p(values) / np.log1p(highest)
    anchors = np.linspace(0, 1, len(COLORS))
    return np.stack([np.interp(level, anchors, channel) for channel in COLORS.T], axis=-1).astype(np.uint8)


def _mark(canvas: Canvas, place: Point, color: Color, filling: Color) -> None:
    for radius, fill in ((0.07, OUTLINE), (0.06, color), (0.03, filling)):
        canvas.circle(place, radius, fill)
