"""MujocoGradient: the gradient channel for any Gymnasium MuJoCo task, by differences of the task's own step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

try:
    import mujoco
    from gymnasium.envs.mujoco import MujocoEnv
except (ImportError, DependencyNotInstalled) as error:
    raise ImportError('MujocoGradient needs MuJoCo and imageio: pip install "sb3-gippo[mujoco]".') from error

from sb3_gippo.mujoco.coordinates import PARTS, Coordinates
from sb3_gippo.mujoco.memory import Memory
from sb3_gippo.mujoco.replay import Replay
from sb3_gippo.mujoco.stencil import stencil
from sb3_gippo.rollout.step_gradient import GradientChannelError

COARSE_EPSILON = 1e-4
"""differences of at least this step may be taken through numbers rounded to float32"""


class MujocoGradient(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Adds ``info["grad"]`` to a Gymnasium ``MujocoEnv`` task, whatever its rewards, observations and integrator: the task's own
    ``step`` is run from perturbed states and actions, and everything is put back before the real step is made. States,
    rewards, observations and random numbers are those of the task without the wrapper.

    The differentiable state is that of :class:`~sb3_gippo.mujoco.coordinates.Coordinates`: positions, velocities, actuator
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
    :raises GradientChannelError: in ``step``, where the values the gradient was taken at are not those of the step itself, or
        the task rounds to float32 what differences are taken of
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
        space = self.task.action_space
        assert isinstance(space, spaces.Box)
        self._coordinates = Coordinates(self.task.model)
        unbounded = np.full(self._coordinates.size, np.inf)
        self._bounds = np.concatenate([-unbounded, space.low.ravel()]), np.concatenate([unbounded, space.high.ravel()])
        self._replays = [Replay(self.task, self._coordinates, twin=self.threads > 1) for _ in range(self.threads)]
        self._memory = Memory(self._coordinates)
        self._precise = self.epsilon >= COARSE_EPSILON

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
        state = self._read()
        self._memory.remember(state, self.task.data)
        return state

    def set_state(self, state: np.ndarray) -> None:
        """
        Put the simulation into another state, as ``MujocoEnv.set_state`` does by positions and velocities. What x does not
        tell of the simulation, the bodies' lag and the solver's warm start, becomes what it was in the state nearest to x that
        :meth:`get_state` has returned. The time and the task's Python attributes stay as they are.

        :param state: x (n,)
        :raises ValueError: for another shape
        """
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (self.coordinates.size,):
            raise ValueError(f"The state has shape ({self.coordinates.size},), not {state.shape}.")
        lag, offset, self.task.data.qacc_warmstart[:] = self._memory.nearest(state)
        self.coordinates.place(self.task.data, self.coordinates.raw(state[None])[0], lag, offset)

    def _read(self) -> np.ndarray:
        raw = np.empty((1, self.coordinates.raw_size))
        mujoco.mj_getState(self.task.model, self.task.data, raw[0], PARTS)
        return self.coordinates.read(raw)[0]

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
                f"The step of {type(self.task).__name__}, made twice from the same state, gave another {name}: a wrapper "
                "inside of MujocoGradient changes actions, observations or rewards, or the task keeps what it depends on "
                "where it cannot be put back (outside of the task, or with threads > 1 as views of MuJoCo's arrays)."
            )
        if real.dtype.kind == "f" and real.dtype.itemsize < 8 and self.epsilon < COARSE_EPSILON:
            raise GradientChannelError(self._too_coarse(f"returns its {name} as {real.dtype}"))

    def _too_coarse(self, what: str) -> str:
        return (
            f"{type(self.task).__name__} {what}, which hides differences of {self.epsilon:.1e}: let it compute in float64, or "
            "(less exact) wrap it by MujocoGradient(env, epsilon=1e-3, central=True)."
        )

    def _derivatives(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """:return: ``info["grad"]`` of the step that is about to be made"""
        coordinates, (low, high) = self.coordinates, self._bounds
        n, raw_size = coordinates.size, coordinates.raw_size
        state = self._read()
        z = np.concatenate([state, action.ravel()])
        points, above, below, width = stencil(z, low, high, self.epsilon, self.central)
        outcomes = self._outcomes(coordinates.raw(points[:, :n]), points[:, n:].reshape(-1, *action.shape), action)
        values, states = outcomes[0, raw_size:], coordinates.read(outcomes[:, :raw_size])
        outcomes = np.concatenate([states, outcomes[:, raw_size:]], axis=1)[1:]
        by = ((outcomes[above] - outcomes[below]) / width[:, None]).T
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

    def _outcomes(self, raw: np.ndarray, actions: np.ndarray, action: np.ndarray) -> np.ndarray:
        """
        :param raw: states (p, nq + nv + na)
        :param actions: (p, ...)
        :param action: the step's own
        :return: what the step itself gives, and what it would give from those states: see :meth:`Replay.step`, (1 + p, ...)
        """
        outcomes: list[Any] = [None] * len(raw)

        def run(index: int) -> None:
            for point in range(index, len(raw), self.threads):
                outcomes[point] = self._replays[index].step(actions[point], raw[point])

        try:
            for replay in self._replays:
                replay.remember()
            values = self._replays[0].step(action.copy())
            if not self._precise:
                self._precise = self._takes_float64(action, values)
            if self.threads == 1:
                run(0)
            else:
                with ThreadPoolExecutor(self.threads) as pool:
                    list(pool.map(run, range(self.threads)))  # a list, to see what was raised
        finally:
            self._replays[0].restore()
        return np.stack([values, *outcomes])

    def _takes_float64(self, action: np.ndarray, values: np.ndarray) -> bool:
        """
        :param action: as sent, numbers that float32 can hold
        :param values: what it gives
        :return: whether the task was seen to react to changes that float32 would hide
        :raises GradientChannelError: if it reacts to others only
        """
        replay = self._replays[0]
        if (replay.step(action * (1 + 2**-27)) != values).any():
            return True
        if (replay.step(action * (1 + 2**-10)) != values).any():
            raise GradientChannelError(self._too_coarse("rounds its actions to float32"))
        return False
