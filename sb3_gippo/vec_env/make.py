"""make_vec_env: SB3's, choosing the batched form of an environment where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from gippo_envs import BatchedEnv
from sb3_gippo.vec_env.torch_vec_env import TorchVecEnv


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
    Like SB3's ``make_vec_env``, with its arguments. An id that has a batched torch form becomes a :class:`TorchVecEnv`,
    unless a ``vec_env_cls``, a wrapper, Monitor's arguments or ``render_mode="human"`` ask for separate environments.

    :return: the vectorised environment
    """
    batched = isinstance(env_id, str) and gym.spec(env_id).vector_entry_point == "gippo_envs.core:BatchedEnv"
    # Gymnasium's window shows one separate environment.
    batched = batched and (env_kwargs or {}).get("render_mode") != "human"
    if not batched or vec_env_cls is not None or wrapper_class is not None or monitor_kwargs or vec_env_kwargs:
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
    assert isinstance(env_id, str)
    env = gym.make_vec(env_id, num_envs=n_envs, **{"render_mode": "rgb_array", **(env_kwargs or {})})
    assert isinstance(env, BatchedEnv)
    monitor_file = None
    if monitor_dir is not None:
        os.makedirs(monitor_dir, exist_ok=True)
        monitor_file = os.path.join(monitor_dir, str(start_index))
    vec_env = TorchVecEnv(env, monitor_file)
    vec_env.action_space.seed(None if seed is None else seed + start_index)
    vec_env.seed(seed if seed is None else seed + start_index)
    return vec_env
