"""The half-cheetah: two legs and a trunk that run in a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from gippo_envs.physics.hopper import Planar

LIMITS = ((-0.52, 1.05), (-0.785, 0.785), (-0.4, 0.785), (-1.5, 0.8), (-1.2, 1.1), (-3.1, -0.3))
"""DiffRL's, rad; the front foot starts beyond its own"""


@dataclass
class HalfCheetah(Planar):
    """
    Run forward (after DiffRL's half-cheetah, on Gymnasium's model).

    State [x, z, pitch, bthigh, bshin, bfoot, fthigh, fshin, ffoot] and their velocities, z from 1 m; observation: all but x.
    Reward ẋ - 0.1 |a|²; episodes end by the time limit only.

    :param start_height: of the start above z = 0, m
    """

    file: str = "half_cheetah.xml"
    contact_damping: float = 1e3
    friction: float = 1.0
    start_spread: float = 0.1
    start_speed_spread: float = 0.25
    strength: float | None = 200.0
    mass: float | None = 21.184
    root_damping: float = 10.0
    joint_damping: float = 10.0
    start_height: float = -0.2

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.dof_armature[:] = 0.1
        model.jnt_range[3:] = LIMITS
        model.body_pos[1, 2] = 1.0

    @property
    def start(self) -> list[float]:
        return [0.0, self.start_height, *np.zeros(7).tolist()]

    def terminated(self, state: th.Tensor) -> th.Tensor:
        return ~state.isfinite().all(1)
