"""`GIPPO` in the place of `PPO`: the drop-in example on small budgets, and what users of SB3 do with a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.ppo import MlpPolicy
from torch import nn

from sb3_gippo import GIPPO
from tests.helpers import SOLVERS, small

pytestmark = pytest.mark.filterwarnings("ignore:GIPPO trains without gradients:UserWarning")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drop_in", Path(__file__).parent.parent / "examples" / "drop_in.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_published_entry_ends_with_ppos_parameters(example: ModuleType) -> None:
    ppo, gippo = (example.published(algorithm, "CartPole-v1", 1024) for algorithm in (PPO, GIPPO))
    assert (gippo.n_envs, gippo.n_steps, gippo.gae_lambda) == (8, 32, 0.8)
    assert gippo.lr_schedule(0.5) == gippo.lr_schedule(1.0) / 2 > 0
    assert example.same_parameters(ppo, gippo)
    assert example.mean_return(ppo) == example.mean_return(gippo) > 10


def test_gradients_are_used_where_there_are_some(example: ModuleType) -> None:
    ppo, gippo = example.with_gradients(PPO, 2048), example.with_gradients(GIPPO, 2048)
    assert not example.same_parameters(ppo, gippo)


def test_mujocos_published_entry_equals_ppo_without_the_wrapper_and_differs_with_it(example: ModuleType) -> None:
    pytest.importorskip("mujoco")
    MujocoGradient = pytest.importorskip("sb3_gippo.mujoco.wrapper").MujocoGradient
    cheetah = ("HalfCheetah-v4", 512, "HalfCheetah-v5")
    ppo, gippo = example.published(PPO, *cheetah), example.published(GIPPO, *cheetah)
    assert example.same_parameters(ppo, gippo)
    assert not example.same_parameters(ppo, example.published(GIPPO, *cheetah, wrapper=MujocoGradient))


def test_sb3s_policy_class_loads_a_saved_policy(tmp_path: Path) -> None:
    ours = small().learn(64)
    ours.policy.save(str(tmp_path / "policy"))
    loaded = MlpPolicy.load(str(tmp_path / "policy"), device="cpu")
    observation = ours.observation_space.sample()
    for deterministic in (True, False):
        actions = []
        for policy in (ours.policy, loaded):
            th.manual_seed(0)
            actions.append(policy.predict(observation, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("policy", ["MlpPolicy", ActorCriticPolicy])
def test_mlp_policies_are_recommended_the_cpu_as_ppos_are(policy: Any) -> None:
    for algorithm in (PPO, GIPPO):
        model = algorithm(policy, "Pendulum-v1", device="cpu")
        model.device = th.device("cuda")  # pretended
        with pytest.warns(UserWarning, match=f"You are trying to run {algorithm.__name__} on the GPU"):
            model._maybe_recommend_cpu()


class OwnHead(ActorCriticPolicy):
    """Its mean comes from another layer than `action_net`, which it leaves idle."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.head = nn.Linear(self.mlp_extractor.latent_dim_pi, self.action_space.shape[0])  # type: ignore[index]
        self._remove()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))  # type: ignore[call-arg]

    def _remove(self) -> None:
        pass

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.head(latent_pi), self.log_std)  # type: ignore[call-arg]


class NoActionNet(OwnHead):
    """It has no `action_net`."""

    def _remove(self) -> None:
        del self.action_net


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("policy", [OwnHead, NoActionNet])
def test_a_policy_may_have_a_head_of_its_own(policy: type[OwnHead], solver: str) -> None:
    ours = small(policy=policy, alpha_solver=solver)
    before: Any = ours.policy.head.weight.detach().clone()
    ours.learn(96)
    assert ours.alpha_step is not None and any(ours.policy.head.weight is parameter for parameter in ours.actor.mean)  # type: ignore[union-attr]
    assert not th.equal(ours.policy.head.weight, before)  # type: ignore[arg-type]
