"""JaxEnv: one environment as pure JAX functions, and what Gymnasium calls a functional environment as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
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


def from_brax(env: Any) -> JaxEnv:
    """
    Brax's environments (``brax.envs.get_environment("hopper", backend="spring")``, without Brax's training wrappers), and
    MuJoCo Playground's, which have the same functions.

    :param env: ``reset(key)`` and ``step(state, action)`` return a state with ``obs``, ``reward`` and ``done``
    :return: the same, as a :class:`JaxEnv`; actions are those the motors take, [-1, 1] where the environment does not tell,
        and of JAX's float type
    :raises ValueError: if its observations are not one vector
    :warns UserWarning: if MJX's solver makes a single iteration
    """
    if not isinstance(env.observation_size, int):
        raise ValueError(f"Observations are {env.observation_size}, and must be one vector: choose one of them in `observe`.")
    model = getattr(env, "mjx_model", None) or getattr(env, "sys", None)
    uses_mjx = hasattr(env, "mjx_model") or getattr(env, "backend", None) == "mjx"
    if uses_mjx and model is not None and model.opt.iterations == 1:
        warnings.warn(
            "MJX's solver makes one iteration: it can be differentiated, but its contacts are wrong. Set `iterations` to 4 or "
            "more, and let the solver loop by lax.scan, see docs/simulators.md.",
            stacklevel=2,
        )
    actuator = getattr(model, "actuator", None)
    bounds = np.tile([-1.0, 1.0], (env.action_size, 1)) if actuator is None else np.asarray(actuator.ctrl_range)

    float_type = jax.numpy.zeros(()).dtype  # the environments compute in JAX's own, float64 with x64

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Any, Any]:
        following = env.step(state, action)
        return following, following.reward, following.done > 0.5

    return JaxEnv(
        reset=env.reset,
        step=step,
        observe=lambda state: state.obs,
        observation_space=spaces.Box(-np.inf, np.inf, (env.observation_size,), float_type),
        action_space=spaces.Box(*bounds.T.astype(float_type), dtype=float_type),
    )
