"""Saving and loading: learning goes on exactly where it stopped, and what cannot be loaded is said clearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_gippo import GIPPO, make_vec_env
from tests import helpers
from tests.helpers import SOLVERS, assert_same_learner, cartpole

ITERATION = 4 * 16
SETTINGS: dict[str, Any] = {**helpers.SETTINGS, "n_steps": 16, "batch_size": 32, "alpha": 0.1}
CRITIC = {"critic_epochs": 3, "critic_kwargs": {"n_windows": 4}}


def go_on(model: GIPPO, env: VecEnv) -> GIPPO:
    """Learn for three iterations more, environments and random numbers brought to one known point."""
    env.seed(7)
    model.set_env(env, force_reset=True)
    set_random_seed(7)
    return model.learn(3 * ITERATION, reset_num_timesteps=False)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kwargs", [{}, CRITIC, {"policy_kwargs": {"squash_actions": True}}])
def test_learning_goes_on_exactly(solver: str, normalize: bool, kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = VecNormalize(cartpole()) if normalize else cartpole()
    model = GIPPO("MlpPolicy", env, alpha_solver=solver, **SETTINGS, **kwargs).learn(3 * ITERATION)
    model.save(tmp_path / "model", include=["critic_fit"])
    other_env = cartpole()
    if isinstance(env, VecNormalize):
        env.save(str(tmp_path / "statistics.pkl"))
        other_env = VecNormalize.load(str(tmp_path / "statistics.pkl"), other_env)
    loaded = GIPPO.load(tmp_path / "model", env=other_env, device="cpu")
    assert_same_learner(model, loaded)
    before = [parameter.clone() for parameter in loaded.policy.parameters()]
    assert_same_learner(go_on(model, env), go_on(loaded, other_env))
    assert any(not th.equal(a, b) for a, b in zip(before, loaded.policy.parameters()))
    assert model.alpha_step is not None and model.alpha_step.state_dict()["optimizer"]["state"], "α-steps were made"


@pytest.mark.parametrize("solver", SOLVERS)
def test_parameters_can_be_got_and_set(solver: str) -> None:
    model = GIPPO("MlpPolicy", cartpole(), alpha_solver=solver, **SETTINGS).learn(2 * ITERATION)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}, "PPO's"
    other = GIPPO("MlpPolicy", cartpole(), alpha_solver=solver, **{**SETTINGS, "seed": 1})
    other.set_parameters(parameters)
    for name, value in model.policy.state_dict().items():
        assert th.equal(other.policy.state_dict()[name], value)
    other.set_parameters({"policy": parameters["policy"]}, exact_match=False)


def test_predicting_needs_no_environment_but_learning_says_it_does(tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), **SETTINGS).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", device="cpu")
    observations = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    for found, expected in zip(
        loaded.predict(observations, deterministic=True), model.predict(observations, deterministic=True)
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        AssertionError, match=r"^This model has no environment: give it one by `set_env`, or by `load\(.*\)`\.$"
    ):
        loaded.learn(ITERATION)
    loaded.set_env(cartpole())
    loaded.learn(ITERATION)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"learning_rate": 1e-4, "n_epochs": 3},
        {"alpha_kwargs": {"kl": 0.5, "n_iterations": 2}},
        {"critic_epochs": 2, "critic_kwargs": {"n_windows": 3}},
    ],
)
def test_other_hyperparameters_can_be_given_at_loading(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), **SETTINGS).learn(3 * ITERATION)
    model.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", env=cartpole(), device="cpu", **kwargs)
    assert all(getattr(loaded, name) == value for name, value in kwargs.items())
    assert loaded.alpha_step is not None and model.alpha_step is not None
    assert loaded.alpha_step.alpha == model.alpha_step.alpha != SETTINGS["alpha"], "α goes on from where it was"
    loaded.learn(ITERATION)


def test_another_alpha_at_loading_starts_its_control_anew(tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), **SETTINGS).learn(3 * ITERATION)
    model.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", env=cartpole(), device="cpu", alpha=0.7)
    assert loaded.alpha_step is not None and loaded.alpha_step.alpha == 0.7
    loaded.learn(ITERATION)


@pytest.mark.parametrize("saved, loaded", [({}, {"alpha": 0.0}), ({"alpha": 0.0}, {"alpha": 0.3}), ({"alpha": 0.0}, {})])
def test_alpha_can_be_switched_off_and_on_at_loading(saved: dict[str, Any], loaded: dict[str, Any], tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), **{**SETTINGS, **saved}).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    other = GIPPO.load(tmp_path / "model", env=cartpole(), device="cpu", **loaded)
    for name, value in model.policy.state_dict().items():
        assert th.equal(other.policy.state_dict()[name], value)
    other.learn(2 * ITERATION)


@pytest.mark.parametrize("solver, other", [SOLVERS, SOLVERS[::-1]])
def test_the_solver_can_be_changed_at_loading(solver: str, other: str, tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), alpha_solver=solver, **SETTINGS).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", env=cartpole(), device="cpu", alpha_solver=other)
    for name, value in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], value)
    loaded.learn(2 * ITERATION)


def test_hyperparameters_out_of_range_are_refused_at_loading_too(tmp_path: Path) -> None:
    GIPPO("MlpPolicy", cartpole(), **SETTINGS).save(tmp_path / "model")
    with pytest.raises(AssertionError, match="`alpha_kwargs: factor` must be a number finite and more than 1"):
        GIPPO.load(tmp_path / "model", alpha_kwargs={"factor": 0.5})


def test_learning_twice_goes_on_and_resetting_the_clock_is_allowed() -> None:
    model = GIPPO("MlpPolicy", cartpole(), **SETTINGS).learn(ITERATION)
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * ITERATION
    model.learn(ITERATION)
    assert model.num_timesteps == ITERATION


def test_a_loaded_model_has_another_number_of_environments(tmp_path: Path) -> None:
    model = GIPPO("MlpPolicy", cartpole(), **SETTINGS).learn(ITERATION)
    model.save(tmp_path / "model")
    loaded = GIPPO.load(tmp_path / "model", env=make_vec_env("CartPoleSwingUp-v0", 2, seed=1), device="cpu")
    loaded.learn(2 * 32)
    assert loaded.rollout_buffer.action_gradients.shape == (16, 2, 1)
