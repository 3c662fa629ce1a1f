"""make_vec_env: SB3's, choosing the batched form of an environment where there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_gippo.vec_env.differentiable_vec_env import DifferentiableVecEnv

BATCHED = "gippo_envs.core:BatchedEnv"
"""where an environment of ``gippo_envs`` has its batched form"""


def make_vec_env(
    env_id: str | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    wrapper_class: Callable[[gym.Env], gym.Env] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv | SubprocVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    Like SB3's ``make_vec_env``, with its arguments. An id that has a batched torch form, or is one of Gymnasium's functional
    environments in JAX (``phys2d/Pendulum-v0``), becomes a :class:`DifferentiableVecEnv`, unless a ``vec_env_cls``, a wrapper,
    Monitor's arguments or ``render_mode="human"`` ask for separate environments.

    :return: the vectorised environment
    """
    if vec_env_cls is None and not vec_env_kwargs and not monitor_kwargs:
        vec_env_cls = from_env_fns  # type: ignore[assignment]
    elif isinstance(env_id, str) and gym.spec(env_id).vector_entry_point == BATCHED:
        # A subprocess has not imported what registered the id: it gets the specification itself.
        env_id = partial(gym.make, gym.spec(env_id))
        env_kwargs = {"render_mode": "rgb_array", **(env_kwargs or {})}
    return sb3_make_vec_env(
        env_id,
        n_envs,
        seed,
        start_index,
        monitor_dir,
        wrapper_class,
        env_kwargs,
        vec_env_cls,
        vec_env_kwargs,
        monitor_kwargs,
        wrapper_kwargs,
    )


def from_env_fns(env_fns: Sequence[Callable[[], gym.Env]]) -> VecEnv:
    """
    In the place of ``DummyVecEnv``: a :class:`DifferentiableVecEnv` if the functions make an environment that has a batched
    form and wears nothing but SB3's ``Monitor``, whose csv file the batched one goes on with.

    :param env_fns: one function per environment, as SB3's ``make_vec_env`` makes them: all of the same environment
    :return: the vectorised environment
    :raises ImportError: if the environment is one of Gymnasium's in JAX, and JAX or Flax is missing
    """
    try:
        first = env_fns[0]()
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "flax"):
            raise
        raise ImportError('Gymnasium\'s environments in JAX need jax and flax: pip install "sb3-gippo[jax]".') from error
    batched = _batched(first, len(env_fns))
    if batched is None:
        return DummyVecEnv([lambda: first, *env_fns[1:]])
    writer = first.get_wrapper_attr("results_writer")
    first.close()
    vec_env = DifferentiableVecEnv(batched, None if writer is None else writer.file_handler.name)
    vec_env.action_space = first.action_space  # make_vec_env has seeded it
    return vec_env


def _batched(env: gym.Env, num_envs: int) -> Any:
    """:return: the batched form of ``env``; ``None`` if it has none, or would lose what wraps ``env``"""
    if type(env) is not Monitor or env.info_keywords or env.reset_keywords:
        return None
    if isinstance(env.env, gym.wrappers.HumanRendering):  # Gymnasium's window shows one separate environment
        return None
    spec = env.env.spec
    if spec is None or spec.additional_wrappers:
        return None
    if spec.vector_entry_point == BATCHED:
        return gym.make_vec(spec, num_envs=num_envs)
    if _is_functional_jax(env.unwrapped) and isinstance(env.action_space, gym.spaces.Box):
        from sb3_gippo.jax import JaxBatchedEnv, from_func_env

        return JaxBatchedEnv(from_func_env(env.unwrapped.func_env), num_envs, spec.max_episode_steps)  # type: ignore[attr-defined]
    return None


def _is_functional_jax(env: gym.Env) -> bool:
    """:return: whether ``env`` is one of Gymnasium's functional environments, whose module only they import"""
    module = sys.modules.get("gymnasium.envs.functional_jax_env")
    return module is not None and isinstance(env, module.FunctionalJaxEnv)
