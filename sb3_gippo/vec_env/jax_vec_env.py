"""An environment in JAX as an SB3 VecEnv."""

from __future__ import annotations

from sb3_gippo.jax import JaxBatchedEnv, JaxEnv
from sb3_gippo.vec_env.differentiable_vec_env import DifferentiableVecEnv


class JaxVecEnv(DifferentiableVecEnv):
    """
    SB3's view of environments written as pure JAX functions, see :class:`sb3_gippo.jax.JaxBatchedEnv`.

    :param env: the functions of one environment
    :param num_envs: number of environments
    :param max_episode_steps: time limit; ``None`` for none
    :param stagger: set the environments out of phase, as in :class:`gippo_envs.BatchedEnv`
    :param monitor_file: where to log the episodes (Monitor's csv format); ``None`` for nowhere
    :raises ValueError: if the functions do not fit together, the spaces or JAX's settings
    """

    env: JaxBatchedEnv

    def __init__(
        self,
        env: JaxEnv,
        num_envs: int,
        max_episode_steps: int | None = None,
        stagger: bool = False,
        monitor_file: str | None = None,
    ):
        super().__init__(JaxBatchedEnv(env, num_envs, max_episode_steps, stagger), monitor_file)
