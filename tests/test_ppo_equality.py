"""Without gradients GIPPO is SB3's PPO, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_gippo import GIPPO, make_vec_env

SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 5, "device": "cpu"}


class Picture(gym.Env[np.ndarray, np.int64]):
    """A small image environment: name the brighter half."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        picture = self.np_random.integers(0, 100, (36, 36, 1)).astype(np.uint8)
        picture[:, 18 * self.side : 18 * (self.side + 1)] += 100
        return picture, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(action == self.side)
        return self.reset()[0], reward, False, bool(self.np_random.random() < 0.1), {}


def vec(env: Any, n_envs: int = 2) -> VecEnv:
    return sb3_make_vec_env(env, n_envs, seed=7)


def assert_same(ours: GIPPO, theirs: PPO) -> None:
    assert ours._n_updates == theirs._n_updates > 0
    for name, value in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], value), name
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters()):
        state, expected = ours.policy.optimizer.state[mine], theirs.policy.optimizer.state[other]
        assert all(th.equal(state[key], expected[key]) for key in expected)


CASES: dict[str, tuple[str, Callable[[], VecEnv], dict[str, Any]]] = {
    "continuous": ("MlpPolicy", lambda: vec("Pendulum-v1"), {}),
    "discrete": ("MlpPolicy", lambda: vec("CartPole-v1"), {}),
    "gSDE": ("MlpPolicy", lambda: vec("Pendulum-v1"), {"use_sde": True, "sde_sample_freq": 4}),
    "clip_range_vf and target_kl": ("MlpPolicy", lambda: vec("Pendulum-v1"), {"clip_range_vf": 0.2, "target_kl": 0.005}),
    "VecNormalize": ("MlpPolicy", lambda: VecNormalize(vec("Pendulum-v1")), {}),
    "image": ("CnnPolicy", lambda: vec(Picture, 1), {"n_steps": 32}),
}


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.filterwarnings("ignore:GIPPO trains without gradients:UserWarning")
def test_equals_ppo_bit_for_bit(case: str, alpha: float) -> None:
    policy, make, kwargs = CASES[case]
    kwargs = {**SMALL, **kwargs}
    steps = 3 * 2 * kwargs["n_steps"]
    theirs = PPO(policy, make(), **kwargs).learn(steps)
    ours = GIPPO(policy, make(), alpha=alpha, **kwargs).learn(steps)
    assert_same(ours, theirs)


def test_alpha_0_equals_ppo_where_gradients_are_offered() -> None:
    theirs = PPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 4, seed=1), **SMALL).learn(1000)
    ours = GIPPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 4, seed=1), alpha=0, **SMALL).learn(1000)
    assert_same(ours, theirs)
    assert ours.env.get_attr("differentiable") == [False] * 4


def test_with_gradients_it_does_not_equal_ppo() -> None:
    theirs = PPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 4, seed=1), **SMALL).learn(500)
    ours = GIPPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 4, seed=1), **SMALL).learn(500)
    assert any(not th.equal(a, b) for a, b in zip(ours.policy.parameters(), theirs.policy.parameters()))
