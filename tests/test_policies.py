"""The tanh squash by keyword: PPO and buffer see the Gaussian action, the environment the squashed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.gippo.policies import MlpPolicy
from tests.reference import linear_quadratic

SQUASHED: dict[str, Any] = {"policy_kwargs": {"squash_actions": True}}


def model(env: Any = None, **kwargs: Any) -> GIPPO:
    env = env or DummyVecEnv([linear_quadratic for _ in range(2)])
    return GIPPO("MlpPolicy", env, n_steps=8, batch_size=16, seed=0, device="cpu", **kwargs)


def test_predict_returns_the_squashed_and_rescaled_action_and_the_buffer_keeps_the_gaussian_one() -> None:
    ours = model(**SQUASHED)
    with th.no_grad():
        ours.policy.action_net.bias.copy_(th.tensor([0.5, -50.0]))
    observations = np.zeros((3, 3))
    actions, _ = ours.predict(observations, deterministic=True)
    with th.no_grad():
        mean, _ = ours.gaussian(th.as_tensor(observations, dtype=th.float32))
    np.testing.assert_allclose(actions, 2.0 * np.tanh(mean.numpy()), rtol=1e-6)  # the box is [-2, 2]
    assert (actions[:, 1] == -2.0).all()
    ours.learn(16)
    assert np.abs(ours.rollout_buffer.actions).max() > 40
    before_squash = ours.rollout_buffer.actions.reshape(2, 8, 2).swapaxes(0, 1)  # SB3 flattens environments first
    for gradient, before in zip(ours.rollout_buffer.step_gradients, before_squash):  # type: ignore[attr-defined]
        np.testing.assert_allclose(gradient.action, 2.0 * np.tanh(before), rtol=1e-5)


def test_scaling_is_the_inverse_of_unscaling() -> None:
    for kwargs in (SQUASHED, {}):
        policy = model(**kwargs).policy
        actions = np.random.default_rng(0).uniform(-1.9, 1.9, (5, 2))
        np.testing.assert_allclose(policy.unscale_action(policy.scale_action(actions)), actions, rtol=1e-6)
        assert np.isfinite(policy.scale_action(np.array([[2.0, -2.0]]))).all()


def test_without_the_keyword_it_is_sb3s_policy() -> None:
    policy = model().policy
    assert isinstance(policy, MlpPolicy) and isinstance(policy, ActorCriticPolicy)
    assert not policy.squash_output
    names = set(ActorCriticPolicy(policy.observation_space, policy.action_space, lambda _: 1e-3).state_dict())
    assert set(policy.state_dict()) == names


def test_a_saved_policy_squashes_when_it_is_loaded(tmp_path: Path) -> None:
    ours = model(**SQUASHED)
    ours.save(tmp_path / "model")
    ours.policy.save(str(tmp_path / "policy"))
    observations = np.random.default_rng(0).normal(size=(4, 3))
    expected, _ = ours.predict(observations, deterministic=True)
    for loaded in (GIPPO.load(tmp_path / "model", device="cpu"), MlpPolicy.load(str(tmp_path / "policy"), device="cpu")):
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)


def test_squashing_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"^squash_actions needs continuous actions and no gSDE"):
        model(make_vec_env("CartPole-v1", 2), **SQUASHED)
    with pytest.raises(ValueError, match=r"^squash_actions needs continuous actions and no gSDE"):
        model(make_vec_env("Pendulum-v1", 2), use_sde=True, **SQUASHED)


def test_the_box_may_be_lopsided() -> None:
    policy = MlpPolicy(
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Box(np.float32([0, -1]), np.float32([1, 5])),
        lambda _: 1e-3,
        squash_actions=True,
    )
    np.testing.assert_allclose(policy.unscale_action(np.array([[0.0, 0.0], [99.0, -99.0]])), [[0.5, 2.0], [1.0, -1.0]])
