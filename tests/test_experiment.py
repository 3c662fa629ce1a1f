"""The hyper-parameter files make models, and runs from them record their learning curve."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from sb3_gippo import GIPPO
from sb3_gippo.cli.experiment import CurveCallback, make_model
from sb3_gippo.cli.hyperparams import ALGORITHMS, hyperparams_dir, read_hyperparams
from sb3_gippo.common.policies import MlpPolicy

ENTRIES = [
    (algo, env_id)
    for algo in ("gippo", "ppo")
    for env_id in yaml.safe_load((hyperparams_dir() / f"{algo}.yml").read_text())
    if env_id != "default"
]


@pytest.mark.parametrize("algo, env_id", ENTRIES)
def test_every_entry_makes_a_model_whose_minibatches_fit(algo: str, env_id: str) -> None:
    model, steps = make_model(algo, env_id, seed=0)
    assert isinstance(model, PPO) and type(model) is ALGORITHMS[algo]
    assert model.seed == 0 and model.n_envs == read_hyperparams(algo, env_id)["n_envs"] and steps >= 128_000
    assert model.n_steps * model.n_envs % model.batch_size == 0


FUNCTIONS = ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0", "Rosenbrock-v0", "Rastrigin-v0"]


@pytest.mark.parametrize("env_id", [*FUNCTIONS, *(f"PaceCar{scenario}-v0" for scenario in "ABCDE")])
def test_both_algorithms_have_the_same_budget_and_network(env_id: str) -> None:
    ours, theirs = (read_hyperparams(algo, env_id) for algo in ("gippo", "ppo"))
    for key in ("n_envs", "n_timesteps", "n_steps", "normalize", "env_kwargs", "policy_kwargs"):
        assert ours.get(key) == theirs.get(key), key


def test_a_policy_may_be_named_in_full() -> None:
    assert read_hyperparams("ppo", "PaceCarB-v0")["policy"] is MlpPolicy
    model, _ = make_model("ppo", "PaceCarB-v0", seed=0)
    assert type(model.policy) is MlpPolicy and model.policy.layer_norm


def test_overrides_and_constants_replace_the_files() -> None:
    model, _ = make_model("gippo", "DeJong-v0", seed=3, env_kwargs={"dim": 5}, n_envs=8, batch_size=8, alpha=0.0)
    assert isinstance(model, GIPPO)
    assert (model.alpha, model.n_envs, model.action_space.shape) == (0.0, 8, (5,))


def test_an_environment_without_an_entry_gets_the_default() -> None:
    model, steps = make_model("ppo", "Pendulum-v1", seed=0, n_envs=2)
    assert isinstance(model, PPO) and steps == 1_000_000


def test_an_unknown_algorithm_ends_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^Unknown algorithm 'sac': there are gippo, ppo, rp\.$"):
        read_hyperparams("sac", "DeJong-v0")


def test_the_curve_is_the_mean_of_the_last_finished_episodes() -> None:
    model, _ = make_model("ppo", "DeJong-v0", seed=0)
    curve = CurveCallback()
    model.learn(3 * 64, callback=curve)
    assert curve.steps == [64, 128, 192]
    assert curve.seconds == sorted(curve.seconds)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 100
    assert curve.returns[-1] == pytest.approx(np.mean([episode["r"] for episode in model.ep_info_buffer]))
