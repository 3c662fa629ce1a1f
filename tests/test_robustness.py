"""Whatever breaks, parameters stay finite, saved models whole, and what happened is said."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from gippo_envs.core import BatchedEnv, SingleEnv
from sb3_gippo import GIPPO, TorchVecEnv
from tests import helpers
from tests.helpers import Strike, interrupt, is_finite
from tests.reference import LinearQuadratic

SETTINGS: dict[str, Any] = {**helpers.SETTINGS, "critic_epochs": 2, "seed": 1}


@dataclass
class Faulty(LinearQuadratic):
    """
    Where x'_0 > ``above``, the gradient of the reward is multiplied by ``slope``, and what ``fault`` names is replaced by
    ``value``. Ends with the episode: a fault of a terminal observation ends it.
    """

    slope: float = 1.0
    fault: str = ""
    value: float = np.nan
    above: float = 0.5
    limit: float = 3.0

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        following, reward, terminated = super().step(state, action)
        struck = following[:, 0] > self.above
        if reward.requires_grad:
            reward.register_hook(lambda bar: th.where(struck, bar * self.slope, bar))
        if self.fault == "reward":
            reward = th.where(struck, self.value, reward)
        if self.fault in ("obs", "terminal obs"):
            following = th.where(struck[:, None], self.value, following)
        return following, reward, terminated | struck if self.fault == "terminal obs" else terminated


def dense(n_envs: int = 4, **kwargs: Any) -> VecEnv:
    """Only environment 2 is faulty."""
    sound = {**kwargs, "slope": 1.0, "fault": ""}
    return DummyVecEnv([lambda i=i: SingleEnv(Faulty, **(kwargs if i == 2 else sound)) for i in range(n_envs)])  # type: ignore[misc]


def graph(n_envs: int = 4, max_episode_steps: int | None = 20, **kwargs: Any) -> VecEnv:
    return TorchVecEnv(BatchedEnv(Faulty, n_envs, max_episode_steps, **kwargs))


def train(env: VecEnv, iterations: int = 3, callback: Any = None, **kwargs: Any) -> tuple[GIPPO, dict[str, Any]]:
    """:return: the trained model and what it logged last"""
    model = GIPPO("MlpPolicy", env, **{**SETTINGS, **kwargs})
    model.set_logger(configure(None, []))
    model.learn(iterations * model.n_steps * env.num_envs, callback, log_interval=10**6)
    assert is_finite(model)
    return model, model.logger.name_to_value


@pytest.mark.parametrize(
    "make, slope, solver",
    [
        (dense, np.nan, "published"),
        (dense, np.inf, "trust_region"),
        (graph, np.nan, "trust_region"),
        (graph, -np.inf, "published"),
    ],
)
def test_rows_without_finite_gradient_are_dropped_and_counted(make: Any, slope: float, solver: str) -> None:
    env = make(slope=slope, above=-np.inf if make is dense else 0.5)
    # A clipped action has a gradient of 0; a squashed one has not.
    model, logged = train(env, alpha_solver=solver, policy_kwargs={"squash_actions": True})
    dropped = (model.rollout_buffer.action_gradients == 0).all(axis=2)
    assert 0 < dropped.mean() < 1
    assert logged["train/nonfinite_grad_fraction"] == pytest.approx(dropped.mean())
    assert model._has_gradients and logged["train/alpha_decision"] != "no_gradients"
    if make is dense:
        assert (dropped == [False, False, True, False]).all(), "only the environment whose gradient broke"


@pytest.mark.parametrize("solver", ["trust_region", "published"])
def test_a_batch_without_any_finite_gradient_is_ppos_and_lowers_alpha(solver: str) -> None:
    with pytest.warns(UserWarning, match="Not one action gradient of this window is finite"):
        model, logged = train(graph(slope=np.nan, above=-np.inf), alpha_solver=solver, critic_epochs=0)
    assert logged["train/nonfinite_grad_fraction"] == 1 and logged["train/alpha_decision"] == "no_gradients"
    assert model.alpha_step is not None
    assert model.alpha_step.alpha == pytest.approx(model.alpha / 1.1**3)
    assert model._n_updates == 3 * SETTINGS["n_epochs"]


@pytest.mark.parametrize(
    "slope, solver", [(1e15, "published"), (1e30, "published"), (1e15, "trust_region"), (-1e30, "trust_region")]
)
def test_enormous_gradients_do_no_harm(slope: float, solver: str) -> None:
    _, logged = train(graph(slope=slope), alpha_solver=solver)
    assert np.isfinite(logged["train/action_grad_norm"])
    # A row whose norm is beyond float32 cannot be worked with.
    assert (logged["train/nonfinite_grad_fraction"] > 0) == (abs(slope) > 1e19)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("fault, name", [("reward", "reward"), ("obs", "observation")])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_numbers_that_are_not_finite_stop_training_before_the_parameters_take_them(
    fault: str, name: str, normalize: bool, value: float
) -> None:
    env = dense(fault=fault, value=value)
    model = GIPPO("MlpPolicy", VecNormalize(env) if normalize else env, **SETTINGS)
    with pytest.raises(ValueError, match=f"Environment 2 returned a {name} that is not finite .*{value}.* end the episode"):
        model.learn(1000)
    assert is_finite(model)


@pytest.mark.parametrize("solver", ["trust_region", "published"])
@pytest.mark.parametrize("value", [1e25, 2e37])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_enormous_rewards_do_no_harm(value: float, solver: str) -> None:
    train(dense(fault="reward", value=value, above=-np.inf), alpha_solver=solver, critic_epochs=0)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_advantages_that_overflow_stop_training_before_the_parameters_take_them() -> None:
    model = GIPPO("MlpPolicy", dense(fault="reward", value=3e38, above=-np.inf), **SETTINGS)
    with pytest.raises(ValueError, match=r"advantages of environment 2 are not finite: .* Scale them"):
        model.learn(1000)
    assert is_finite(model)


def test_a_simulation_that_breaks_down_may_end_its_episode() -> None:
    """A terminal observation is used by nothing; of a truncated episode its value is."""
    env = graph(fault="terminal obs", above=1.5)
    ended: list[bool] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            ended.extend(np.isnan(info["terminal_observation"]).any() for info in self.locals["infos"] if info)
            return True

    _, logged = train(env, callback=Watch())
    assert any(ended)
    assert logged["train/nonfinite_grad_fraction"] == 0 and logged["train/action_grad_norm"] > 0
    with pytest.raises(ValueError, match="returned a terminal observation that is not finite"):
        train(graph(max_episode_steps=1, fault="obs", above=0.5))


@pytest.mark.parametrize("where", ["in a rollout", "in the α-step", "in the PPO step"])
def test_an_interrupted_model_trains_on(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = graph()
    model, _ = train(env)
    if where == "in a rollout":
        callback: Any = Strike(interrupt, 5)
    else:
        callback = None
        module = "sb3_gippo.gippo.trust_region.pull_back" if "PPO" in where else "sb3_gippo.gippo.gippo.diagnose"
        monkeypatch.setattr(module, lambda *args, **kwargs: interrupt())
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback, reset_num_timesteps=False)
    monkeypatch.undo()
    assert is_finite(model)
    steps = model.num_timesteps
    model.learn(64, reset_num_timesteps=False)
    assert is_finite(model)
    assert model.num_timesteps >= steps + 64 and model._has_gradients


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """An interrupt between two checkpoints, in the middle of a rollout."""
    model = GIPPO("MlpPolicy", graph(), **SETTINGS)
    saved = {}
    checkpoints = CheckpointCallback(save_freq=12, save_path=str(tmp_path))  # in the second rollout, a few steps in
    keep = Strike(lambda: saved.update({k: v.clone() for k, v in model.policy.state_dict().items()}), 12)
    with pytest.raises(KeyboardInterrupt):
        model.learn(10_000, [checkpoints, keep, Strike(interrupt, 20)])
    (path,) = tmp_path.iterdir()
    loaded = GIPPO.load(path, env=graph())
    for name, value in loaded.policy.state_dict().items():
        assert th.equal(value, saved[name]), name
    assert loaded.num_timesteps == 48 and loaded._n_updates == SETTINGS["n_epochs"]
    assert loaded.alpha_step is not None and loaded.alpha_step.alpha != loaded.alpha
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48 + 64 and loaded._has_gradients
    assert is_finite(loaded)


@pytest.mark.parametrize("name", ["model", "model.zip", "model.v1"])
def test_an_interrupt_while_saving_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = train(graph(), 1)
    model.save(tmp_path / name)
    old = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(64)
    monkeypatch.setattr("stable_baselines3.common.save_util.get_system_info", lambda **kwargs: interrupt())
    with pytest.raises(KeyboardInterrupt):
        model.save(str(tmp_path / name))
    monkeypatch.undo()
    (path,) = tmp_path.iterdir()
    assert path.name == (name if "." in name else f"{name}.zip")
    for key, value in GIPPO.load(tmp_path / name).policy.state_dict().items():
        assert th.equal(value, old[key]), key
    model.save(tmp_path / name)
    assert th.equal(GIPPO.load(path).policy.log_std, model.policy.log_std) and zipfile.is_zipfile(path)
