"""Which parameters belong to the actor, and policies of other kinds: frozen, without features, without a last layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from torch import nn

from sb3_gippo import GIPPO, RP
from sb3_gippo.common.policies import LOG_STD_MAX, LOG_STD_MIN, MlpPolicy
from sb3_gippo.on_policy.actor import Actor, gaussian
from tests.helpers import SETTINGS, SOLVERS, cartpole, is_finite, small
from tests.test_critic import Features


def names(policy: MlpPolicy, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if any(parameter is p for p in parameters)}


def test_parameters_are_told_apart_whether_frozen_or_not() -> None:
    policy = small(policy_kwargs={"features_extractor_class": Features, "state_dependent_std": True}).policy
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    actor = Actor(policy)
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    shared = {"features_extractor.layer.weight", "features_extractor.layer.bias"}
    trunk = {name for name, _ in policy.named_parameters() if "policy_net" in name or "action_net" in name}
    assert names(policy, actor.mean) == trunk
    assert names(policy, actor.moves_mean) == trunk | shared
    assert names(policy, actor.std) == names(policy, actor.moves_std) == {"log_std", "log_std_net.weight"}
    assert all("value_net" in name for name in names(policy, actor.critic)) and actor.critic
    assert actor.std_follows_mean and actor.log_std is None
    plain = Actor(small().policy)
    assert not plain.std_follows_mean and plain.log_std is plain.policy.log_std and plain.mean == plain.moves_mean


def freeze(policy: Any, what: str) -> None:
    actor = (*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters())
    groups: dict[str, Any] = {
        "log_std": [policy.log_std],
        "mean": actor,
        "actor": [*actor, policy.log_std],
        "critic": [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()],
    }
    for parameter in groups[what]:
        parameter.requires_grad_(False)


@pytest.mark.parametrize("what", ["log_std", "mean", "actor", "critic"])
@pytest.mark.parametrize("when", ["before", "later"])
@pytest.mark.parametrize(
    "algorithm, kwargs",
    [
        (PPO, {}),
        (GIPPO, {"critic_epochs": 2, "policy_kwargs": {"state_dependent_std": True}}),
        *[(GIPPO, {"alpha_solver": solver, "alpha": 0.1}) for solver in SOLVERS],
        (RP, {}),
    ],
)
def test_what_is_frozen_stays_and_the_rest_learns(algorithm: Any, kwargs: dict[str, Any], when: str, what: str) -> None:
    settings = {"n_steps": 8, "seed": 0, "device": "cpu"} if algorithm is RP else SETTINGS
    model = algorithm("MlpPolicy", cartpole(), **settings, **kwargs)
    if when == "later":
        model.learn(2 * 32)
    freeze(model.policy, what)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(2 * 32, reset_num_timesteps=False)
    for name, parameter in model.policy.named_parameters():
        if not parameter.requires_grad:
            assert th.equal(parameter, before[name]), name
    assert any(not th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    if algorithm is not PPO:
        assert model._has_gradients and is_finite(model)


class Blind(MlpPolicy):
    """Ignores the observation: two numbers, and a value."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.mean = nn.Parameter(th.zeros(1))
        self.level = nn.Parameter(th.zeros(1))
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def get_distribution(self, obs: Any) -> Any:
        return self.action_dist.proba_distribution(self.mean + th.zeros(len(obs), 1), self.log_std)  # type: ignore[call-arg]

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Any) -> th.Tensor:
        return self.level + th.zeros(len(obs), 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_policy_may_ignore_the_observation_and_have_no_last_layer(solver: str) -> None:
    model = small(policy=Blind, alpha_solver=solver, critic_epochs=2, target_critic_tau=0.5).learn(4 * 32)
    assert model._has_gradients and is_finite(model)
    assert model.policy.mean.abs().item() > 1e-4  # type: ignore[operator, union-attr]


def test_a_state_dependent_sigma_does_not_wind_up_beyond_its_bounds() -> None:
    policy = small(policy_kwargs={"state_dependent_std": True}).policy
    for start, end in ((LOG_STD_MAX + 5, LOG_STD_MAX), (LOG_STD_MIN - 5, LOG_STD_MIN)):
        with th.no_grad():
            policy.log_std.fill_(start)
        Actor(policy).keep_std_in_bounds()
        assert policy.log_std.item() == pytest.approx(end)
    free = small().policy
    with th.no_grad():
        free.log_std.fill_(LOG_STD_MAX + 5)
    Actor(free).keep_std_in_bounds()
    assert free.log_std.item() == LOG_STD_MAX + 5, "SB3's own σ has no upper bound"


def test_a_gaussian_that_is_not_finite_is_returned_not_raised() -> None:
    policy = small().policy
    with th.no_grad():
        policy.action_net.bias.fill_(np.nan)
        mean, std = gaussian(policy, th.zeros(3, 5))
    assert mean.isnan().all() and std.isfinite().all()
    with pytest.raises(ValueError, match="found invalid values"):  # elsewhere torch goes on to check
        policy.get_distribution(th.zeros(3, 5))


def test_constructing_a_model_makes_no_forward_pass() -> None:
    class Counting(MlpPolicy):
        calls = 0

        def extract_features(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().extract_features(*args, **kwargs)

    small(policy=Counting)
    assert Counting.calls == 0


@pytest.mark.parametrize("algorithm", [GIPPO, RP])
@pytest.mark.parametrize("learned", [False, True])
def test_policies_can_be_copied_and_pickled(algorithm: Any, learned: bool, tmp_path: Any) -> None:
    settings = {"n_steps": 8, "seed": 0, "device": "cpu"} if algorithm is RP else SETTINGS
    model = algorithm("MlpPolicy", cartpole(), **settings)
    if learned:
        model.learn(2 * 32)
    model.save(tmp_path / "model")
    for policy in (model.policy, algorithm.load(tmp_path / "model", device="cpu").policy):
        for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            assert all(th.equal(a, b) for a, b in zip(policy.parameters(), other.parameters()))
    whole = copy.deepcopy(model)
    assert not whole.rollout_buffer.step_gradients
    for one in (model, whole):
        one.learn(2 * 32, reset_num_timesteps=False)
        assert one._has_gradients
