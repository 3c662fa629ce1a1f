"""Function optimisation as one-step environments: guess the minimum, earn minus the function's value.

The observation is the constant 0, the action lies in [-1, 1]^dim and is multiplied by the function's bound.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.core import FunctionalEnv
from gippo_envs.landscape import curve, landscape


@dataclass
class Function(FunctionalEnv):
    """
    A function to be minimised, as an environment whose episodes last one step.

    :param dim: number of variables, one or more
    :param dtype: ``"float32"`` or ``"float64"``
    :param device: of torch
    """

    dim: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    bound: ClassVar[float]
    """the action box [-1, 1] stands for [-bound, bound]"""
    minimum: ClassVar[float] = 0.0
    """what every variable is at the minimum, where the value is 0"""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, not {self.dim}.")
        self.state_size = 0
        self.observation_space = self.box(-1.0, 1.0, 1)
        self.action_space = self.box(-1.0, 1.0, self.dim)

    @abstractmethod
    def value(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (n, dim), within the bounds
        :return: f(x), (n,)
        """

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        return th.zeros(n, 0, dtype=self.torch_dtype, device=self.torch_device)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        return state, -self.cost(state, action), th.ones(len(action), dtype=th.bool, device=self.torch_device)

    def cost(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param state: (n or 1, state_size)
        :param action: (n, dim)
        :return: the function's value, minus the reward, (n,)
        """
        return self.value(action * self.bound)

    def optimum(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: (n, state_size)
        :return: the best actions, (n, dim)
        """
        return state.new_full((len(state), self.dim), self.minimum / self.bound)

    def observe(self, state: th.Tensor) -> th.Tensor:
        return th.zeros(len(state), 1, dtype=self.torch_dtype, device=self.torch_device)

    @th.no_grad()
    def render(self, state: th.Tensor, action: th.Tensor | None = None) -> np.ndarray:
        """
        The function over the action box: its curve, or its landscape over the first two variables, where the others are at
        the minimum. The minimum is marked, and the action with its own value.
        """
        state = state[None]
        best = self.optimum(state)
        n = 800 if self.dim == 1 else 200
        axis = th.linspace(-1.0, 1.0, n, dtype=self.torch_dtype, device=self.torch_device)
        variables = [axis] if self.dim == 1 else [axis.repeat_interleave(n), axis.repeat(n)]
        first = th.stack(variables, dim=1)
        values = self.cost(state, th.cat([first, best[:, 2:].expand(len(first), -1)], dim=1)).cpu().numpy()
        guess = None if action is None else (*action[:2].tolist(), self.cost(state, action[None]).item())
        if self.dim == 1:
            return curve(values, best.item(), guess)
        return landscape(values.reshape(n, n), tuple(best[0, :2].tolist()), guess)


@dataclass
class DeJong(Function):
    """De Jong's first function, f = Σ x²."""

    bound: ClassVar[float] = 5.12

    def value(self, x: th.Tensor) -> th.Tensor:
        return x.square().sum(1)


@dataclass
class Ackley(Function):
    """
    Ackley's function, f = 20 + e - 20·exp(-0.2·sqrt(mean x²)) - exp(mean cos 2πx).

    It has a cusp at 0, where the gradient handed over is 0 (one of its subgradients).
    """

    bound: ClassVar[float] = 32.768

    def value(self, x: th.Tensor) -> th.Tensor:
        square = x.square().mean(1)
        at_cusp = square == 0
        # The square root is kept away from 0: its infinite slope times the square's 0 would be NaN.
        radius = th.where(at_cusp, square, th.where(at_cusp, 1.0, square).sqrt())
        # cos 2y = 1 - 2 sin² y and expm1 keep the digits that differences of numbers near 1 would lose near the minimum.
        return -20 * th.expm1(-0.2 * radius) - math.e * th.expm1(-2 * (math.pi * x).sin().square().mean(1))


@dataclass
class Rosenbrock(Function):
    """Rosenbrock's valley, f = Σ 100·(x_{i+1} - x_i²)² + (1 - x_i)²; in one dimension (1 - x)²."""

    bound: ClassVar[float] = 2.048
    minimum: ClassVar[float] = 1.0

    def value(self, x: th.Tensor) -> th.Tensor:
        if self.dim == 1:
            return (1 - x).square().sum(1)
        head, tail = x[:, :-1], x[:, 1:]
        return (100 * (tail - head.square()).square() + (1 - head).square()).sum(1)


@dataclass
class Rastrigin(Function):
    """Rastrigin's function, f = Σ x² + 10·(1 - cos 2πx)."""

    bound: ClassVar[float] = 5.12

    def value(self, x: th.Tensor) -> th.Tensor:
        return (x.square() + 20 * (math.pi * x).sin().square()).sum(1)  # 1 - cos 2y = 2 sin² y, without the loss of digits


@dataclass
class Contextual(Function):
    """
    A function whose minimum depends on an observed context o, drawn uniformly from [-1, 1]^4 for every episode: it lies at
    0.3 · bound · sin(W o), with a fixed W of standard normal entries. A policy has to learn a map, not a point.

    :param dim: number of variables, one or more
    :param dtype: ``"float32"`` or ``"float64"``
    :param device: of torch
    """

    dim: int = 4
    context_dim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.state_size = self.context_dim
        self.observation_space = self.box(-1.0, 1.0, self.context_dim)
        generator = th.Generator().manual_seed(0)  # on the CPU: the problem does not depend on where it is computed
        weights = th.randn(self.dim, self.context_dim, generator=generator)
        self.weights = weights.to(self.torch_device, self.torch_dtype)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        shape = n, self.context_dim
        return 2 * th.rand(shape, generator=generator, dtype=self.torch_dtype, device=self.torch_device) - 1

    def cost(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.value((action - self._shift(state)) * self.bound)

    def optimum(self, state: th.Tensor) -> th.Tensor:
        return super().optimum(state) + self._shift(state)

    def _shift(self, state: th.Tensor) -> th.Tensor:
        return 0.3 * (state @ self.weights.T).sin()

    def observe(self, state: th.Tensor) -> th.Tensor:
        return state


@dataclass
class DeJongContext(Contextual, DeJong):
    """De Jong's first function about a minimum that depends on the context."""


@dataclass
class AckleyContext(Contextual, Ackley):
    """Ackley's function about a minimum that depends on the context."""
