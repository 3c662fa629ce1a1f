"""PPO's step inside GIPPO: the policy's own optimizer, what is left of the budgets, where distances are measured from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.common.optimizers import guarded_steps
from sb3_gippo.common.policies import MlpPolicy
from sb3_gippo.on_policy.actor import gaussian
from tests.helpers import SETTINGS, SOLVERS, cartpole, collected, is_finite, logged, small


class Own(MlpPolicy):
    """Brings an optimizer of its own: another class, groups and rates, and only some of the parameters."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        heads = [*self.action_net.parameters(), *self.value_net.parameters()]
        groups = [{"params": heads, "momentum": 0.5}, {"params": [self.log_std], "weight_decay": 0.1}]
        self.optimizer = th.optim.SGD(groups, lr=lr_schedule(1))


@pytest.mark.parametrize("kwargs", [{"alpha": 0}, {}, {"alpha_solver": "published"}])
def test_a_policys_own_optimizer_is_kept(kwargs: dict[str, Any]) -> None:
    model = small(policy=Own, critic_epochs=0, **kwargs)
    optimizer = model.policy.optimizer
    hidden = model.policy.mlp_extractor.value_net[0].weight.detach().clone()
    model.learn(3 * 32)
    assert model.policy.optimizer is optimizer and type(optimizer) is th.optim.SGD
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0]
    assert th.equal(model.policy.mlp_extractor.value_net[0].weight, hidden)
    if kwargs == {"alpha": 0}:
        theirs = PPO(Own, cartpole(), **SETTINGS).learn(3 * 32)
        assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), theirs.policy.parameters()))


class Single(th.optim.Adam):
    """Refuses several groups."""

    def __init__(self, params: Any, **kwargs: Any):
        params = list(params)
        assert not isinstance(params[0], dict), "one group only"
        super().__init__(params, **kwargs)

    def add_param_group(self, param_group: Any) -> None:
        assert not self.param_groups, "one group only"
        super().add_param_group(param_group)


@pytest.mark.parametrize("solver", SOLVERS)
def test_optimizers_of_one_group_work(solver: str) -> None:
    model = small(alpha_solver=solver, policy_kwargs={"optimizer_class": Single}).learn(3 * 32)
    assert model._has_gradients and is_finite(model)


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.SGD, th.optim.RMSprop])
def test_a_shortened_step_is_one_of_a_smaller_rate(optimizer_class: Any) -> None:
    start = th.randn(6, generator=th.Generator().manual_seed(0), dtype=th.float64)
    found = []
    for rate, scale in ((0.1, 0.3), (0.03, 1.0)):
        parameters = [th.nn.Parameter(start.clone()), th.nn.Parameter(start.clone())]
        optimizer = optimizer_class([{"params": [p], "lr": r} for p, r in zip(parameters, (rate, 0.1))])
        with guarded_steps(optimizer, [([parameters[0]], scale)]):
            for _ in range(3):
                optimizer.zero_grad()
                sum((p.square() * start.exp()).sum() for p in parameters).backward()  # type: ignore[union-attr]
                optimizer.step()
        found.append([p.detach() for p in parameters])
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    th.testing.assert_close(found[0], found[1])


def test_steps_that_are_not_finite_are_left_out() -> None:
    parameter = th.nn.Parameter(th.ones(3))
    optimizer = th.optim.SGD([parameter], lr=0.1)
    with guarded_steps(optimizer, [([parameter], 0.5)]):
        for bad in (np.nan, np.inf):
            parameter.grad = th.tensor([1.0, bad, 0.0])
            optimizer.step()
            assert th.equal(parameter, th.ones(3))
        parameter.grad = th.ones(3)
        optimizer.step()
    assert th.allclose(parameter, th.full((3,), 0.95))


@pytest.mark.parametrize("solver", SOLVERS)
def test_distances_are_measured_from_where_the_step_starts(solver: str) -> None:
    """The α-policy is far from π_h: measured from there, PPO would stop before its first step."""
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=1)
    kwargs: dict[str, Any] = {"learning_rate": 0.03} if solver == "published" else {"kl": 2.0, "learning_rate": 0.03}
    stand_still = {"learning_rate": 1e-9, "target_kl": 1e-4, "alpha_solver": solver, "alpha": 1.0, "alpha_kwargs": kwargs}
    model = small(env, n_epochs=3, **stand_still).learn(5 * 32)
    assert logged(model)["train/out_of_range_ratio"] > 0
    # The published solver makes a step again whose loss rose, and be it by a rounding error.
    assert model._n_updates == 5 * 3 or (solver == "published" and model._n_updates % 3 == 0), "no target is reached"
    assert abs(logged(model)["train/approx_kl"]) < 1e-6 and logged(model)["train/clip_fraction"] == 0
    assert model.target_kl == 1e-4 and "evaluate_actions" not in vars(model.policy)


@pytest.mark.parametrize("solver", SOLVERS)
def test_target_kl_ends_the_step_that_goes_too_far(solver: str) -> None:
    model = small(learning_rate=0.05, n_epochs=10, target_kl=1e-3, alpha_solver=solver).learn(4 * 32)
    assert model._n_updates < 4 * 10
    assert logged(model)["train/approx_kl"] > 1.5e-3
    free = small(learning_rate=0.05, n_epochs=10, alpha_solver=solver).learn(4 * 32)
    assert free._n_updates == 4 * 10 or (solver == "published" and free._n_updates % 10 == 0)


def test_what_is_logged_is_the_distance_made_in_the_last_epoch() -> None:
    """Against the log-probabilities of the policy before and after, one minibatch an epoch."""
    model = collected(small(n_epochs=1, batch_size=32, learning_rate=0.01, alpha_kwargs={"kl": 1.0}))
    model.train()
    assert logged(model)["train/approx_kl"] == pytest.approx(0.0, abs=1e-6), "the first step has gone nowhere yet"
    model = collected(small(n_epochs=2, batch_size=32, learning_rate=1e-3, alpha_kwargs={"kl": 1.0}))
    model.train()
    assert logged(model)["train/approx_kl"] > 1e-7


def budgets_seen(model: GIPPO) -> list[tuple[float, float]]:
    """:return: what the PPO step was allowed, in each of the next iterations"""
    seen: list[tuple[float, float]] = []
    step = model.alpha_step
    assert step is not None
    found = step.ppo_budgets  # type: ignore[attr-defined]

    def watched(*args: Any) -> Any:
        seen.append(found(*args))
        return seen[-1]

    step.ppo_budgets = watched  # type: ignore[attr-defined]
    return seen


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_ppo_step_gets_what_this_iterations_alpha_step_left(alpha: float) -> None:
    model = small(alpha_kwargs={"kl": 0.2, "factor": 2.0})
    model._setup_learner()
    assert model.alpha_step is not None
    model.alpha_step.controller.alpha = alpha
    seen = budgets_seen(model)
    model.learn(32)
    signals = logged(model)
    assert model.alpha_step.alpha != alpha or alpha == 0, "the next one is another"
    assert signals["train/alpha_spent"] == pytest.approx(alpha**2 * signals["train/gradient_trust_mean"])
    assert seen[0][0] == pytest.approx(0.2 * max(0.05, 1 - signals["train/alpha_spent"]))


def test_a_batch_whose_gradients_are_noise_makes_no_alpha_step_and_leaves_the_whole_budget_to_ppo() -> None:
    model = collected(small(alpha=1.0, alpha_kwargs={"kl": 0.2}))
    gradients = model.rollout_buffer.action_gradients
    gradients[:] = np.random.default_rng(3).normal(size=gradients.shape)  # features explain less of these than chance does
    seen = budgets_seen(model)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.train()
    assert logged(model)["train/gradient_trust_mean"] == 0 and seen[0][0] == 0.2
    assert any(not th.equal(a, b) for a, b in zip(before, model.policy.parameters()))


def test_budgets_and_rates_are_constant_unless_a_schedule_says_otherwise() -> None:
    def last(alpha_kwargs: dict[str, Any]) -> tuple[tuple[float, float], dict[str, Any]]:
        model = small(alpha_kwargs=alpha_kwargs)
        model._setup_learner()
        seen = budgets_seen(model)
        model.learn(4 * 32)
        return seen[-1], dict(logged(model))

    fixed = {"kl": 0.2, "std_kl": 0.02, "learning_rate": 1e-4}
    budget, signals = last(fixed)
    share = 1 - signals["train/alpha_spent"]
    assert budget[0] == pytest.approx(share * 0.2)
    assert signals["train/alpha_learning_rate"] == pytest.approx(1e-4 * 1.2**3), "it rises while it is below its budget"
    fading: dict[str, Any] = {name: lambda progress, value=value: value * progress for name, value in fixed.items()}
    budget, signals = last({**fading, "kl": lambda progress: 0.2 * progress + 1e-9})
    assert budget[0] < 1e-8 and signals["train/alpha_learning_rate"] == 0


def test_the_rates_that_are_used_are_logged() -> None:
    model = small(learning_rate=0.05, critic_epochs=1, critic_kwargs={"learning_rate": 2e-3}, alpha_kwargs={"kl": 1e-3})
    model.learn(6 * 32)
    signals = logged(model)
    step: Any = model.alpha_step
    assert signals["train/learning_rate"] == 0.05 and signals["train/critic_learning_rate"] == 2e-3
    assert 0 < signals["train/learning_rate_mean"] < 0.05, "lowered, to keep within the budget"
    assert signals["train/alpha_learning_rate"] > 0 and step.ppo_mean_rate.scale < 1


def test_learning_in_many_calls_ends_where_one_call_ends() -> None:
    ends = []
    for calls in (1, 8):
        env = make_vec_env("DeJong-v0", 16, seed=1)
        model = GIPPO("MlpPolicy", env, n_steps=1, batch_size=16, n_epochs=2, critic_epochs=2, seed=3, device="cpu")
        for call in range(calls):
            model.learn(16 * 40 // calls, reset_num_timesteps=call == 0)
        ends.append([p.detach().clone() for p in model.policy.parameters()])
    assert all(th.equal(a, b) for a, b in zip(*ends))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_that_is_not_finite_is_undone_and_ppo_goes_on(solver: str) -> None:
    kwargs = {"learning_rate": 1e30} if solver == "published" else {"learning_rate": 1e30, "kl": 1e38}
    model = collected(small(alpha=1.0, alpha_solver=solver, alpha_kwargs=kwargs))
    observations = th.as_tensor(model.rollout_buffer.observations.reshape(32, -1))
    with th.no_grad():
        old = [part.clone() for part in gaussian(model.policy, observations)]
    model.lr_schedule = lambda _: 0.0
    model.train()
    assert logged(model)["train/alpha_decision"] == "fit_failed" and logged(model)["train/alpha_spent"] == 0
    assert is_finite(model)
    with th.no_grad():
        assert all(th.equal(a, b) for a, b in zip(old, gaussian(model.policy, observations)))
    model.lr_schedule = lambda _: 1e-3
    model.learn(32)
    assert is_finite(model)
    with th.no_grad():
        assert not all(th.equal(a, b) for a, b in zip(old, gaussian(model.policy, observations)))


@pytest.mark.parametrize(
    "kwargs, name",
    [
        ({"alpha_kwargs": {"kl": lambda progress: np.nan}}, "alpha_kwargs: kl"),
        ({"alpha_kwargs": {"std_kl": lambda progress: "wide"}}, "alpha_kwargs: std_kl"),
        (
            {"alpha_solver": "published", "alpha_kwargs": {"learning_rate": lambda progress: np.inf}},
            "alpha_kwargs: learning_rate",
        ),
        ({"critic_epochs": 1, "critic_kwargs": {"learning_rate": lambda progress: np.nan}}, "critic_kwargs: learning_rate"),
    ],
)
def test_a_schedule_that_gives_no_number_is_named(kwargs: dict[str, Any], name: str) -> None:
    model = small(**kwargs)
    with pytest.raises(AssertionError, match=rf"^`{name}` must give finite numbers, not .* at the remaining progress"):
        model.learn(32)
    assert is_finite(model)
