"""What could go wrong in a training is noticed, counted, and does no harm."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import DummyVecEnv

from gippo_envs import SingleEnv
from gippo_envs.physics.cartpole import CartPoleSwingUp
from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.common.policies import LOG_STD_MIN
from sb3_gippo.gippo.trust_region import AgreementController
from tests.helpers import SOLVERS, collected, is_finite, logged, small


class Poisoned(gym.Wrapper):
    """Writes NaN or inf into its gradients from a step on."""

    def __init__(self, env: gym.Env, poison: float, after: int = 0):
        super().__init__(env)
        self.poison, self.after, self.count = poison, after, 0

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.count += 1
        if self.count > self.after:
            result[4]["grad"]["reward_action"] = np.full(1, self.poison, dtype=np.float32)
        return result


def poisoned(poison: float, environments: set[int], after: int = 0) -> DummyVecEnv:
    """Four cart-poles, some of them with gradients that are not finite."""

    def make(index: int) -> gym.Env:
        env: gym.Env = SingleEnv(CartPoleSwingUp)
        return Poisoned(env, poison, after) if index in environments else env

    env = DummyVecEnv([lambda index=index: make(index) for index in range(4)])  # type: ignore[misc]
    env.seed(1)
    return env


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_that_are_not_finite_are_zeroed_and_counted(poison: float, solver: str) -> None:
    model = collected(small(poisoned(poison, {1, 3}, after=5), alpha_solver=solver))
    gradients = model.rollout_buffer.action_gradients
    # Steps 6 to 8 of two environments are poisoned, and with them the steps before, of the same episodes.
    assert np.isfinite(gradients).all()
    assert not gradients[:, [1, 3]].any() and gradients[:, [0, 2]].any()
    model.train()
    assert logged(model)["train/nonfinite_grad_fraction"] == 0.5
    assert is_finite(model) and np.isfinite(logged(model)["train/action_grad_norm"])
    clean = collected(small(poisoned(poison, set()), alpha_solver=solver))
    np.testing.assert_array_equal(gradients[:, [0, 2]], clean.rollout_buffer.action_gradients[:, [0, 2]])
    clean.train()
    assert logged(clean)["train/nonfinite_grad_fraction"] == 0.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_one_usable_gradient_the_iteration_is_plain_ppo_and_alpha_falls(solver: str) -> None:
    kwargs: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
    theirs = PPO("MlpPolicy", poisoned(0.0, set()), **kwargs).learn(3 * 32)
    with pytest.warns(UserWarning, match="Not one action gradient of this window is finite"):
        ours = GIPPO("MlpPolicy", poisoned(np.nan, {0, 1, 2, 3}), alpha=0.2, alpha_solver=solver, **kwargs).learn(3 * 32)
    for name, value in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], value), name
    assert not ours.rollout_buffer.action_gradients.any()
    assert logged(ours)["train/alpha_decision"] == "no_gradients"
    assert ours.alpha_step is not None
    assert ours.alpha_step.alpha == pytest.approx(0.2 / 1.1**3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("log_std_init", [LOG_STD_MIN, LOG_STD_MIN - 10])
def test_sigma_at_its_floor_stays_there_and_nothing_breaks(solver: str, log_std_init: float) -> None:
    model = small(policy_kwargs={"log_std_init": log_std_init}, alpha_solver=solver, alpha=0.1).learn(5 * 32)
    assert is_finite(model)
    assert (model.policy.log_std >= LOG_STD_MIN - 1e-6).all()
    assert model.alpha_step is not None and np.isfinite(model.alpha_step.alpha)
    actions, _ = model.predict(np.zeros((3, 5), dtype=np.float32))
    assert np.isfinite(actions).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_of_any_size_do_no_harm(solver: str) -> None:
    for factor in (1e-30, 1e25):
        env = poisoned(factor, {0, 1, 2, 3})
        model = small(env, alpha_solver=solver, alpha=0.1, n_epochs=1).learn(2 * 32)
        assert is_finite(model) and (model.policy.log_std >= LOG_STD_MIN - 1e-6).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_that_vanish_leave_the_alpha_step_out(solver: str) -> None:
    env = make_vec_env("DeJong-v0", 16, seed=0)
    model = small(env, n_steps=1, alpha_solver=solver, learning_rate=0.0, critic_epochs=0)
    with th.no_grad():  # every action is clipped, and a clip has no gradient
        model.policy.action_net.bias.fill_(50.0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(3 * 16)
    assert not model.rollout_buffer.action_gradients.any()
    assert is_finite(model)
    for parameter, old in zip(model.policy.parameters(), before):
        th.testing.assert_close(parameter, old)


def test_an_iteration_whose_alpha_fell_to_zero_is_ppos_and_still_judges_the_gradients() -> None:
    kwargs: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
    theirs = PPO("MlpPolicy", poisoned(0.0, set()), **kwargs).learn(32)
    ours = GIPPO("MlpPolicy", poisoned(0.0, set()), alpha_kwargs={"kl": 1e3, "std_kl": 1e3}, critic_epochs=0, **kwargs)
    ours._setup_learner()
    assert ours.alpha_step is not None
    controller = ours.alpha_step.controller
    assert isinstance(controller, AgreementController)
    controller.alpha = 0.0
    before = controller.slope
    ours.learn(32)
    for name, value in theirs.policy.state_dict().items():
        th.testing.assert_close(ours.policy.state_dict()[name], value, msg=name)
    assert logged(ours)["train/alpha_decision"] in ("agrees", "disagrees") and logged(ours)["train/alpha_improvement"] == 0
    assert controller.slope != before


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_window_cut_short_is_never_trained_on(solver: str) -> None:
    model = small(alpha_solver=solver)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    for stop_after in (1, 5):
        calls = iter(range(1, 100))
        model.learn(1000, callback=lambda locals_, globals_, n=stop_after, calls=calls: next(calls) < n)
        assert all(th.equal(parameter, old) for parameter, old in zip(model.policy.parameters(), before))
    assert not model.rollout_buffer.action_gradients.any()
    model.learn(64)
    assert is_finite(model) and model.rollout_buffer.action_gradients.any()


def test_no_steps_at_all_change_nothing() -> None:
    model = small()
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(0)
    assert model.num_timesteps == 0
    assert all(th.equal(parameter, old) for parameter, old in zip(model.policy.parameters(), before))


def test_the_first_window_may_end_inside_an_episode_of_one_environment_only() -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=1, env_kwargs={"max_episode_steps": 3})
    model = small(env).learn(64, callback=StopTrainingOnMaxEpisodes(7))
    assert is_finite(model)


@pytest.mark.parametrize("n_steps, n_envs", [(1, 2), (2, 1)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_smallest_window_works(n_steps: int, n_envs: int, solver: str) -> None:
    env = make_vec_env("CartPoleSwingUp-v0", n_envs, seed=1)
    kwargs = {"policy_kwargs": {"log_std_init": -2.0}, "alpha_solver": solver}  # within the bounds, where gradients are
    model = small(env, n_steps=n_steps, batch_size=2, **kwargs).learn(8)
    assert is_finite(model) and model.rollout_buffer.action_gradients.any()


class Blown(gym.Wrapper):
    """Rewards of a simulation that has blown up, and no gradient that is finite."""

    def __init__(self, env: gym.Env, factor: float):
        super().__init__(env)
        self.factor = factor

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = np.float32(float(reward) * self.factor)
        info["grad"].update(reward=reward, reward_action=np.full(1, np.nan, dtype=np.float32))
        return observation, reward, terminated, truncated, info


def blown(factor: float) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Blown(SingleEnv(CartPoleSwingUp), factor) for _ in range(4)])
    env.seed(1)
    return env


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning", "ignore:Not one action gradient:UserWarning")
def test_without_usable_gradients_an_update_that_overflows_is_left_out(solver: str) -> None:
    model = small(blown(1e36), alpha_solver=solver, critic_epochs=2).learn(3 * 32)
    assert not model._has_gradients and is_finite(model)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore:Not one action gradient:UserWarning")
def test_the_critic_is_trained_without_usable_gradients_as_well(solver: str) -> None:
    model = small(blown(1.0), alpha_solver=solver, critic_epochs=2, vf_coef=0.0)
    before = model.policy.value_net.weight.detach().clone()
    model.learn(32)
    assert not model._has_gradients and not th.equal(model.policy.value_net.weight, before)
    assert np.isfinite(logged(model)["train/critic_loss"])


def test_a_gradient_that_is_never_finite_is_warned_of_once() -> None:
    with pytest.warns(UserWarning, match="Not one action gradient of this window is finite: GIPPO goes on") as caught:
        small(blown(1.0)).learn(4 * 32)
    assert len([warning for warning in caught if "finite" in str(warning.message)]) == 1
