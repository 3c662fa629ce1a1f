"""The policies' options. Squashed, PPO and buffer see the Gaussian action, the environment the squashed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.common.policies import LOG_STD_MAX, LOG_STD_MIN, MlpPolicy
from sb3_gippo.on_policy.actor import gaussian
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
        mean, _ = gaussian(ours.policy, th.as_tensor(observations, dtype=th.float32))
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


NORMED: dict[str, Any] = {"layer_norm": True, "state_dependent_std": True, "activation_fn": th.nn.ELU}


def test_layer_norm_follows_every_activation_of_both_networks() -> None:
    extractor = model(policy_kwargs=NORMED).policy.mlp_extractor
    for network in (extractor.policy_net, extractor.value_net):
        assert [type(layer).__name__ for layer in network] == ["Linear", "ELU", "LayerNorm"] * 2


def test_state_dependent_std_starts_as_the_parameter_and_learns_to_depend_on_the_state() -> None:
    ours = model(policy_kwargs={**NORMED, "log_std_init": -0.7}, learning_rate=1e-2)
    observations = th.randn(50, 3, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        assert th.allclose(gaussian(ours.policy, observations)[1], th.tensor(-0.7).exp())
    ours.learn(64)
    with th.no_grad():
        assert gaussian(ours.policy, observations)[1].std(0).min() > 1e-6


def test_state_dependent_log_std_is_clamped() -> None:
    ours = model(policy_kwargs=NORMED)
    with th.no_grad():
        for offset, expected in ((-100.0, LOG_STD_MIN), (100.0, LOG_STD_MAX)):
            ours.policy.log_std.fill_(offset)
            _, std = gaussian(ours.policy, th.zeros(1, 3))
            assert th.allclose(std.log(), th.tensor(expected))


@pytest.mark.parametrize("solver", ["trust_region", "published"])
def test_predict_evaluate_actions_and_a_loaded_copy_agree(tmp_path: Path, solver: str) -> None:
    ours = model(policy_kwargs={**NORMED, **SQUASHED["policy_kwargs"]}, alpha_solver=solver, target_critic_tau=0.3).learn(64)
    ours.policy.set_training_mode(False)
    observations = th.randn(6, 3, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        mean, std = gaussian(ours.policy, observations)
        _, log_prob, entropy = ours.policy.evaluate_actions(observations, mean)
    expected = th.distributions.Normal(mean, std)
    assert entropy is not None
    assert th.allclose(log_prob, expected.log_prob(mean).sum(1), atol=1e-5)
    assert th.allclose(entropy, expected.entropy().sum(1), atol=1e-5)
    ours.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", env=ours.get_env(), device="cpu")
    for name, value in ours.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], value), name
    assert ours.target_critic is not None and loaded.target_critic is not None
    for mine, theirs in zip(ours.target_critic.copy.parameters(), loaded.target_critic.copy.parameters()):
        assert th.equal(mine, theirs)
    actions = ours.predict(observations.numpy(), deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observations.numpy(), deterministic=True)[0], actions)
    np.testing.assert_allclose(actions, 2.0 * np.tanh(mean.numpy()), rtol=1e-5, atol=1e-6)  # rounding of the layers before
    assert np.isfinite(evaluate_policy(loaded, loaded.get_env(), 2, warn=False)[0])  # type: ignore[arg-type]


def test_the_target_critic_follows_by_its_share() -> None:
    ours = model(target_critic_tau=0.25)
    start = ours.policy.value_net.weight.detach().clone()
    ours.learn(16)
    assert ours.target_critic is not None
    expected = 0.75 * start + 0.25 * ours.policy.value_net.weight
    assert th.allclose(ours.target_critic.copy.value_net.weight, expected, atol=1e-6) and not th.equal(expected, start)


@pytest.mark.parametrize("kwargs", [{"squash_actions": True}, {"state_dependent_std": True}])
def test_options_of_the_gaussian_are_refused_without_one(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs continuous actions"):
        GIPPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs)
