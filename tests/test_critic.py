"""The critic's fit and its slow copy: what they move, at which rate; values and their gradients are of one function."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_gippo import GIPPO, RP
from sb3_gippo.common.policies import MlpPolicy
from sb3_gippo.on_policy.actor import Actor, gaussian
from sb3_gippo.on_policy.critic import CriticFit, CriticSettings, TargetCritic
from sb3_gippo.rollout.action_gradients import value_gradients
from tests.helpers import SOLVERS, cartpole, collected, logged, small
from tests.reference import (
    Float64Policy,
    LinearQuadratic,
    Recorder,
    difference_gradients,
    linear_quadratic,
    replayed_advantage,
)


class Features(BaseFeaturesExtractor):
    """A layer that actor and critic share."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, 6)
        self.layer = th.nn.Linear(int(np.prod(observation_space.shape)), 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations).tanh()


class Noisy(MlpPolicy):
    """A critic with running statistics and dropout."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        layers = [th.nn.Linear(5, 16), th.nn.BatchNorm1d(16), th.nn.Tanh(), th.nn.Dropout(0.5), th.nn.Linear(16, 64)]
        self.mlp_extractor.value_net = th.nn.Sequential(*layers)


def test_the_target_critic_is_evaluated_as_the_critic_is_and_takes_over_what_is_counted() -> None:
    model = small(policy=Noisy, target_critic_tau=1.0, critic_epochs=3).learn(3 * 32)
    assert model.target_critic is not None
    observations = th.randn(20, 5, generator=th.Generator().manual_seed(0))
    model.policy.set_training_mode(False)
    with th.no_grad():
        expected = model.policy.predict_values(observations)
        for _ in range(2):
            assert th.equal(model.target_critic.values(observations), expected)
    assert dict(model.policy.named_buffers())["mlp_extractor.value_net.1.num_batches_tracked"] > 0


@pytest.mark.parametrize("squash", [False, True])
def test_advantages_and_their_gradients_are_of_the_target_critic(squash: bool) -> None:
    """As if the target were the critic; checked by differences of the advantages' definition with its values."""
    env = DummyVecEnv([lambda: linear_quadratic(5, limit=2.5) for _ in range(3)])
    kwargs: dict[str, Any] = {"n_steps": 12, "batch_size": 36, "target_critic_tau": 0.1, "gamma": 0.97, "gae_lambda": 0.9}
    model = GIPPO(Float64Policy, env, seed=3, device="cpu", policy_kwargs={"squash_actions": squash}, **kwargs)
    with th.no_grad():
        model.policy.action_net.weight.mul_(30)
    model._setup_learner()
    assert model.target_critic is not None
    with th.no_grad():
        for parameter in model.target_critic.copy.value_net.parameters():
            parameter.mul_(-2.0).add_(0.3)
    record = Recorder()
    collected(model, record)
    buffer = model.rollout_buffer
    ended = np.array(record.dones)
    assert (ended & np.array(record.truncated)).any() and (ended & ~np.array(record.truncated)).any()
    with th.no_grad():  # the values PPO may clip against stay the critic's
        own = model.policy.predict_values(th.as_tensor(buffer.observations.reshape(36, -1))).reshape(12, 3)
    np.testing.assert_allclose(buffer.values, own, rtol=1e-5)
    model.policy = model.target_critic.copy  # its actor is the policy's
    expected = difference_gradients(model, LinearQuadratic(), record)
    error = np.abs(buffer.action_gradients - expected).max() / np.abs(expected).max()
    assert error < 1e-6
    for t, env_index in ((0, 0), (7, 1), (11, 2)):
        action = record.actions[t][env_index]
        expected_advantage = replayed_advantage(model, LinearQuadratic(), record, env_index, t, action)
        assert buffer.advantages[t, env_index] == pytest.approx(expected_advantage, rel=1e-4, abs=1e-4)
        with th.no_grad():
            value = model.policy.predict_values(th.as_tensor(buffer.observations[t, env_index])[None]).item()
        assert buffer.returns[t, env_index] == pytest.approx(buffer.advantages[t, env_index] + value, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("algorithm", [GIPPO, RP])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_critics_fit_leaves_shared_features_and_the_actor_alone(algorithm: Any, solver: str) -> None:
    kwargs: dict[str, Any] = {"alpha_solver": solver, "batch_size": 16, "n_epochs": 1} if algorithm is GIPPO else {}
    kwargs["policy_kwargs"] = {"features_extractor_class": Features}
    critic = {"critic_epochs": 5, "critic_kwargs": {"learning_rate": 1e-2}}
    model = algorithm("MlpPolicy", cartpole(), n_steps=8, seed=0, device="cpu", **critic, **kwargs)
    moved: set[str] = set()
    fit = CriticFit.fit

    def watched(self: CriticFit, *args: Any) -> Any:
        before = copy.deepcopy(model.policy.state_dict())
        found = fit(self, *args)
        moved.update(name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CriticFit, "fit", watched)
        model.learn(2 * 32)
    assert moved and all("value_net" in name for name in moved)


def test_a_ppo_step_that_moves_shared_features_stays_in_the_trust_region_and_is_not_undone() -> None:
    """What the features move is pulled back with them, not by giving up the actor's own step."""
    kls, own = [], []

    class Watched(GIPPO):
        def train(self) -> None:
            observations = self.rollout_buffer.gradient_batch().observations  # type: ignore[attr-defined]
            with th.no_grad():
                old = gaussian(self.policy, observations)
            before = self.policy.action_net.weight.detach().clone()
            super().train()
            with th.no_grad():
                new = gaussian(self.policy, observations)
            kls.append((0.5 * ((new[0] - old[0]) / old[1]).square().sum(1).mean()).item())
            own.append((self.policy.action_net.weight - before).abs().max().item())

    kwargs: dict[str, Any] = {"alpha_kwargs": {"kl": 0.02}, "learning_rate": 0.03}
    model = Watched(
        "MlpPolicy",
        cartpole(),
        n_steps=8,
        batch_size=16,
        n_epochs=4,
        seed=0,
        device="cpu",
        vf_coef=0.5,
        critic_epochs=5,
        policy_kwargs={"features_extractor_class": Features},
        **kwargs,
    )
    before = [p.detach().clone() for p in model.policy.features_extractor.parameters()]
    model.learn(12 * 32)
    assert max(kls) < 2 * 0.02 * 1.1
    assert any(not th.equal(a, b) for a, b in zip(before, model.policy.features_extractor.parameters()))
    assert min(own) > 1e-5


@pytest.mark.parametrize("algorithm", [GIPPO, RP])
def test_the_critics_rate_is_a_schedule_of_its_own(algorithm: Any) -> None:
    rates: list[float] = []

    def learn(**kwargs: Any) -> list[float]:
        rates.clear()
        kwargs.update({"batch_size": 32, "n_epochs": 1} if algorithm is GIPPO else {})
        model = algorithm("MlpPolicy", cartpole(), n_steps=8, critic_epochs=1, seed=0, device="cpu", **kwargs)
        model.learn(4 * 32, callback=lambda locals_, _: rates.append(logged(model).get("train/critic_learning_rate")) or True)
        return [*dict.fromkeys(rate for rate in rates if rate is not None)]

    warm_up = lambda progress: 1e-3 * (1 - progress)  # noqa: E731 (starts at 0)
    assert learn(learning_rate=warm_up) == [1e-3]
    found = learn(critic_kwargs={"learning_rate": LinearSchedule(1e-2, 0.0, 1.0)})
    assert found == pytest.approx([0.75e-2, 0.5e-2, 0.25e-2])


def test_the_memory_holds_the_last_windows() -> None:
    policy = small().policy
    fit = CriticFit(policy, Actor(policy).critic, CriticSettings(n_windows=2, batch_size=4))
    for window in range(3):
        fit.fit(th.full((3, 5), float(window)), th.full((3,), float(window)), 1, 1.0)
    observations, returns = fit.memory.tensors(th.device("cpu"))
    assert returns.tolist() == [1, 1, 1, 2, 2, 2] and observations[:, 0].tolist() == returns.tolist()


def test_the_target_follows_by_its_share() -> None:
    policy = small().policy
    target = TargetCritic(policy, Actor(policy).mean, 0.25)
    start = policy.value_net.weight.detach().clone()
    with th.no_grad():
        policy.value_net.weight.add_(1.0)
    target.follow()
    th.testing.assert_close(target.copy.value_net.weight, start + 0.25)
    assert set(target.critic_state()) == {"value_net.weight"}


def test_values_of_integer_observations_have_gradients_and_those_that_depend_on_nothing_are_zero() -> None:
    found = value_gradients(lambda o: (o**2).sum(1, keepdim=True), th.tensor([[1, 2], [3, 4]]))
    assert found.tolist() == [[2, 4], [6, 8]]
    assert not value_gradients(lambda o: th.ones(len(o), 1), th.ones(3, 2)).any()


def test_the_critics_fit_leaves_running_statistics_that_the_actor_shares_alone() -> None:
    class Normed(Features):
        def __init__(self, observation_space: gym.spaces.Box):
            super().__init__(observation_space)
            self.layer = th.nn.Sequential(self.layer, th.nn.BatchNorm1d(6))  # type: ignore[assignment]

    model = collected(small(critic_epochs=20, policy_kwargs={"features_extractor_class": Normed}))
    observations = th.randn(10, 5, generator=th.Generator().manual_seed(0))
    model.policy.set_training_mode(False)
    with th.no_grad():
        before = gaussian(model.policy, observations)
        critic = model.policy.value_net.weight.clone()
    model._fit_critic(model.rollout_buffer.gradient_batch())
    model.policy.set_training_mode(False)
    with th.no_grad():
        assert all(th.equal(a, b) for a, b in zip(before, gaussian(model.policy, observations)))
    assert not th.equal(model.policy.value_net.weight, critic)
