"""MujocoGradient: the gradient channel for any Gymnasium MuJoCo task, by differences of the task's own step."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

try:
    from gymnasium.envs.mujoco import MujocoEnv
except (ImportError, DependencyNotInstalled) as error:
    raise ImportError('MujocoGradient needs MuJoCo and imageio: pip install "sb3-gippo[mujoco]".') from error

from sb3_gippo.common.gradients import GradientChannelError
from sb3_gippo.wrappers.coordinates import Coordinates
from sb3_gippo.wrappers.differences import stencil
from sb3_gippo.wrappers.probe import Probe


class MujocoGradient(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Adds ``info["grad"]`` to a Gymnasium ``MujocoEnv`` task, whatever its rewards, observations and integrator: the task's own
    ``step`` is run from perturbed states and actions, and everything is put back before the real step is made. States,
    rewards, observations and random numbers are those of the task without the wrapper.

    The differentiable state is that of :class:`~sb3_gippo.wrappers.coordinates.Coordinates`: positions, velocities, actuator
    activations. All else the next step depends on counts as constant: Python attributes of the task, its random numbers, the
    solver's warm start.

    A gradient costs about n + m + 2 steps of the task, with n states and m actions, or 2 (n + m + 1) with central differences.

    :param env: a ``MujocoEnv`` task with continuous actions and one array as observation, with or without wrappers
    :param differentiable: whether ``step`` returns ``info["grad"]``; off, the wrapper costs nothing
    :param central: central instead of forward differences: twice the time, more exact where contacts are stiff
    :param epsilon: step of the differences, in the units of state and action
    :param threads: how many perturbed steps are made at a time, each thread with a twin of the task; several environments in
        a ``SubprocVecEnv`` use the cores better
    :raises TypeError: for another environment
    :raises GradientChannelError: in ``step``, where the values the gradient was taken at are not those of the step itself
    """

    def __init__(
        self,
        env: gym.Env,
        differentiable: bool = False,
        central: bool = False,
        epsilon: float = 2**-26,
        threads: int = 1,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self, differentiable=differentiable, central=central, epsilon=epsilon, threads=threads
        )
        gym.Wrapper.__init__(self, env)
        task = env.unwrapped
        if not isinstance(task, MujocoEnv):
            raise TypeError(
                f"MujocoGradient wraps tasks that derive from gymnasium.envs.mujoco.MujocoEnv; {type(task).__name__} does not."
            )
        for name, space in (("actions", task.action_space), ("observations", task.observation_space)):
            if not isinstance(space, spaces.Box):
                raise TypeError(f"MujocoGradient needs {name} in a Box; those of {type(task).__name__} are a {space}.")
        if epsilon <= 0 or threads < 1:
            raise ValueError(f"epsilon must be positive and threads at least 1, not {epsilon} and {threads}.")
        self.task = task
        self.differentiable = differentiable
        self.central = central
        self.epsilon = epsilon
        self.threads = threads
        self._setup()

    def _setup(self) -> None:
        self._coordinates = Coordinates(self.task.model)
        self._probes = [Probe(self.task, self._coordinates, twin=self.threads > 1) for _ in range(self.threads)]

    @property
    def coordinates(self) -> Coordinates:
        """:return: what the numbers of the differentiable state mean"""
        if self.task.model is not self._coordinates.model:  # a task may load another one in its reset
            self._setup()
        return self._coordinates

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time."""
        self.differentiable = differentiable

    def get_state(self) -> np.ndarray:
        """:return: the differentiable state x (n,)"""
        return self.coordinates.read(self.task.data)

    def set_state(self, state: np.ndarray) -> None:
        """
        Put the simulation into another state, as ``MujocoEnv.set_state`` does by positions and velocities. The time and the
        task's Python attributes stay as they are.

        :param state: x (n,)
        :raises ValueError: for another shape
        """
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (self.coordinates.size,):
            raise ValueError(f"The state has shape ({self.coordinates.size},), not {state.shape}.")
        self.task.data.qacc_warmstart[:] = 0.0
        self.coordinates.place(self.task.data, state)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.differentiable:
            return self.env.step(action)
        grad = self._derivatives(np.array(action, dtype=np.float64))
        observation, reward, terminated, truncated, info = self.env.step(action)
        for name, taken_at, real in (("observation", grad["obs"], np.ravel(observation)), ("reward", grad["reward"], reward)):
            if np.shape(taken_at) != np.shape(real) or not np.allclose(taken_at, real, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise GradientChannelError(
                    f"The step of {type(self.task).__name__}, made twice from the same state, gave another {name}: a wrapper "
                    "inside of MujocoGradient changes actions, observations or rewards, or the task keeps what it depends on "
                    "where it cannot be put back (outside of the task, or with threads > 1 as views of MuJoCo's arrays)."
                )
        return observation, reward, terminated, truncated, {**info, "grad": grad}

    def _derivatives(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """:return: ``info["grad"]`` of the step that is about to be made"""
        n, space = self.coordinates.size, self.task.action_space
        assert isinstance(space, spaces.Box)
        unbounded = np.full(n, np.inf)
        points, above, below, width = stencil(
            np.concatenate([self.get_state(), action.ravel()]),
            np.concatenate([-unbounded, space.low.ravel()]),
            np.concatenate([unbounded, space.high.ravel()]),
            self.epsilon,
            self.central,
        )
        values, outcomes = self._outcomes(action, [(point[:n], point[n:].reshape(action.shape)) for point in points])
        outcomes[:, :n] = self.coordinates.unwrap(outcomes[:, :n], values[:n])
        by = ((outcomes[above] - outcomes[below]) / width[:, None]).T
        return {
            "state_state": by[:n, :n],
            "state_action": by[:n, n:],
            "obs_state": by[n:-1, :n],
            "obs_action": by[n:-1, n:],
            "reward_state": by[-1, :n],
            "reward_action": by[-1, n:],
            "action": action.ravel(),
            "obs": values[n:-1],
            "reward": values[-1],
        }

    def _outcomes(self, action: np.ndarray, points: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """What the step itself gives, (n + k + 1,): next state, observation, reward; and what steps from points give."""

        def run(probe: Probe, start: int) -> Iterable[np.ndarray]:
            return [probe.outcome(action, state) for state, action in points[start :: self.threads]]

        try:
            for probe in self._probes:
                probe.remember()
            values = self._probes[0].outcome(action.copy())
            if self.threads == 1:
                return values, np.stack(list(run(self._probes[0], 0)))
            outcomes = np.empty((len(points), len(values)))
            with ThreadPoolExecutor(self.threads) as pool:
                for start, part in enumerate(pool.map(run, self._probes, range(self.threads))):
                    outcomes[start :: self.threads] = part
            return values, outcomes
        finally:
            self._probes[0].restore()
