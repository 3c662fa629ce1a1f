"""Where gradients cannot be had GIPPO says so once, and is PPO."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_gippo import GIPPO, make_vec_env
from tests.test_ppo_equality import Picture, assert_same

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu"}


class Plain(gym.Env):
    """An environment of any spaces without the gradient channel."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.steps == 7, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
CONTINUOUS = spaces.Box(-1, 1, (2,), np.float32)
CASES: dict[str, tuple[str, Callable[[], gym.Env], str]] = {
    "no channel": ("MlpPolicy", lambda: Plain(VECTOR, CONTINUOUS), r'its environments return no info\["grad"\]'),
    "Discrete": ("MlpPolicy", lambda: Plain(VECTOR, spaces.Discrete(3)), "its actions are Discrete, not continuous"),
    "MultiDiscrete": ("MlpPolicy", lambda: Plain(VECTOR, spaces.MultiDiscrete([2, 3])), "its actions are MultiDiscrete"),
    "MultiBinary": ("MlpPolicy", lambda: Plain(VECTOR, spaces.MultiBinary(2)), "its actions are MultiBinary"),
    "image": ("CnnPolicy", lambda: Plain(Picture.observation_space, CONTINUOUS), "its observations are images"),
    "Dict": (
        "MultiInputPolicy",
        lambda: Plain(spaces.Dict({"a": VECTOR, "b": VECTOR}), CONTINUOUS),
        "its observations are Dict, not one array",
    ),
    "discrete observations": ("MlpPolicy", lambda: Plain(spaces.Discrete(4), CONTINUOUS), "its observations are Discrete"),
}


def plain(make: Callable[[], gym.Env]) -> VecEnv:
    return DummyVecEnv([make for _ in range(2)])


@pytest.mark.parametrize("case", list(CASES))
def test_one_warning_then_ppo_bit_for_bit(case: str) -> None:
    policy, make, reason = CASES[case]
    theirs = PPO(policy, plain(make), **SMALL).learn(96)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = GIPPO(policy, plain(make), **SMALL).learn(64)
        ours.learn(32, reset_num_timesteps=False)
    ours_only = [str(warning.message) for warning in caught if "GIPPO" in str(warning.message)]
    assert len(ours_only) == 1
    assert re.search(reason, ours_only[0])
    assert "as plain PPO" in ours_only[0] and "`alpha=0`" in ours_only[0] and "\n" not in ours_only[0]
    assert ours._n_updates == theirs._n_updates
    for name, value in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], value), name


@pytest.mark.parametrize("case", list(CASES))
def test_alpha_0_asks_for_nothing_and_warns_of_nothing(case: str) -> None:
    policy, make, _ = CASES[case]
    GIPPO(policy, plain(make), alpha=0, **SMALL).learn(32)


class OwnBuffer(RolloutBuffer):
    """Somebody else's."""


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"use_sde": True}, "gSDE's noise depends on the state"),
        ({"rollout_buffer_class": OwnBuffer}, "OwnBuffer does not derive from GradientRolloutBuffer"),
    ],
)
def test_settings_that_exclude_gradients_are_named_though_the_environment_offers_them(kwargs: dict, reason: str) -> None:
    theirs = PPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 2, seed=1), **SMALL, **kwargs).learn(64)
    with pytest.warns(UserWarning, match=reason):
        ours = GIPPO("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 2, seed=1), **SMALL, **kwargs).learn(64)
    assert_same(ours, theirs)
    assert ours.get_env().get_attr("differentiable") == [False, False]  # type: ignore[union-attr]


def test_gradients_are_used_as_soon_as_an_environment_offers_them() -> None:
    env = make_vec_env("DeJong-v0", 2, seed=0)
    with pytest.warns(UserWarning, match=r'no info\["grad"\]'):
        model = GIPPO("MlpPolicy", plain(lambda: Plain(env.observation_space, env.action_space)), **SMALL).learn(32)
    assert not model.rollout_buffer.action_gradients.any()
    model.set_env(env)
    model.learn(32)
    assert model.rollout_buffer.action_gradients.any()
