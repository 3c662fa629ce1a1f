"""What every gradient by differences of an environment's own step shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_gippo.differences.stencil import stencil
from sb3_gippo.rollout.step_gradient import GradientChannelError

COARSE_EPSILON = 1e-4
"""differences of at least this step may be taken through numbers rounded to float32"""


class DifferenceGradient(gym.Wrapper, ABC):
    """
    Adds ``info["grad"]`` by differences: before the real step, the task's own ``step`` is run from perturbed states and with
    perturbed actions, and everything is put back.

    :param env: the task, with or without wrappers
    :param differentiable: whether ``step`` returns ``info["grad"]``; off, the wrapper costs nothing
    :param central: central instead of forward differences
    :param epsilon: step of the differences, in the units of state and action
    :raises TypeError: if actions or observations are no Box
    :raises ValueError: if ``epsilon`` is not positive
    """

    WHY_ANOTHER: ClassVar[str]
    """what makes a step, made twice from the same state, give other numbers"""

    def __init__(self, env: gym.Env, differentiable: bool, central: bool, epsilon: float):
        gym.Wrapper.__init__(self, env)
        self.task: Any = env.unwrapped
        name = type(self).__name__
        for what, space in (("actions", self.task.action_space), ("observations", self.task.observation_space)):
            if not isinstance(space, spaces.Box):
                raise TypeError(f"{name} needs {what} in a Box; those of {type(self.task).__name__} are a {space}.")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be positive, not {epsilon}.")
        self.differentiable = differentiable
        self.central = central
        self.epsilon = epsilon
        self._precise = epsilon >= COARSE_EPSILON

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time."""
        self.differentiable = differentiable

    @abstractmethod
    def _read(self) -> np.ndarray:
        """:return: the differentiable state x (n,)"""

    @abstractmethod
    def _outcomes(self, points: np.ndarray, action: np.ndarray) -> np.ndarray:
        """
        Make steps without a trace.

        :param points: states and actions (p, n + m)
        :param action: the step's own
        :return: next state, observation and reward of the step itself, and of those from the points (1 + p, n + k + 1)
        """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.differentiable:
            return self.env.step(action)
        grad = self._derivatives(np.array(action, dtype=np.float64))
        outcome = self.env.step(action)
        self._check("observation", grad["obs"], np.ravel(outcome[0]))
        self._check("reward", grad["reward"], np.asarray(outcome[1]))
        # Where a reward all but cancels, the solver's last digits would look like a change made by an outer wrapper.
        grad["obs"], grad["reward"] = np.ravel(outcome[0]), np.asarray(outcome[1])
        grad["next_state"] = self._read()
        return *outcome[:4], {**outcome[4], "grad": grad}

    def _check(self, name: str, taken_at: np.ndarray, real: np.ndarray) -> None:
        """:raises GradientChannelError: if a gradient cannot be that of the step that was made"""
        if taken_at.shape != real.shape or (np.abs(taken_at - real) > 1e-5 + 1e-4 * np.abs(real)).any():
            raise GradientChannelError(
                f"The step of {type(self.task).__name__}, made twice from the same state, gave another {name}: "
                f"{self.WHY_ANOTHER}"
            )
        if real.dtype.kind == "f" and real.dtype.itemsize < 8 and self.epsilon < COARSE_EPSILON:
            raise GradientChannelError(self._too_coarse(f"returns its {name} as {real.dtype}"))

    def _too_coarse(self, what: str) -> str:
        return (
            f"{type(self.task).__name__} {what}, which hides differences of {self.epsilon:.1e}: let it compute in float64, or "
            f"(less exact) wrap it by {type(self).__name__}(env, epsilon=1e-3, central=True)."
        )

    def _derivatives(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """:return: ``info["grad"]`` of the step that is about to be made"""
        state, space = self._read(), self.task.action_space
        n, unbounded = len(state), np.full(len(state), np.inf)
        z = np.concatenate([state, action.ravel()])
        low, high = np.concatenate([-unbounded, space.low.ravel()]), np.concatenate([unbounded, space.high.ravel()])
        points, above, below, width = stencil(z, low, high, self.epsilon, self.central)
        outcomes = self._outcomes(points, action)
        values, moved = outcomes[0, n:], outcomes[1:]
        by = ((moved[above] - moved[below]) / width[:, None]).T
        return {
            "state_state": by[:n, :n],
            "state_action": by[:n, n:],
            "obs_state": by[n:-1, :n],
            "obs_action": by[n:-1, n:],
            "reward_state": by[-1, :n],
            "reward_action": by[-1, n:],
            "state": state,
            "action": action.ravel(),
            "obs": values[:-1],
            "reward": values[-1],
        }

    def _takes_float64(self, differs: Any) -> bool:
        """
        :param differs: whether the step, its action multiplied by a number, gives other numbers
        :return: whether the task was seen to react to changes that float32 would hide
        :raises GradientChannelError: if it reacts to others only
        """
        if differs(1 + 2**-27):
            return True
        if differs(1 + 2**-10):
            raise GradientChannelError(self._too_coarse("rounds its actions to float32"))
        return False
