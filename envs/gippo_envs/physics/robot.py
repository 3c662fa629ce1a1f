"""Robots as differentiable environments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.core import FunctionalEnv
from gippo_envs.physics import mjcf
from gippo_envs.physics.compiled import Kernels, Step, kernels
from gippo_envs.physics.dynamics import Constants
from gippo_envs.physics.tree import Tree


@dataclass
class Robot(FunctionalEnv):
    """
    A robot from an MJCF file, on soft ground, pushed by its motors.

    The state is MuJoCo's positions and velocities, [qpos, qvel], the action in [-1, 1] a share of every motor's range. As it
    stands it observes [qpos, qvel], earns the speed of its first joint (along x for most robots) minus 0.1 |action|², starts
    near the file's pose and never ends. For a task of your own override :meth:`reward`, :meth:`observe`, :meth:`terminated`
    and :attr:`start`.

    The equations of :mod:`gippo_envs.physics.dynamics` are integrated by semi-implicit Euler over ``substeps``, the mass
    matrix refreshed in every one.

    :param file: path of an MJCF file, or the name of one of Gymnasium's (``"ant.xml"``)
    :param dt: seconds per step
    :param substeps: integration steps per step
    :param gravity: m/s²
    :param contact_stiffness: of the ground, N/m
    :param contact_damping: of the ground while it is approached, N s/m per metre of depth
    :param friction: Coulomb's coefficient
    :param slip_damping: N s/m; friction before it slips is viscous. Smaller is smoother
    :param limit_stiffness: of the joints' limits, N/m or N m/rad
    :param start_spread: half-width of the uniform starts of positions about :attr:`start`, m or rad
    :param start_speed_spread: the same for velocities
    :param dtype: ``"float32"`` or ``"float64"``
    :param device: of torch
    :raises ValueError: for a model with what the engine does not carry, or constants no robot can have
    :raises DependencyNotInstalled: without MuJoCo, and without Warp at the first step
    """

    file: str = ""
    dt: float = 1 / 60
    substeps: int = 16
    gravity: float = 9.81
    contact_stiffness: float = 2e4
    contact_damping: float = 5e3
    friction: float = 0.9
    slip_damping: float = 1e3
    limit_stiffness: float = 1e3
    start_spread: float = 0.05
    start_speed_spread: float = 0.05
    dtype: str = "float32"
    device: str = "cpu"

    render_fps: ClassVar[int] = 60
    keeps_action: ClassVar[bool] = False
    """whether the last action is a part of the state, behind positions and velocities, that it can be observed"""

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise ValueError(f"substeps must be at least 1, not {self.substeps}.")
        if not self.dt > 0:
            raise ValueError(f"dt must be positive, not {self.dt}.")
        for name in (
            *("contact_stiffness", "contact_damping", "friction", "slip_damping", "limit_stiffness"),
            *("start_spread", "start_speed_spread"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or positive, not {getattr(self, name)}.")
        self.model = mjcf.load(self.file)
        self.prepare(self.model)
        mjcf.refresh(self.model)
        self.tree = self.arrange(mjcf.tree(self.model))
        nu = len(self.tree.motors)
        self.state_size = self.tree.nq + self.tree.nv + (nu if self.keeps_action else 0)
        self.action_space = self.box(-1.0, 1.0, nu)
        self.observation_space = self.box(-np.inf, np.inf, self.observation_size)

    def prepare(self, model: Any) -> None:
        """
        Change the model before it is used; as it stands, nothing is.

        :param model: MuJoCo's, an ``MjModel``
        """

    def arrange(self, tree: Tree) -> Tree:
        """
        :param tree: the robot in the model
        :return: the robot to simulate
        """
        return tree

    @property
    def observation_size(self) -> int:
        """:return: k, the length of the observation"""
        return self.state_size

    @property
    def start(self) -> list[float]:
        """:return: positions (nq,) about which episodes start"""
        return list(self.tree.start)

    def position(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: (n, state_size)
        :return: (n, nq)
        """
        return state[:, : self.tree.nq]

    def velocity(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: (n, state_size)
        :return: (n, nv)
        """
        return state[:, self.tree.nq : self.tree.nq + self.tree.nv]

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param state: after the step, (n, state_size)
        :param action: inside the action space, (n, action_dim)
        :return: (n,)
        """
        return self.velocity(state)[:, 0] - 0.1 * action.square().sum(1)

    def terminated(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: after the step, (n, state_size)
        :return: (n,) of bools
        """
        return th.zeros(len(state), dtype=th.bool, device=state.device)

    def observe(self, state: th.Tensor) -> th.Tensor:
        return state

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        uniform = self._uniform(n, self.tree.nq + self.tree.nv, generator)
        position = self._tensor(self.start) + self.start_spread * uniform[:, : self.tree.nq]
        for link in self.tree.links:
            if link.kind == "ball":
                quaternion = position[:, link.q : link.q + 4]
                position[:, link.q : link.q + 4] = quaternion / quaternion.norm(dim=1, keepdim=True)
        velocity = self.start_speed_spread * uniform[:, self.tree.nq :]
        return self._with_action(position, velocity, velocity.new_zeros(n, self.action_dim))

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        action = action.clamp(-1.0, 1.0)
        given = state[:, : self.tree.nq + self.tree.nv].T
        constants = _tensor(self.constants, self.torch_dtype, self.torch_device)
        moved = Step.apply(given, action.T, constants, self._kernels, self.substeps).T
        after = th.cat([moved, action], dim=1) if self.keeps_action else moved
        return after, self.reward(after, action), self.terminated(after.detach())

    @property
    def constants(self) -> Constants:
        """:return: of this robot's world"""
        return Constants(
            h=self.dt / self.substeps,
            gravity=self.gravity,
            contact_stiffness=self.contact_stiffness,
            contact_damping=self.contact_damping,
            friction=self.friction,
            slip_damping=self.slip_damping,
            limit_stiffness=self.limit_stiffness,
            ground=self.tree.ground,
        )

    @cached_property
    def _kernels(self) -> Kernels:
        return kernels(self.tree, self.torch_dtype, self.torch_device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kernels"}  # they are this process's

    def _tensor(self, numbers: Any) -> th.Tensor:
        return th.tensor(list(numbers), dtype=self.torch_dtype, device=self.torch_device)

    def _uniform(self, n: int, size: int, generator: th.Generator) -> th.Tensor:
        """:return: (n, size), uniform in [-1, 1]"""
        return 2 * th.rand(n, size, generator=generator, dtype=self.torch_dtype, device=self.torch_device) - 1

    def _with_action(self, position: th.Tensor, velocity: th.Tensor, action: th.Tensor) -> th.Tensor:
        return th.cat([position, velocity, action] if self.keeps_action else [position, velocity], dim=1)

    def render(self, state: th.Tensor, action: th.Tensor | None = None) -> np.ndarray:
        from gippo_envs.physics.picture import draw

        return draw(self.model, state[: self.tree.nq].double().cpu().numpy())


@lru_cache(maxsize=16)
def _tensor(constants: Constants, dtype: th.dtype, device: th.device) -> th.Tensor:
    """:return: the same one for the same constants, that a step does not wait for it"""
    return th.tensor(constants, dtype=dtype, device=device)
