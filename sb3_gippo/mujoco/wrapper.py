"""MujocoGradient: the gradient channel for any Gymnasium MuJoCo task, by differences of the task's own step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled

try:
    import mujoco
    from gymnasium.envs.mujoco import MujocoEnv
except (ImportError, DependencyNotInstalled) as error:
    raise ImportError('MujocoGradient needs MuJoCo and imageio: pip install "sb3-gippo[mujoco]".') from error

from sb3_gippo.differences.wrapper import COARSE_EPSILON, DifferenceGradient
from sb3_gippo.mujoco.coordinates import PARTS, Coordinates
from sb3_gippo.mujoco.memory import Memory
from sb3_gippo.mujoco.replay import Replay


class MujocoGradient(DifferenceGradient, gym.utils.RecordConstructorArgs):
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

    WHY_ANOTHER = (
        "a wrapper inside of MujocoGradient changes actions, observations or rewards, or the task keeps what it depends on "
        "where it cannot be put back (outside of the task, or with threads > 1 as views of MuJoCo's arrays)."
    )

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
        task = env.unwrapped
        if not isinstance(task, MujocoEnv):
            raise TypeError(
                f"MujocoGradient wraps tasks that derive from gymnasium.envs.mujoco.MujocoEnv; {type(task).__name__} does not."
            )
        super().__init__(env, differentiable, central, epsilon)
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}.")
        self.threads = threads
        self._setup()

    def _setup(self) -> None:
        self._coordinates = Coordinates(self.task.model)
        self._replays = [Replay(self.task, self._coordinates, twin=self.threads > 1) for _ in range(self.threads)]
        self._memory = Memory(self._coordinates)
        self._precise = self.epsilon >= COARSE_EPSILON

    @property
    def coordinates(self) -> Coordinates:
        """:return: what the numbers of the differentiable state mean"""
        if self.task.model is not self._coordinates.model:  # a task may load another one in its reset
            self._setup()
        return self._coordinates

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

    def _outcomes(self, points: np.ndarray, action: np.ndarray) -> np.ndarray:
        coordinates = self.coordinates
        raw, actions = coordinates.raw(points[:, : coordinates.size]), points[:, coordinates.size :]
        outcomes: list[Any] = [None] * len(raw)

        def run(index: int) -> None:
            for point in range(index, len(raw), self.threads):
                outcomes[point] = self._replays[index].step(actions[point].reshape(action.shape), raw[point])

        try:
            for replay in self._replays:
                replay.remember()
            first = self._replays[0]
            values = first.step(action.copy())
            if not self._precise:
                self._precise = self._takes_float64(lambda factor: (first.step(action * factor) != values).any())
            if self.threads == 1:
                run(0)
            else:
                with ThreadPoolExecutor(self.threads) as pool:
                    list(pool.map(run, range(self.threads)))  # a list, to see what was raised
        finally:
            self._replays[0].restore()
        found, size = np.stack([values, *outcomes]), coordinates.raw_size
        return np.concatenate([coordinates.read(found[:, :size]), found[:, size:]], axis=1)
