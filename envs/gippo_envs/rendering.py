"""Drawing with Pillow, at twice the size and scaled down, which smooths the edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gymnasium.error import DependencyNotInstalled

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Pencil

Point = tuple[float, float]
Color = tuple[int, int, int]


class Canvas:
    """
    A picture in world coordinates, x to the right and y up.

    :param width: in pixels
    :param height: in pixels
    :param center: the world point in the middle of the picture
    :param scale: pixels per world unit
    :raises DependencyNotInstalled: without Pillow
    """

    SUPERSAMPLING = 2

    def __init__(self, width: int, height: int, center: Point, scale: float, background: Color = (255, 255, 255)):
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise DependencyNotInstalled('Drawing needs Pillow: pip install "sb3-gippo[plots]"') from error
        self.size = (width, height)
        self._center = center
        self._scale = scale * self.SUPERSAMPLING
        self._image = Image.new("RGB", (width * self.SUPERSAMPLING, height * self.SUPERSAMPLING), background)
        self._draw: Pencil = ImageDraw.Draw(self._image)

    def _pixel(self, point: Point) -> Point:
        return (
            self._image.width / 2 + (point[0] - self._center[0]) * self._scale,
            self._image.height / 2 - (point[1] - self._center[1]) * self._scale,
        )

    def polygon(self, points: list[Point], color: Color) -> None:
        """Fill the polygon of these world points."""
        self._draw.polygon([self._pixel(point) for point in points], fill=color)

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        """Draw a line, ``width`` in world units, with round ends."""
        pixels = max(1, round(width * self._scale))
        self._draw.line([self._pixel(start), self._pixel(end)], fill=color, width=pixels)
        for point in (start, end):
            self.circle(point, width / 2, color)

    def circle(self, center: Point, radius: float, color: Color) -> None:
        """Fill a circle, ``radius`` in world units."""
        x, y = self._pixel(center)
        r = radius * self._scale
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=color)

    def image(self, pixels: np.ndarray, low: Point, high: Point) -> None:
        """Stretch an image (rows, columns, 3) of unsigned bytes over the rectangle between these world points."""
        from PIL import Image

        left, bottom, right, top = (round(value) for point in (low, high) for value in self._pixel(point))
        self._image.paste(Image.fromarray(pixels).resize((right - left, bottom - top), resample=2), (left, top))

    def array(self) -> np.ndarray:
        """:return: the picture (height, width, 3) of unsigned bytes"""
        return np.asarray(self._image.resize(self.size, resample=1))
