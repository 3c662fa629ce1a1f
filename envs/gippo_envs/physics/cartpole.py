"""Cart-pole swing-up, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.core import FunctionalEnv
from gippo_envs.rendering import Canvas


@dataclass
class CartPoleSwingUp(FunctionalEnv):
    """
    Swing a pole up from hanging and balance it, by pushing the cart it is hinged to (after DiffRL's cart-pole).

    State [x, θ, ẋ, θ̇] with θ = 0 upright; observation [x, ẋ, sin θ, cos θ, θ̇]; action in [-1, 1], times ``max_force``.
    The reward -θ² - 0.1 θ̇² - 0.05 x² - 0.1 ẋ², with θ wrapped to [-π, π], is that of the state after the step. Episodes
    end by the time limit only. With M, m the masses of cart and pole, l the distance from the hinge to the pole's centre of
    mass and I the pole's inertia about the hinge:

        (M + m + armature) ẍ + m l (θ̈ cos θ - θ̇² sin θ) = F - damping ẋ + rail
        (I + armature) θ̈ + m l ẍ cos θ - m g l sin θ = - damping θ̇

    integrated by semi-implicit Euler over ``substeps``, the mass matrix refreshed in every substep.

    :param dt: seconds per step
    :param substeps: integration steps per step
    :param gravity: m/s²
    :param cart_mass: kg
    :param pole_mass: kg
    :param pole_length: m; the centre of mass is halfway
    :param pole_inertia: about the pole's centre of mass, kg m²
    :param armature: added to both diagonal entries of the mass matrix (kg, kg m²)
    :param cart_damping: N s/m
    :param pole_damping: N m s/rad
    :param rail: half-length of the rail, m; beyond it a spring pushes back
    :param rail_stiffness: of that spring, N/m
    :param max_force: N
    :param start_spread: width of the uniform starts of x (m) and θ (rad), about 0 and hanging
    :param start_speed_spread: the same for ẋ (m/s) and θ̇ (rad/s)
    :param frozen_mass_matrix: keep the mass matrix of the step's first substep, as DiffRL does
    :param dtype: ``"float32"`` or ``"float64"``
    :param device: of torch
    :raises ValueError: for constants no cart-pole can have
    """

    dt: float = 1 / 60
    substeps: int = 4
    gravity: float = 9.81
    cart_mass: float = 50.0
    pole_mass: float = 2.5
    pole_length: float = 1.0
    pole_inertia: float = 0.208854
    armature: float = 0.01
    cart_damping: float = 1.0
    pole_damping: float = 1.0
    rail: float = 4.0
    rail_stiffness: float = 100.0
    max_force: float = 1000.0
    start_spread: float = math.pi
    start_speed_spread: float = 0.5
    frozen_mass_matrix: bool = False
    dtype: str = "float32"
    device: str = "cpu"

    render_fps: ClassVar[int] = 60

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise ValueError(f"substeps must be at least 1, not {self.substeps}.")
        for name in ("dt", "cart_mass", "pole_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("pole_mass", "pole_inertia", "armature", "cart_damping", "pole_damping", "rail", "rail_stiffness"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or positive, not {getattr(self, name)}.")
        self.state_size = 4
        self.observation_space = self.box(-np.inf, np.inf, 5)
        self.action_space = self.box(-1.0, 1.0, 1)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        uniform = th.rand(n, 4, generator=generator, dtype=self.torch_dtype, device=self.torch_device) - 0.5
        spread = [self.start_spread, self.start_spread, self.start_speed_spread, self.start_speed_spread]
        center = [0.0, -math.pi, 0.0, 0.0]
        start, width = (th.tensor(row, dtype=uniform.dtype, device=uniform.device) for row in (center, spread))
        return start + uniform * width

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        x, angle, speed, spin = state.unbind(1)
        force = action[:, 0].clamp(-1.0, 1.0) * self.max_force
        moment = self.pole_mass * self.pole_length / 2
        h_cart = self.cart_mass + self.pole_mass + self.armature
        h_pole = self.pole_inertia + moment * self.pole_length / 2 + self.armature
        h = self.dt / self.substeps
        coupling = moment * angle.cos()
        for _ in range(self.substeps):
            sine = angle.sin()
            if not self.frozen_mass_matrix:
                coupling = moment * angle.cos()
            beyond = x - x.clamp(-self.rail, self.rail)
            push = force - self.cart_damping * speed - self.rail_stiffness * beyond + moment * spin.square() * sine
            twist = moment * self.gravity * sine - self.pole_damping * spin
            determinant = h_cart * h_pole - coupling.square()
            speed = speed + h * (h_pole * push - coupling * twist) / determinant
            spin = spin + h * (h_cart * twist - coupling * push) / determinant
            x = x + h * speed
            angle = angle + h * spin
        wrapped = th.atan2(angle.sin(), angle.cos())
        reward = -wrapped.square() - 0.1 * spin.square() - 0.05 * x.square() - 0.1 * speed.square()
        next_state = th.stack([x, angle, speed, spin], dim=1)
        return next_state, reward, th.zeros(len(state), dtype=th.bool, device=self.torch_device)

    def observe(self, state: th.Tensor) -> th.Tensor:
        x, angle, speed, spin = state.unbind(1)
        return th.stack([x, speed, angle.sin(), angle.cos(), spin], dim=1)

    def render(self, state: th.Tensor, action: th.Tensor | None = None) -> np.ndarray:
        x, angle = float(state[0]), float(state[1])
        canvas = Canvas(600, 300, center=(0.0, 0.2), scale=600 / (2 * self.rail + 2.0))
        canvas.line((-self.rail, 0.0), (self.rail, 0.0), (150, 150, 150), 0.04)
        canvas.polygon([(x + dx, dy) for dx, dy in ((-0.35, -0.2), (0.35, -0.2), (0.35, 0.2), (-0.35, 0.2))], (60, 60, 60))
        tip = (x + self.pole_length * math.sin(angle), self.pole_length * math.cos(angle))
        canvas.line((x, 0.0), tip, (202, 152, 101), 0.12)
        canvas.circle((x, 0.0), 0.08, (129, 132, 203))
        return canvas.array()
