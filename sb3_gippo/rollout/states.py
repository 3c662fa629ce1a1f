"""States for environments of this process that can tell them and do not put them into the channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_gippo.rollout.step_gradient import STATES, GradientChannelError, as_array, state_size

MOVE_IN = (
    "Move it into the environment, which then hands over the derivatives of all that happens from one call of step() to the "
    "next."
)
"""what to do about steps that a wrapper makes, and changes of the state between steps"""


@contextmanager
def states_told(env: VecEnv) -> Iterator[list[TellStates]]:
    """
    Within this context the environments of a ``DummyVecEnv`` that have ``get_state()`` tell the state before and after each
    step in ``info["grad"]``, where they do not do so by themselves. Those of other processes cannot be helped.

    :param env: a stack of VecEnvs
    :return: what was put around the environments
    """
    base: Any = env.unwrapped
    outermost = list(base.envs) if isinstance(base, DummyVecEnv) else []
    inserted = []
    told: list[TellStates] = []
    for index, layer in enumerate(outermost):
        outer, inner = _around_state(layer)
        if inner is None:
            continue
        told.append(TellStates(inner, index))
        if outer is None:
            base.envs[index] = told[-1]
        else:
            outer.env = told[-1]
            inserted.append((outer, inner))
    try:
        yield told
    finally:
        for outer, inner in inserted:
            outer.env = inner
        if outermost:
            base.envs[:] = outermost


@contextmanager
def tensors_with_graph_named(env: VecEnv) -> Iterator[None]:
    """
    Within this context the copy that a ``DummyVecEnv`` makes of the infos ends in a sentence, where a tensor of the channel
    hangs on a graph.

    :param env: a stack of VecEnvs
    :raises GradientChannelError: naming environment and key
    """
    try:
        yield
    except RuntimeError as error:
        for index, info in enumerate(getattr(env.unwrapped, "buf_infos", [])):
            for key, value in dict(info.get("grad") or {}).items():
                if isinstance(value, th.Tensor) and not value.is_leaf:
                    raise GradientChannelError(
                        f'info["grad"][{key!r}] of environment {index} is a tensor that hangs on a graph: '
                        "hand over its .detach()."
                    ) from error
        raise


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
    Adds ``state`` and ``next_state`` to an ``info["grad"]`` that has neither, and counts the steps that gave a gradient; all
    else passes through. (A wrapper, and not a replaced ``step``: an environment may step copies of itself.) An environment
    whose last step told its states by itself, or gave no gradient, is not asked before the next: asking can be dear.

    :param env: has ``get_state()``; what it returns is told if it is an array (n,)
    :param index: of the environment
    """

    def __init__(self, env: gym.Env, index: int):
        super().__init__(env)
        self._index = index
        self._steps = 0
        self._reset = False
        self._silent = True  # gives gradients without states, as far as is known from its last step

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "env" or name.startswith("_"):
            super().__setattr__(name, value)
        else:  # what a VecEnv sets is meant for the environment
            setattr(self.env, name, value)

    def reset(self, **kwargs: Any) -> Any:
        self._reset = True
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        before = self._state() if self._silent else None
        outcome = self.env.step(action)
        info = outcome[4]
        grad = info.get("grad")
        self._silent = isinstance(grad, dict) and not any(key in grad for key in STATES)
        if grad is None:
            return outcome
        self._steps += not self._reset  # a reset may make steps of its own
        if before is not None and self._silent:
            after = self._state()
            with suppress(ValueError):  # arrays that are none are refused elsewhere, in a sentence
                if after is not None and before.shape == after.shape == (state_size(grad),):
                    info["grad"] = {**grad, **dict(zip(STATES, (before, after)))}
        return outcome

    def _state(self) -> np.ndarray | None:
        env: Any = self.env
        try:
            state = as_array(env.get_state())
        except Exception:  # some other method of that name
            return None
        return state.copy() if state.ndim == 1 and state.dtype.kind == "f" else None

    def check_one_step(self) -> None:
        """
        To be called after every step of the VecEnv.

        :raises GradientChannelError: if the environment itself made several
        """
        steps, self._steps, self._reset = self._steps, 0, False
        if steps > 1:
            raise GradientChannelError(
                f"Environment {self._index} made {steps} steps in one: a wrapper repeats steps or makes some in between, and "
                f"the gradient handed over is that of one of them. {MOVE_IN}"
            )
