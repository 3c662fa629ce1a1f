"""The picture of a straight road with vehicles, from above."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gippo_envs.rendering import Canvas, Color, Point

BEHIND, AHEAD = 80.0, 30.0
"""how much of the road is seen, m from the pace car"""
SCALE = 8
"""pixels per metre"""
VEHICLE_WIDTH = 2.0
VERGE = 2.0
GRASS, ASPHALT, LINE, DASH, OUTLINE = (96, 140, 88), (70, 70, 74), (235, 235, 235), (200, 200, 200), (255, 255, 255)
COLORS = np.array([[214, 48, 39], [60, 186, 84], [66, 116, 220]])
"""at standstill, at the target speed, and at twice that or more"""


def picture(
    vehicles: Sequence[Sequence[float]], heading: float, length: float, lanes: int, lane_width: float, target_speed: float
) -> np.ndarray:
    """
    The road around the pace car, which is outlined. Vehicles are red at standstill, green at the target speed, blue when fast.

    :param vehicles: x, y and speed of each, m and m/s; the last one is the pace car
    :param heading: the pace car's, rad; the others' is 0
    :param length: of a vehicle, m
    :param lanes: number of lanes
    :param lane_width: m
    :param target_speed: m/s
    :return: an image (height, width, 3) of unsigned bytes
    """
    *others, (x, y, speed) = vehicles
    left, right = x - BEHIND, x + AHEAD
    road, middle, center = lanes * lane_width, lane_width * (lanes - 1) / 2, (left + right) / 2
    width, height = int(SCALE * (BEHIND + AHEAD)), int(SCALE * (road + 2 * VERGE))
    canvas = Canvas(width, height, (center, middle), SCALE, GRASS)
    canvas.polygon(_rectangle((center, middle), right - left, road), ASPHALT)
    for border in (-lane_width / 2, road - lane_width / 2):
        canvas.polygon(_rectangle((center, border), right - left, 0.2), LINE)
    for lane in range(1, lanes):
        for dash in range(math.floor(left / 10), math.ceil(right / 10) + 1):
            canvas.polygon(_rectangle((10.0 * dash, lane_width * (lane - 0.5)), 3.0, 0.15), DASH)
    for position, lateral, own in others:
        canvas.polygon(_rectangle((position, lateral), length, VEHICLE_WIDTH), _color(own / target_speed))
    canvas.polygon(_rectangle((x, y), length + 0.8, VEHICLE_WIDTH + 0.8, heading), OUTLINE)
    canvas.polygon(_rectangle((x, y), length, VEHICLE_WIDTH, heading), _color(speed / target_speed))
    return canvas.array()


def _color(relative_speed: float) -> Color:
    red, green, blue = (int(np.interp(relative_speed, [0, 1, 2], COLORS[:, channel])) for channel in range(3))
    return red, green, blue


def _rectangle(center: Point, length: float, width: float, heading: float = 0.0) -> list[Point]:
    """:return: its corners"""
    cos, sin = math.cos(heading), math.sin(heading)
    corners = ((length, width), (-length, width), (-length, -width), (length, -width))
    return [(center[0] + (a * cos - b * sin) / 2, center[1] + (a * sin + b * cos) / 2) for a, b in corners]
