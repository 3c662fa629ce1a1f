"""The chain rule of what stands between policy and environment: clip or squash of actions, VecNormalize."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize


def action_derivative(policy: ActorCriticPolicy, actions: np.ndarray) -> np.ndarray:
    """
    Derivative of the environment's action by the policy's, per entry.

    :param policy: it clips its actions to the action space, or squashes them by tanh and rescales
    :param actions: (n_envs, m), the policy's (before clip or squash)
    :return: (n_envs, m); for a clip 1 inside the bounds and 0 outside
    """
    space = policy.action_space
    assert isinstance(space, spaces.Box)
    low, high = space.low.reshape(1, -1), space.high.reshape(1, -1)
    if policy.squash_output:
        # 1 - tanh² has lost its digits where tanh is near 1; the clip keeps cosh² below overflow.
        return 0.5 * (high - low) / np.cosh(np.clip(actions, -350.0, 350.0, dtype=np.float64)) ** 2
    return ((actions >= low) & (actions <= high)).astype(actions.dtype)


def observation_derivative(normalize: VecNormalize | None, observations: np.ndarray) -> np.ndarray:
    """
    Derivative of the policy's observation by the environment's, with the statistics as they stand.

    :param normalize: the stack's VecNormalize, if it has one
    :param observations: (n_envs, k), the policy's (after normalisation)
    :return: (n_envs, k); 0 where the observation was clipped
    """
    if normalize is None or not normalize.norm_obs:
        return np.ones_like(observations)
    scale = 1 / np.sqrt(normalize.obs_rms.var + normalize.epsilon)  # type: ignore[attr-defined]
    return np.where(np.abs(observations) < normalize.clip_obs, scale.reshape(1, -1), 0.0)


def reward_derivative(normalize: VecNormalize | None, rewards: np.ndarray) -> np.ndarray:
    """
    Derivative of the rewards the algorithm sees by the environment's, with the statistics as they stand.

    :param normalize: the stack's VecNormalize, if it has one
    :param rewards: (n_envs,), after normalisation
    :return: (n_envs,); 0 where the reward was clipped
    """
    if normalize is None or not normalize.norm_reward:
        return np.ones_like(rewards)
    scale = 1 / np.sqrt(normalize.ret_rms.var + normalize.epsilon)
    return np.where(np.abs(rewards) < normalize.clip_reward, scale, 0.0)
