"""States for environments of this process that can tell them and do not put them into the channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_gippo.rollout.step_gradient import STATES, as_array, state_size


@contextmanager
def states_told(env: VecEnv) -> Iterator[None]:
    """
    Within this context the environments of a ``DummyVecEnv`` that have ``get_state()`` tell the state before and after each
    step in ``info["grad"]``, where they do not do so by themselves. Those of other processes cannot be helped.

    :param env: a stack of VecEnvs
    """
    base = env.unwrapped
    watched: list[Any] = []
    for outermost in base.envs if isinstance(base, DummyVecEnv) else ():
        layer = _with_state(outermost)
        if layer is not None:
            with suppress(AttributeError):  # an object without attributes of its own
                layer.step = _telling(layer, layer.step)
                watched.append(layer)
    try:
        yield
    finally:
        for layer in watched:
            del layer.step


def _with_state(env: gym.Env) -> Any:
    """:return: the innermost layer that has ``get_state()`` and a ``step`` nobody has replaced; ``None`` if there is none"""
    found: Any = None
    layer: Any = env
    while True:
        if hasattr(type(layer), "get_state") and "step" not in vars(layer):
            found = layer
        if not isinstance(layer, gym.Wrapper):
            return found
        layer = layer.env


def _telling(env: Any, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def telling(action: Any) -> Any:
        before = np.array(as_array(env.get_state()))
        outcome = step(action)
        info = outcome[4]
        grad = info.get("grad")
        if isinstance(grad, dict) and not any(key in grad for key in STATES):
            after = np.array(as_array(env.get_state()))
            with suppress(ValueError):  # arrays that are none are refused elsewhere, in a sentence
                if before.shape == after.shape == (state_size(grad),):
                    info["grad"] = {**grad, **dict(zip(STATES, (before, after)))}
        return outcome

    return telling
