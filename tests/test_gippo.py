"""GIPPO as a user meets it: PPO's constructor and ours after it, any vectorisation, logs, callbacks, and it learns."""

from __future__ import annotations

import copy
import csv
import inspect
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_gippo import GIPPO
from sb3_gippo.cli.experiment import CurveCallback, make_model
from sb3_gippo.common.policies import MlpPolicy
from sb3_gippo.gippo.alpha_step import virtual_log_prob
from sb3_gippo.on_policy.actor import gaussian
from tests.helpers import SOLVERS, cartpole, collected, logged, small
from tests.reference import Float64Policy

OURS = [
    "alpha",
    "alpha_solver",
    "alpha_kwargs",
    "action_gradient_lambda",
    "critic_epochs",
    "critic_kwargs",
    "target_critic_tau",
]


def test_the_constructor_is_ppos_then_ours() -> None:
    theirs = list(inspect.signature(PPO.__init__).parameters.values())
    ours = list(inspect.signature(GIPPO.__init__).parameters.values())
    assert theirs[-1].name == ours[-1].name == "_init_setup_model"
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs) - 1]] == [(p.name, p.default, p.kind) for p in theirs[:-1]]
    assert [p.name for p in ours[len(theirs) - 1 : -1]] == OURS
    assert all(f":param {p.name}:" in (GIPPO.__doc__ or "") for p in ours[1:])
    model = small()
    assert all(hasattr(model, p.name) for p in ours[len(theirs) - 1 : -1])


PUBLISHED: dict[str, Any] = {"alpha_solver": "published"}
WRONG: list[tuple[dict[str, Any], str]] = [
    *[({"alpha": x}, rf"`alpha` must be a number finite and at least 0, not {x!r}") for x in (-0.1, nan, inf, None, "0.3")],
    ({"alpha": 2.0}, r"`max_alpha` \(1.0\) must not be less than `alpha` \(2.0\)"),
    ({"alpha_solver": "newton"}, r"`alpha_solver` must be one of trust_region, published, not 'newton'"),
    ({"alpha_kwargs": 3}, r"`alpha_kwargs` must be a dict, not 3"),
    ({"alpha_kwargs": {"interval": 0.4}}, r"`alpha_kwargs` has no 'interval' here: there are kl, std_kl, .*bias_z"),
    (
        {"alpha_kwargs": {"kl": 0.4}, **PUBLISHED},
        r"`alpha_kwargs` has no 'kl' here: there are n_iterations, .*ppo_kl",
    ),
    ({"alpha_kwargs": {"interval": 0.0}, **PUBLISHED}, r"`alpha_kwargs: interval` must .* 0 \(excluded\) and 1, not 0.0"),
    ({"alpha_kwargs": {"max_out_of_range": 1.1}, **PUBLISHED}, r"`alpha_kwargs: max_out_of_range` must .* and 1, not 1.1"),
    ({"alpha_kwargs": {"ppo_kl": 0.0}, **PUBLISHED}, r"`alpha_kwargs: ppo_kl` must .* \(`None`: no control\), not 0.0"),
    ({"alpha_kwargs": {"n_iterations": 1}, **PUBLISHED}, r".*n_iterations` must be an integer of at least 2, not 1"),
    *[({"alpha_kwargs": {"factor": x}}, rf"`alpha_kwargs: factor` must .*more than 1, not {x}") for x in (1.0, inf)],
    *[
        ({"alpha_kwargs": {"n_iterations": x}}, rf".*n_iterations` must be an integer of at least 1, not {x}")
        for x in (0, 2.5)
    ],
    *[
        ({"alpha_kwargs": {"kl": x}}, rf".*kl` must .*more than 0, or a function of .*, not {x}")
        for x in (0.0, -1.0, inf, nan)
    ],
    ({"alpha_kwargs": {"learning_rate": "fast"}}, r"`alpha_kwargs: learning_rate` must be a number .*, not 'fast'"),
    ({"alpha_kwargs": {"bias_z": -1.0}}, r"`alpha_kwargs: bias_z` must be a number .*, not -1.0"),
    ({"action_gradient_lambda": 1.1}, r"`action_gradient_lambda` must be a number between 0 and 1 .*, not 1.1"),
    ({"critic_epochs": None}, r"`critic_epochs` must be an integer of at least 0, not None"),
    ({"critic_kwargs": {"n_windows": 0}}, r"`critic_kwargs: n_windows` must be an integer of at least 1, not 0"),
    (
        {"critic_kwargs": {"windows": 2}},
        r"`critic_kwargs` has no 'windows' here: there are n_windows, .*",
    ),
    ({"critic_kwargs": {"learning_rate": inf}}, r"`critic_kwargs: learning_rate` must .*, not inf"),
    *[
        ({"target_critic_tau": x}, rf"`target_critic_tau` must be .* 0 \(excluded\) and 1 .*, not {x}")
        for x in (0.0, 1.5, nan)
    ],
]


@pytest.mark.parametrize("kwargs, message", WRONG)
def test_hyperparameters_out_of_range_end_in_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{message}$"):
        small(**kwargs)


def test_gymnasiums_vector_environments_are_refused_in_one_sentence() -> None:
    env: Any = gym.make_vec("Pendulum-v1", num_envs=2)
    with pytest.raises(TypeError, match=r"is one of Gymnasium's vector environments, .* sb3_gippo\.make_vec_env"):
        GIPPO("MlpPolicy", env)
    env.close()


def test_an_environments_id_is_enough() -> None:
    model = small("CartPoleSwingUp-v0", batch_size=8).learn(16)
    assert model.env is not None and model.env.num_envs == 1
    assert model.rollout_buffer.action_gradients.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: cartpole(2),
        lambda: cartpole(2, vec_env_cls=DummyVecEnv),
        lambda: cartpole(2, vec_env_cls=SubprocVecEnv),
        lambda: VecNormalize(cartpole(2)),
        lambda: VecNormalize(cartpole(2, vec_env_cls=DummyVecEnv)),
    ],
)
def test_it_asks_any_vectorisation_for_gradients_by_itself_and_only_while_it_learns(make: Callable[[], VecEnv]) -> None:
    env = make()
    try:
        model = small(env)
        for _ in range(2):
            assert env.get_attr("differentiable") == [False, False]
            model.learn(32, reset_num_timesteps=False)
            assert model.rollout_buffer.action_gradients.any()
            assert all("grad" not in info for info in env.step(np.zeros((2, 1)))[3])
    finally:
        env.close()


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_signal_is_logged(solver: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = small(alpha_solver=solver, alpha=0.1)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json"]))
    model.learn(6 * 32)
    model.logger.close()
    with (tmp_path / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("action_grad_norm", "action_grad_norm_max", "action_grad_variance", "nonfinite_grad_fraction", "alpha")
    keys += ("alpha_loss_ratio", "alpha_improvement", "alpha_improvement_z", "out_of_range_ratio")
    keys += ("std_ratio_min", "std_ratio_mean", "std_ratio_max", "alpha_spent", "alpha_learning_rate", "learning_rate")
    for key in keys:
        assert np.isfinite(float(rows[-1][f"train/{key}"])), key
    assert rows[-1]["train/alpha_decision"] != ""
    assert float(rows[1]["train/alpha"]) == 0.1, "the α of the step that was made, not of the next one"
    assert float(rows[2]["train/alpha"]) in (pytest.approx(0.11), 0.1, pytest.approx(0.1 / 1.1))
    assert float(rows[-1]["train/nonfinite_grad_fraction"]) == 0.0
    # SB3 dumps between rollout and update: what an update worked with stands in the next row, beside what it did.
    assert rows[0]["train/action_grad_norm"] == "" and rows[0]["train/alpha"] == ""
    printed = capsys.readouterr().out
    assert "alpha_decision" in printed and "action_grad_norm" in printed


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_reaches_its_end(capsys: pytest.CaptureFixture) -> None:
    small().learn(64, progress_bar=True)
    assert "64/64" in capsys.readouterr().out


def test_callbacks_see_every_step_and_evaluation_and_checkpoints_work(tmp_path: Path) -> None:
    class Count(CurveCallback):
        calls = 0

        def _on_step(self) -> bool:
            self.calls += 1
            assert {"actions", "infos", "new_obs", "rewards"} <= set(self.locals)
            return True

    count = Count()
    evaluation = EvalCallback(VecNormalize(cartpole(2), training=False), n_eval_episodes=2, eval_freq=10, verbose=0)
    model = small(VecNormalize(cartpole())).learn(64, callback=[count, evaluation, CheckpointCallback(8, str(tmp_path))])
    assert count.calls == 16 and np.isfinite(evaluation.last_mean_reward)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_32_steps.zip", "rl_model_64_steps.zip"]
    small().learn(32, callback=lambda locals_, globals_: True)
    assert model.num_timesteps == 64


def fitted(
    solver: str, advantages_sign: int = 1, **kwargs: Any
) -> tuple[GIPPO, dict[str, np.ndarray], list[th.Tensor], th.Tensor]:
    """
    One update whose PPO step stands still: the policy is the α-policy afterwards.

    :param advantages_sign: -1 makes the advantages contradict their gradients
    :return: the model, the rollout as it was collected, and mean and σ of the old policy and its values
    """
    kwargs = {"policy": Float64Policy, "n_steps": 16, "learning_rate": 0.0, "alpha": 0.5, "alpha_solver": solver, **kwargs}
    kwargs["critic_epochs"] = 0
    model = small(**kwargs)
    collected(model)
    model.rollout_buffer.advantages *= advantages_sign
    names = ("observations", "actions", "noise", "action_gradients", "advantages", "log_probs")
    rollout = {name: getattr(model.rollout_buffer, name).copy() for name in names}
    observations = th.as_tensor(rollout["observations"].reshape(64, -1))
    with th.no_grad():
        old = [x.clone() for x in gaussian(model.policy, observations)]
        values = model.policy.predict_values(observations).clone()
    model.train()
    return model, rollout, old, values


@pytest.mark.parametrize("solver", SOLVERS)
def test_diagnostics_and_virtual_policy_are_those_of_the_alpha_policy_row_by_row(solver: str) -> None:
    model, rollout, old, values = fitted(solver)
    observations = th.as_tensor(rollout["observations"].reshape(64, -1))
    with th.no_grad():
        new = gaussian(model.policy, observations)
        assert th.equal(model.policy.predict_values(observations), values), "the critic does not move"
    actions = th.as_tensor(rollout["actions"].reshape(64, -1)).double()
    logs = [th.distributions.Normal(*gaussian).log_prob(actions).sum(1) for gaussian in (old, new)]
    ratio = (logs[1] - logs[0]).exp()
    assert (ratio - 1).abs().max() > 1e-3
    advantages = th.as_tensor(rollout["advantages"]).double().flatten()
    gain = (advantages - advantages.mean()) * (ratio - 1)
    assert logged(model)["train/alpha_improvement"] == pytest.approx(gain.mean().item(), rel=1e-4)
    assert gain.mean() > 0, "the gradient leads uphill"
    assert logged(model)["train/out_of_range_ratio"] == pytest.approx(((ratio - 1).abs() > 0.2).double().mean().item())
    assert logged(model)["train/std_ratio_mean"] == pytest.approx((new[1] / old[1]).prod(1).mean().item(), rel=1e-5)
    # What PPO's ratio had in its denominator, in SB3's flattened order (environments first)
    expected = virtual_log_prob(*logs).reshape(16, 4).T.flatten()
    np.testing.assert_allclose(model.rollout_buffer.log_probs.flatten(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_alpha_step_moves_the_actions_along_the_gradient(solver: str) -> None:
    model, rollout, old, _ = fitted(solver)
    with th.no_grad():
        new = gaussian(model.policy, th.as_tensor(rollout["observations"].reshape(64, -1)))
    noise, gradients = (th.as_tensor(rollout[name].reshape(64, -1)) for name in ("noise", "action_gradients"))
    moved = new[0] - old[0] + (new[1] - old[1]) * noise
    assert (moved * gradients).mean() > 0
    assert logged(model)["train/alpha_loss_ratio"] < 1


class Features(BaseFeaturesExtractor):
    """A layer that actor and critic share."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, 6)
        self.layer = th.nn.Linear(5, 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations).tanh()


@pytest.mark.parametrize("solver", SOLVERS)
def test_features_shared_with_the_critic_are_left_to_the_ppo_step(solver: str) -> None:
    before = None

    class Kept(MlpPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            nonlocal before
            super().__init__(*args, **kwargs)
            before = copy.deepcopy(self.state_dict())

    model, *_ = fitted(solver, policy=Kept, policy_kwargs={"features_extractor_class": Features})
    assert before is not None
    moved = {name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert moved >= {"action_net.weight", "mlp_extractor.policy_net.0.weight"}
    assert not any("value" in name or "features_extractor" in name for name in moved)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_run(solver: str) -> None:
    first, second = (small(alpha_solver=solver, alpha=1e-3).learn(96) for _ in range(2))
    assert all(th.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters()))
    other = small(alpha_solver=solver, alpha=1e-3, seed=1).learn(96)
    assert any(not th.equal(a, b) for a, b in zip(first.policy.parameters(), other.policy.parameters()))


def test_it_learns_de_jong_to_better_than_a_thousandth_within_60_iterations() -> None:
    model, _ = make_model("gippo", "DeJong-v0", seed=1)
    curve = CurveCallback()
    model.learn(60 * 64, callback=curve)
    assert curve.returns[0] < -1.0
    assert curve.returns[-1] > -1e-3
    action, _ = model.predict(np.zeros(1, dtype=np.float32), deterministic=True)
    assert (5.12 * action.item()) ** 2 < 1e-4


@pytest.mark.parametrize(
    "n_steps, verbose, said",
    [
        (129, 1, "A window of 129 steps, 516 transitions an update, is long for gradients"),
        (15, 1, "60 transitions"),
        (129, 0, ""),
    ],
)
def test_an_unusual_window_is_told_once(n_steps: int, verbose: int, said: str, capsys: pytest.CaptureFixture) -> None:
    model = small(n_steps=n_steps, batch_size=4 * n_steps, verbose=verbose).learn(8 * n_steps)
    out = capsys.readouterr().out
    assert out.count(said) == 1 if said else "transitions an update" not in out
    small(n_steps=16, batch_size=64, verbose=verbose).learn(64)
    assert "transitions an update" not in capsys.readouterr().out
    assert model._has_gradients
