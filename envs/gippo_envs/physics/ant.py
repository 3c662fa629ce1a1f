"""The ant: four legs in space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.physics import mjcf
from gippo_envs.physics.robot import Robot
from gippo_envs.physics.tree import Tree


@dataclass
class Spatial(Robot):
    """
    A robot with a free torso and m hinges with a motor each, in their order, on its way along x.

    State [torso's place (3) and quaternion w, x, y, z, joints (m), velocity of the torso's origin (world, 3), angular velocity
    (in the torso, 3), rates of the joints (m), last action (m)]. Observation [height, quaternion (4), velocity (3), angular
    velocity in the world (3), joints (m), 0.1 · rates (m), up, heading, last action (m)], where up is the torso's z-axis along
    z, and heading its x-axis along the horizontal direction to the target.

    :param height: of the torso at the start, m
    :param low: of the torso, m; below, episodes end
    :param target: x of the target, m; it lies at y = 0
    :param turn_spread: half-width of the uniform starts of the torso's angle about a random axis, rad
    :param joint_spread: the same for the joints, rad
    :param joint_damping: in addition to the file's, N m s/rad
    :param armature: of the joints, kg m²; ``None`` for the file's
    :param action_cost: weight of |action|² in the reward
    """

    start_spread: float = 0.1
    start_speed_spread: float = 0.25
    height: float = 1.0
    low: float = 0.3
    target: float = 1e4
    turn_spread: float = math.pi / 24
    joint_spread: float = 0.2
    joint_damping: float = 10.0
    armature: float | None = None
    action_cost: float = 0.0

    keeps_action: ClassVar[bool] = True

    def prepare(self, model: Any) -> None:
        model.dof_damping[6:] += self.joint_damping
        if self.armature is not None:
            model.dof_armature[6:] = self.armature

    def arrange(self, tree: Tree) -> Tree:
        return replace(tree, motors=tuple(sorted(tree.motors, key=lambda motor: motor.v)))

    @property
    def observation_size(self) -> int:
        return 13 + 3 * len(self.tree.motors)

    @property
    def joints_start(self) -> list[float]:
        """:return: angles of the joints at the start, rad"""
        return [0.0] * (self.tree.nq - 7)

    @property
    def start(self) -> list[float]:
        return [0.0, 0.0, self.height, 1.0, 0.0, 0.0, 0.0, *self.joints_start]

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        start, noise = self._tensor(self.start), self._uniform(n, 7 + 2 * self.tree.nv, generator)
        place = start[:3] + self.start_spread * noise[:, :3]
        axis = noise[:, 3:6] / noise[:, 3:6].norm(dim=1, keepdim=True).clamp_min(1e-9)
        half = 0.5 * self.turn_spread * noise[:, 6:7]
        joints = start[7:] + self.joint_spread * noise[:, 7 : self.tree.nq]
        velocity = self.start_speed_spread * noise[:, -self.tree.nv :]
        position = th.cat([place, half.cos(), half.sin() * axis, joints], dim=1)
        return self._with_action(position, velocity, velocity.new_zeros(n, self.action_dim))

    def observe(self, state: th.Tensor) -> th.Tensor:
        place, quaternion, joints = self.position(state).split([3, 4, self.tree.nq - 7], dim=1)
        speed, spin, rates = self.velocity(state).split([3, 3, self.tree.nv - 6], dim=1)
        up, heading = self._posture(state)
        spin = _turned(quaternion, spin)
        parts = [place[:, 2:], quaternion, speed, spin, joints, 0.1 * rates, up[:, None], heading[:, None]]
        return th.cat([*parts, state[:, -self.action_dim :]], dim=1)

    def _posture(self, state: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: up and heading, (n,) each"""
        w, x, y, z = state[:, 3:7].unbind(1)
        ahead, aside = self.target - state[:, 0], -state[:, 1]
        forward = (1 - 2 * (y * y + z * z)) * ahead + 2 * (x * y + w * z) * aside
        return 1 - 2 * (x * x + y * y), forward / th.hypot(ahead, aside).clamp_min(1e-9)

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        up, heading = self._posture(state)
        speed = self.velocity(state)[:, 0]
        return speed + 0.1 * up + heading + self.standing(state[:, 2]) - self.action_cost * action.square().sum(1)

    def standing(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: height of the torso (n,), m
        :return: what it earns, (n,)
        """
        return z - self.low

    def terminated(self, state: th.Tensor) -> th.Tensor:
        return ~(state[:, 2] >= self.low)


def _turned(quaternion: th.Tensor, vector: th.Tensor) -> th.Tensor:
    """:return: the vectors (n, 3), turned by the unit quaternions (n, 4)"""
    w, axis = quaternion[:, :1], quaternion[:, 1:]
    twice = 2 * th.linalg.cross(axis, vector)
    return vector + w * twice + th.linalg.cross(axis, twice)


@dataclass
class Ant(Spatial):
    """
    Run along x on four legs (after DiffRL's ant, on Gymnasium's model).

    State, observation and their parts up and heading: :class:`Spatial`, with hip_1, ankle_1, ..., ankle_4 as joints. Reward

        ẋ + 0.1 up + heading + (height - low).

    Episodes end where the torso is below ``low``.

    :param strength: of the motors, N m at an action of 1
    :param mass: of the whole robot, kg
    :param hip_range: half-width of the hips' range, rad
    :param ankle_range: of the ankles, rad; mirrored for two of them
    """

    file: str = "ant.xml"
    contact_stiffness: float = 4e4
    contact_damping: float = 1e4
    friction: float = 0.75
    slip_damping: float = 3e3
    height: float = 0.75
    low: float = 0.27
    armature: float | None = 0.05
    strength: float = 200.0
    mass: float = 182.17602
    hip_range: float = math.radians(40)
    ankle_range: tuple[float, float] = (math.radians(30), math.radians(100))

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        mjcf.scale_mass(model, self.mass)
        model.actuator_gear[:, 0] = self.strength
        model.jnt_range[1::2] = -self.hip_range, self.hip_range
        low, high = self.ankle_range
        model.jnt_range[2::2] = np.array([(low, high), (-high, -low), (-high, -low), (low, high)])

    @property
    def joints_start(self) -> list[float]:
        return [0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0]
