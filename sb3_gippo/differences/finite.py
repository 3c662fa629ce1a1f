"""FiniteDifferenceGradient: the gradient channel for any environment that can be put into a state."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np

from sb3_gippo.differences.wrapper import DifferenceGradient
from sb3_gippo.rollout.step_gradient import GradientChannelError


class FiniteDifferenceGradient(DifferenceGradient, gym.utils.RecordConstructorArgs):
    """
    Adds ``info["grad"]`` to any Gymnasium environment with two methods: ``get_state() -> (n,)`` of float64, its differentiable
    state, and ``set_state(x)``, which restores everything a step depends on within an episode. The environment's own ``step``
    is run from perturbed states and with perturbed actions, and everything is put back: the state by ``set_state``, and the
    generator ``np_random``, so that noise is held fixed. (A ``MujocoEnv`` needs no such methods, and ``MujocoGradient``.)

    A gradient costs 2 (n + m) + 1 steps beside the real one, and as many ``set_state``, for n states and m actions; with
    forward differences n + m + 1.

    :param env: the environment, with or without wrappers; what wraps it inside of this wrapper may not change numbers
    :param differentiable: whether ``step`` returns ``info["grad"]``; off, the wrapper costs nothing
    :param central: central instead of forward differences: twice the time, and an error of ε² instead of ε
    :param epsilon: step of the differences, in the units of state and action
    :raises TypeError: without the two methods, or with spaces that are no Box
    :raises GradientChannelError: in ``step``, where the step made twice is not the same, or is rounded to float32
    """

    WHY_ANOTHER = (
        "set_state(x) must restore everything a step depends on, random numbers must come from self.np_random, and a wrapper "
        "inside of FiniteDifferenceGradient may not change actions, observations or rewards."
    )

    def __init__(self, env: gym.Env, differentiable: bool = False, central: bool = True, epsilon: float = 1e-6):
        gym.utils.RecordConstructorArgs.__init__(self, differentiable=differentiable, central=central, epsilon=epsilon)
        super().__init__(env, differentiable, central, epsilon)
        for name in ("get_state", "set_state"):
            if not callable(getattr(self.task, name, None)):
                raise TypeError(
                    f"FiniteDifferenceGradient needs `get_state() -> (n,)` and `set_state(x)` of {type(self.task).__name__}, "
                    f"which has no {name}()."
                )

    def get_state(self) -> np.ndarray:
        """:return: the differentiable state (n,)"""
        return self._read()

    def set_state(self, state: np.ndarray) -> None:
        """:param state: (n,)"""
        self.task.set_state(state)

    def _read(self) -> np.ndarray:
        state = self.task.get_state()
        if not isinstance(state, np.ndarray) or state.ndim != 1 or state.dtype.kind != "f":
            given = f"an array {state.shape} of {state.dtype}" if isinstance(state, np.ndarray) else type(state).__name__
            raise GradientChannelError(
                f"{type(self.task).__name__}.get_state() has returned {given}; expected was a numpy array (n,) of float64."
            )
        return state.copy()

    def _outcomes(self, points: np.ndarray, action: np.ndarray) -> np.ndarray:
        task, state = self.task, self._read()
        n, generator = len(state), task.np_random
        random_state = copy.deepcopy(generator.bit_generator.state)

        def outcome(x: np.ndarray, sent: np.ndarray) -> np.ndarray:
            task.set_state(x.copy())
            generator.bit_generator.state = random_state
            observation, reward = task.step(sent.copy())[:2]
            return np.concatenate([self._read(), np.ravel(observation), [reward]], dtype=np.float64)

        try:
            values = outcome(state, action)
            if not self._precise:
                self._precise = self._takes_states(points[1:, :n]) and self._takes_float64(
                    lambda factor: (outcome(state, action * factor) != values).any()
                )
            # The first of the points is where the step itself begins.
            moved = [outcome(point[:n], point[n:].reshape(action.shape)) for point in points[1:]]
        finally:
            task.set_state(state)
            generator.bit_generator.state = random_state
        return np.stack([values, values, *moved])

    def _takes_states(self, states: np.ndarray) -> bool:
        """:raises GradientChannelError: if a state that is set is not the one that is read"""
        for state in states:
            self.task.set_state(state.copy())
            if np.abs(self._read() - state).max(initial=0.0) > 1e-3 * self.epsilon:
                raise GradientChannelError(
                    self._too_coarse("does not get_state() what was given to set_state() to the last digits")
                )
        return True
