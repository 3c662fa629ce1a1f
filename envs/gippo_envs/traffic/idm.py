"""The Intelligent Driver Model (Treiber, Hennecke and Helbing 2000): how a driver follows the vehicle ahead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch as th

Constant: TypeAlias = "float | th.Tensor"


@dataclass(frozen=True)
class IDM:
    """
    A driver's constants: numbers, or tensors that broadcast with the vehicles'.

    :param max_acceleration: a, m/s²
    :param comfortable_deceleration: b, m/s²
    :param desired_speed: v0 on a free road, m/s
    :param min_gap: s0, kept when standing, m
    :param time_headway: T, s
    :param exponent: δ, how late the acceleration fades on the way to the desired speed
    :param gap_floor: smaller gaps count as this, m
    """

    max_acceleration: Constant = 35.0
    comfortable_deceleration: Constant = 25.0
    desired_speed: Constant = 20.0
    min_gap: Constant = 1.5
    time_headway: Constant = 0.4
    exponent: float = 4.0
    gap_floor: float = 1e-3

    @cached_property
    def braking(self) -> Constant:
        """:return: 2·√(a·b), m/s²"""
        return 2 * (self.max_acceleration * self.comfortable_deceleration) ** 0.5


def acceleration(driver: IDM, speed: th.Tensor, gap: th.Tensor, approach: th.Tensor) -> th.Tensor:
    """
    a·[1 - (v/v0)^δ - (s*/g)²] with s* = max(s0 + v·T + v·Δv / (2·√(a·b)), 0).

    Its derivative by gap and approach is 0 where the gap is floored, and by s* where that is clipped at 0.

    :param driver: the constants
    :param speed: v, 0 or positive, any shape
    :param gap: g, from bumper to bumper, same shape
    :param approach: Δv, speed minus the leader's, same shape
    :return: m/s², same shape
    """
    desired_gap = th.relu(driver.min_gap + speed * (driver.time_headway + approach / driver.braking))
    slowing = (speed / driver.desired_speed).pow(driver.exponent) + (desired_gap / gap.clamp(min=driver.gap_floor)).square()
    return driver.max_acceleration - driver.max_acceleration * slowing


def next_speed(driver: IDM, dt: float, speed: th.Tensor, gap: th.Tensor, approach: th.Tensor) -> th.Tensor:
    """
    One explicit Euler step of :func:`acceleration` that stops at standstill, max(v + acc·dt, 0); there its derivatives are 0.

    :param driver: the constants
    :param dt: s
    :param speed: v, 0 or positive, any shape
    :param gap: g, from bumper to bumper, same shape
    :param approach: Δv, speed minus the leader's, same shape
    :return: the speed after dt, same shape
    """
    return th.relu(th.add(speed, acceleration(driver, speed, gap, approach), alpha=dt))
