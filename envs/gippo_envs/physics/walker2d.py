"""The walker: two legs in a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gippo_envs.physics.hopper import Upright


@dataclass
class Walker2d(Upright):
    """
    Walk forward, on Gymnasium's model and its motors; reward and end: :class:`~gippo_envs.physics.hopper.Upright`.

    State [x, z, pitch, thigh, leg, foot, thigh, leg, foot] and their velocities, z from 1.25 m; observation: all but x.
    """

    file: str = "walker2d_v5.xml"
    strength: float | None = 100.0
    joint_damping: float = 5.0

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.dof_armature[3:] = 0.1
