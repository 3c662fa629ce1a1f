"""JaxEnv: one environment as pure JAX functions, and what Gymnasium calls a functional environment as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv


class JaxEnv(NamedTuple):
    """
    One environment as pure JAX functions; they are batched by ``jax.vmap``, so nothing has an axis of environments.

    A state is any pytree of arrays. Its leaves of floats, in the order JAX has them, are the differentiable state (n,);
    integers, bools and random keys are carried beside it.
    """

    reset: Callable[[jax.Array], Any]
    """key -> state. What is drawn per episode (masses, targets) is drawn here, and is a part of the state"""
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, Any, Any]]
    """(state, action, key) -> (next state, reward (), terminated () bool), differentiable by state and action"""
    observe: Callable[[Any], jax.Array]
    """state -> observation, of the shape of the space"""
    observation_space: spaces.Box
    """its type is that of the observations the algorithm gets"""
    action_space: spaces.Box


def from_func_env(env: FuncEnv, params: Any = None) -> JaxEnv:
    """
    Gymnasium's functional environments, for instance ``gymnasium.envs.phys2d.pendulum.PendulumFunctional()``.

    :param env: its functions are JAX's
    :param params: parameters of its functions; ``None`` for its default ones
    :return: the same, as a :class:`JaxEnv`. Observations get no random key: those of Gymnasium's environments draw nothing
    """
    chosen = env.get_default_params() if params is None else params

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Any, Any]:
        following = env.transition(state, action, key, chosen)
        reward = env.reward(state, action, following, key, chosen)
        return following, reward, env.terminal(following, key, chosen)

    return JaxEnv(
        reset=lambda key: env.initial(key, chosen),
        step=step,
        observe=lambda state: env.observation(state, None, chosen),
        observation_space=env.observation_space,  # type: ignore[arg-type]
        action_space=env.action_space,  # type: ignore[arg-type]
    )
