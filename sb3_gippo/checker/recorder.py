"""An environment under observation: what passes between it and a checker is copied, and watched for later changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_gippo.rollout.step_gradient import GradientChannelError, as_array

FLOATS = ("float32", "float64")


class Outcome(NamedTuple):
    """Copies of all that one step gave."""

    obs: np.ndarray
    """(k,)"""
    reward: np.ndarray
    """(), of the type it came in"""
    state: np.ndarray
    """(n,), after the step"""
    terminated: np.ndarray
    """()"""
    ended: bool
    """terminated or truncated"""
    grad: dict[str, np.ndarray] | None

    @property
    def numbers(self) -> np.ndarray:
        """:return: what is differentiated: state, observation and reward (n + k + 1,)"""
        return np.concatenate([self.state, self.obs, self.reward[None]], dtype=np.float64)

    @property
    def coarse(self) -> np.ndarray:
        """:return: which of these may be rounded to float32, by their types and by that of the state they come from"""
        arrays = self.state, self.obs, self.reward[None]
        return np.concatenate([np.full(array.shape, is_coarse(array) or is_coarse(self.state)) for array in arrays])


def is_coarse(array: np.ndarray) -> bool:
    """:return: whether an array's type rounds as float32 does, or more"""
    return array.dtype.kind == "f" and array.dtype.itemsize < 8


class Recorder:
    """
    :param env: a Gymnasium environment with Box spaces, ``get_state()`` and ``set_state(x)``
    :raises GradientChannelError: if it is not one
    """

    def __init__(self, env: gym.Env):
        if not isinstance(env, gym.Env):
            raise GradientChannelError(f"{type(env).__name__} is not a gymnasium.Env: check a single environment.")
        for name, space in (("action", env.action_space), ("observation", env.observation_space)):
            if not isinstance(space, spaces.Box):
                raise GradientChannelError(f"The {name} space is {type(space).__name__}: gradients need a Box.")
        if str(env.action_space.dtype) not in FLOATS:
            raise GradientChannelError(f"The actions are {env.action_space.dtype}: gradients need float32 or float64.")
        for name in ("get_state", "set_state"):
            if not env.has_wrapper_attr(name):
                raise GradientChannelError(
                    f"The environment has no {name}(): to be compared with differences it must hand out its differentiable "
                    "state by `get_state() -> (n,)` and take it back by `set_state(x)`."
                )
        self.env = env
        self.action_space: Any = copy.deepcopy(env.action_space)
        self.switchable = env.has_wrapper_attr("set_differentiable")
        self.handed_over: list[tuple[str, np.ndarray, np.ndarray]] = []
        """arrays that passed between environment and checker, with copies of what they were"""

    def switch(self, differentiable: bool) -> None:
        """Switch the gradient channel, where that can be done."""
        if self.switchable:
            self.env.get_wrapper_attr("set_differentiable")(differentiable)

    def reset(self, seed: int) -> None:
        """
        :raises GradientChannelError: if that touches a global random generator
        """
        with _global_generators_untouched("reset()"):
            obs, _ = self.env.reset(seed=seed)
        self._keep("The observation of reset()", obs)

    def step(self, action: np.ndarray) -> Outcome:
        """
        :param action: as the action space has it
        :raises GradientChannelError: if that touches a global random generator
        """
        sent = action.copy()
        with _global_generators_untouched("step()"):
            obs, reward, terminated, truncated, info = self.env.step(sent)
        self._keep("The action given to step()", sent, action)
        obs = self._keep("The observation of step()", obs).ravel()
        grad = info.get("grad")
        if grad is not None:
            if not isinstance(grad, Mapping):
                raise GradientChannelError(f'info["grad"] is a {type(grad).__name__}, not a dict of arrays.')
            grad = {key: self._keep(f'info["grad"][{key!r}]', value) for key, value in grad.items()}
        ended = bool(terminated or truncated)
        return Outcome(obs, np.array(reward), self.get_state(), np.array(terminated), ended, grad)

    def get_state(self) -> np.ndarray:
        """
        :return: (n,)
        :raises GradientChannelError: for anything else
        """
        state = self._keep("The state returned by get_state()", self.env.get_wrapper_attr("get_state")())
        if state.ndim != 1 or state.dtype.name not in FLOATS:
            raise GradientChannelError(
                f"get_state() returned an array {state.shape} of {state.dtype}: it must be (n,) of float32 or float64."
            )
        return state

    def set_state(self, state: np.ndarray) -> None:
        """:param state: (n,)"""
        given = state.copy()
        self.env.get_wrapper_attr("set_state")(given)
        self._keep("The state given to set_state()", given, state)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: those of the action, (m,) and (m,), in float64 (the distance of the largest float32 numbers is none)"""
        low, high = (np.ravel(bound).astype(np.float64) for bound in (self.action_space.low, self.action_space.high))
        return low, high

    def random_action(self, share: float) -> np.ndarray:
        """
        :param share: of the way from the middle to a bound (or of 1, where there is none on the other side)
        :return: an action that stays within its bounds when it is moved by that
        """
        low, high = self.bounds
        margins = share * np.where(np.isfinite(high - low), (high - low) / 2, 1.0)
        action = np.clip(self.action_space.sample().ravel(), low + margins, high - margins)
        return action.reshape(self.action_space.shape).astype(self.action_space.dtype)

    def check_untouched(self) -> None:
        """
        Forget what was handed over so far.

        :raises GradientChannelError: if one of these arrays is no longer what it was
        """
        for name, array, before in self.handed_over:
            if not np.array_equal(array, before):
                raise GradientChannelError(f"{name} changed afterwards: the environment writes into it instead of a copy.")
        self.handed_over.clear()

    def _keep(self, name: str, array: Any, before: np.ndarray | None = None) -> np.ndarray:
        try:
            array = as_array(array)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise GradientChannelError(f"{name} is not an array of numbers.") from error
        self.handed_over.append((name, array, array.copy() if before is None else before))
        return array.copy()


@contextmanager
def _global_generators_untouched(where: str) -> Iterator[None]:
    before = _global_generators()
    yield
    for name, state in _global_generators().items():
        if state != before[name]:
            raise GradientChannelError(
                f"{where} changes the global random generator of {name}: draw from the environment's own, self.np_random, "
                "and seed nothing else."
            )


def _global_generators() -> dict[str, Any]:
    state: Any = np.random.get_state()
    return {
        "numpy": (state[1].tobytes(), *state[2:]),
        "torch": th.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
    }
