"""States for environments of this process that can tell them and do not put them into the channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_gippo.rollout.step_gradient import STATES, as_array, state_size


@contextmanager
def states_told(env: VecEnv) -> Iterator[None]:
    """
    Within this context the environments of a ``DummyVecEnv`` that have ``get_state()`` tell the state before and after each
    step in ``info["grad"]``, where they do not do so by themselves. Those of other processes cannot be helped.

    :param env: a stack of VecEnvs
    """
    base: Any = env.unwrapped
    outermost = list(base.envs) if isinstance(base, DummyVecEnv) else []
    inserted = []
    for index, layer in enumerate(outermost):
        outer, inner = _around_state(layer)
        if inner is None:
            continue
        if outer is None:
            base.envs[index] = TellStates(inner)
        else:
            outer.env = TellStates(inner)
            inserted.append((outer, inner))
    try:
        yield
    finally:
        for outer, inner in inserted:
            outer.env = inner
        if outermost:
            base.envs[:] = outermost


def _around_state(env: gym.Env) -> tuple[Any, Any]:
    """:return: the innermost layer that has ``get_state()``, and the wrapper around it; ``None`` where there is none"""
    found: tuple[Any, Any] = None, None
    outer: Any = None
    layer: Any = env
    while True:
        if hasattr(type(layer), "get_state"):
            found = outer, layer
        if not isinstance(layer, gym.Wrapper):
            return found
        outer, layer = layer, layer.env


class TellStates(gym.Wrapper):
    """
    Adds ``state`` and ``next_state`` to an ``info["grad"]`` that has neither; all else passes through. (A wrapper, and not a
    replaced ``step``: an environment may step copies of itself.)

    :param env: has ``get_state() -> (n,)``
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "env" or name.startswith("_"):
            super().__setattr__(name, value)
        else:  # what a VecEnv sets is meant for the environment
            setattr(self.env, name, value)

    def step(self, action: Any) -> Any:
        env: Any = self.env
        before = as_array(env.get_state()).copy()
        outcome = env.step(action)
        info = outcome[4]
        grad = info.get("grad")
        if isinstance(grad, dict) and not any(key in grad for key in STATES):
            after = as_array(env.get_state()).copy()
            with suppress(ValueError):  # arrays that are none are refused elsewhere, in a sentence
                if before.shape == after.shape == (state_size(grad),):
                    info["grad"] = {**grad, **dict(zip(STATES, (before, after)))}
        return outcome
