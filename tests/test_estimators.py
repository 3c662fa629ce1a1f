"""
The estimates of a policy's gradient behind LR, RP, LRRP and RPO have known answers: an unrolled model, differences of the
expected return in closed form, and each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch as th

from gippo_envs.core import BatchedEnv
from sb3_gippo import LR, LRRP, RP, RPO, TorchVecEnv, make_vec_env
from sb3_gippo.lrrp.lrrp import halves, lr_share
from sb3_gippo.on_policy.actor import gaussian, log_prob
from sb3_gippo.on_policy.policy_gradient import PolicyGradient, likelihood_ratio, reparameterised
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch
from sb3_gippo.rpo.rpo import surrogate
from tests.helpers import collected
from tests.reference import Float64Policy, LinearQuadratic

STEPS = 4


@dataclass
class Unbounded(LinearQuadratic):
    """Without a clip of the actions, and so with an expected return in closed form."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.action_space = self.box(-1e6, 1e6, 2)


def linear_quadratic_model(algorithm: type[PolicyGradient], n_envs: int, values: bool = True, **kwargs: Any) -> Any:
    """A model with a linear actor and a critic whose values may all be 0, and one window of whole episodes in its buffer."""
    env = TorchVecEnv(BatchedEnv(Unbounded, n_envs, max_episode_steps=STEPS))
    settings: dict[str, Any] = {"n_steps": STEPS, "critic_epochs": 0, "seed": 0, "device": "cpu", **kwargs}
    network = {"net_arch": {"pi": [], "vf": [8]}, "log_std_init": -0.5}
    model: Any = algorithm(Float64Policy, env, policy_kwargs=network, **settings)
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.linspace(-0.4, 0.3, 6).reshape(2, 3))
        model.policy.action_net.bias.copy_(th.tensor([0.3, -0.2]))
        if not values:
            model.policy.value_net.weight.zero_()
    return collected(model)


def actor(model: Any) -> list[th.nn.Parameter]:
    return [model.policy.action_net.weight, model.policy.action_net.bias, model.policy.log_std]


def flat(gradients: Any) -> th.Tensor:
    return th.cat([gradient.flatten() for gradient in gradients])


def unrolled(model: Any, batch: GradientBatch, start: int) -> th.Tensor:
    """
    The returns from a step of the window on, closed by the critic, by unrolling the model from the state that was reached:
    the action of that step has the actor's parameters, later ones have copies of them.

    :return: (n_envs,), with a graph
    """
    core = Unbounded()
    observations, noise = (part.unflatten(0, (-1, STEPS)) for part in (batch.observations, batch.noise))
    state = observations[:, start] / core.observe(th.ones(3, dtype=th.float64))
    gain, discount = th.zeros(len(state), dtype=th.float64), 1.0
    parameters = actor(model)
    for t in range(start, STEPS):
        weight, bias, log_std = parameters if t == start else [parameter.detach() for parameter in parameters]
        action = core.observe(state) @ weight.T + bias + log_std.exp() * noise[:, t]
        state, reward, _ = core.step(state, action)
        gain, discount = gain + discount * reward, discount * model.gamma
    return gain + discount * model.policy.predict_values(core.observe(state)).flatten()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_rps_gradient_is_that_of_the_unrolled_model(gamma: float) -> None:
    model = linear_quadratic_model(RP, 5, gamma=gamma, max_grad_norm=1e9)
    batch = model.rollout_buffer.gradient_batch()
    expected = -flat(th.autograd.grad(sum(unrolled(model, batch, t).mean() / STEPS for t in range(STEPS)), actor(model)))
    model.train()
    found = flat([parameter.grad for parameter in actor(model)])
    assert expected.abs().min() > 1e-3
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


def test_without_discount_it_is_that_of_the_whole_return() -> None:
    model = linear_quadratic_model(RP, 5, gamma=1.0, max_grad_norm=1e9)
    batch = model.rollout_buffer.gradient_batch()
    core, noise = Unbounded(), batch.noise.unflatten(0, (-1, STEPS))
    first = batch.observations.unflatten(0, (-1, STEPS))[:, 0] / core.observe(th.ones(3, dtype=th.float64))

    def whole(parameters: th.Tensor) -> th.Tensor:
        weight, bias, log_std = parameters[:6].reshape(2, 3), parameters[6:8], parameters[8:]
        state, gain = first, th.zeros(5, dtype=th.float64)
        for t in range(STEPS):
            state, reward, _ = core.step(state, core.observe(state) @ weight.T + bias + log_std.exp() * noise[:, t])
            gain = gain + reward
        return (gain + model.policy.predict_values(core.observe(state)).flatten()).mean()

    at = flat(actor(model)).detach().requires_grad_()
    (expected,) = th.autograd.grad(whole(at), at)
    differences = central_differences(whole, at.detach())
    model.train()
    found = -STEPS * flat([parameter.grad for parameter in actor(model)])
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()
    assert (found - differences).abs().max() < 1e-7 * expected.abs().max()


def central_differences(function: Any, at: th.Tensor, step: float = 1e-5) -> th.Tensor:
    with th.no_grad():
        along = step * th.eye(len(at), dtype=at.dtype)
        return th.stack([(function(at + d) - function(at - d)) / (2 * step) for d in along])


def expected_return(parameters: th.Tensor) -> th.Tensor:
    """The mean return of STEPS steps from x ~ N(0, 1) in closed form: mean and covariance of the state, step by step."""
    core = Unbounded()
    weight, bias, std = parameters[:6].reshape(2, 3), parameters[6:8], parameters[8:].exp()
    gain = weight * core.observe(th.ones(3, dtype=th.float64))
    mean, covariance = th.zeros(3, dtype=th.float64), th.eye(3, dtype=th.float64)
    total = th.zeros((), dtype=th.float64)
    for _ in range(STEPS):
        action = gain @ mean + bias
        spread, joint = gain @ covariance @ gain.T + th.diag(std**2), covariance @ gain.T
        total = total - 0.1 * (action @ action + spread.trace()) + 0.3 * (mean[0] * action[0] + joint[0, 0])
        loop = core.a + core.b @ gain
        mean = core.a @ mean + core.b @ action
        covariance = loop @ covariance @ loop.T + core.b @ th.diag(std**2) @ core.b.T
        total = total - mean @ mean - covariance.trace()
    return total


GROUPS = 100


def estimates_of(model: Any) -> dict[str, th.Tensor]:
    """:return: GROUPS independent estimates of the gradient of the mean return from one window, (GROUPS, 10) each"""
    batch, parameters = model.rollout_buffer.gradient_batch(), actor(model)
    found: dict[str, list[th.Tensor]] = {"lr": [], "rp": []}
    for rows in th.arange(len(batch.advantages)).chunk(GROUPS):
        group = GradientBatch(*(value[rows] for value in vars(batch).values()))
        policy = gaussian(model.policy, group.observations)
        objectives = {"lr": likelihood_ratio(group, group.advantages, policy), "rp": reparameterised(group, policy)}
        for name, objective in objectives.items():
            # STEPS times the mean over rows: the sum over an episode.
            found[name].append(flat(th.autograd.grad(STEPS * objective.mean(), parameters, retain_graph=True)))
    return {name: th.stack(gradients) for name, gradients in found.items()}


@pytest.fixture(scope="module")
def estimates() -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """The gradient of the expected return by differences, and estimates of it."""
    model = linear_quadratic_model(RP, 100 * GROUPS, values=False, gamma=1.0, gae_lambda=1.0)
    return central_differences(expected_return, flat(actor(model)).detach()), estimates_of(model)


def within(estimates: th.Tensor, truth: th.Tensor, largest: float) -> None:
    """
    The mean of independent estimates (n, entries) is within 4 standard errors of the truth in every entry (by chance it is not
    in less than 1 of 1000 tests of 10 entries), and these are at most a share of its norm.
    """
    error = estimates.std(0) / len(estimates) ** 0.5
    assert error.norm() < largest * truth.norm(), error / truth.norm()
    assert ((estimates.mean(0) - truth).abs() < 4 * error).all(), (estimates.mean(0) - truth) / error


@pytest.mark.parametrize("name, largest", [("rp", 0.02), ("lr", 0.1)])
def test_estimates_have_the_gradient_of_the_expected_return_for_their_mean(
    estimates: tuple[th.Tensor, dict[str, th.Tensor]], name: str, largest: float
) -> None:
    truth, found = estimates
    within(found[name], truth, largest)


def test_lr_agrees_with_rp_in_expectation(estimates: tuple[th.Tensor, dict[str, th.Tensor]]) -> None:
    truth, found = estimates
    agree(found, truth.norm().item())
    assert found["rp"].var(0).sum() < 0.2 * found["lr"].var(0).sum(), "where all is smooth RP is the quieter one"


def test_they_agree_on_advantages_that_the_critic_closes() -> None:
    """What LRRP mixes is of one objective with γ and λ below 1 and values that are wrong, too."""
    model = linear_quadratic_model(LRRP, 100 * GROUPS, gamma=0.9, gae_lambda=0.7)
    found = estimates_of(model)
    agree(found, found["rp"].mean(0).norm().item())


def agree(found: dict[str, th.Tensor], unit: float) -> None:
    """Both have one mean within 4 standard errors of their difference in every entry, and these are at most a tenth of it."""
    difference = found["lr"] - found["rp"]
    error = difference.std(0) / GROUPS**0.5
    assert error.norm() < 0.1 * unit, error / unit
    assert (difference.mean(0).abs() < 4 * error).all(), difference.mean(0) / error


@pytest.mark.parametrize("normalize", [False, True])
def test_lrs_step_is_along_the_advantages_times_the_score(normalize: bool) -> None:
    model = linear_quadratic_model(LR, 5, max_grad_norm=1e9, normalize_advantage=normalize)
    batch = model.rollout_buffer.gradient_batch()
    mean, std = (part.detach() for part in gaussian(model.policy, batch.observations))
    noise = (batch.actions - mean) / std
    advantages = batch.advantages[:, None]
    if normalize:  # as PPO does, in the advantages' float32
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    weight = (advantages * noise / std).T @ batch.observations / len(mean)
    expected = flat([weight, (advantages * noise / std).mean(0), (advantages * (noise**2 - 1)).mean(0)])
    model.train()
    found = -flat([parameter.grad for parameter in actor(model)])
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


def test_the_share_is_that_of_least_variance() -> None:
    inf, nan = float("inf"), float("nan")
    variances = [(1, 3), (2, 0), (0, 2), (0, 0), (1, inf), (inf, 1), (inf, inf), (nan, 1), (1e30, 1e-30)]
    shares = lr_share(th.tensor(variances, dtype=th.float32))
    assert shares.tolist() == [0.75, 0, 1, 0.5, 1, 0, 0.5, 0, 0]
    grid = th.linspace(0, 1, 1001)
    best = grid[(grid**2 * 1 + (1 - grid) ** 2 * 3).argmin()]
    assert best == pytest.approx(0.75, abs=1e-3)


def test_halves_are_all_rows_and_of_different_environments() -> None:
    for per_step, shape in ((False, (1, 12)), (True, (4, 3))):
        parts = halves(6, 4, per_step)
        assert [part.shape for part in parts] == [shape] * 2
        assert sorted(th.cat([part.flatten() for part in parts]).tolist()) == list(range(24))
        environments = [set((part // 4).flatten().tolist()) for part in parts]
        assert not environments[0] & environments[1]
    assert (halves(6, 4, True)[0] % 4 == th.arange(4)[:, None]).all(), "a group is one time step"


def bandit(n: int, noise_of_advantages: float, noise_of_gradients: float, generator: th.Generator) -> GradientBatch:
    """
    One-step episodes with the reward -(a - 1)² of a = μ + σ ε, μ = 0.2, σ = ½; advantages and gradients have noise beside it,
    of mean 0 and so skewed that what is far off and what has a large variance are the same.
    """
    noise = th.randn(n, 1, generator=generator, dtype=th.float64)
    skewed = lambda: th.empty_like(noise).exponential_(generator=generator) - 1  # noqa: E731
    actions = 0.2 + 0.5 * noise
    advantages = -((actions - 1) ** 2) + noise_of_advantages * skewed()
    gradients = -2 * (actions - 1) + noise_of_gradients * skewed()
    return GradientBatch(th.zeros_like(noise), actions, noise, gradients, advantages[:, 0], advantages[:, 0])


TRUE = th.tensor([1.6, -0.5], dtype=th.float64)
"""the gradient of the expected reward -((μ - 1)² + σ²) by μ and log σ"""


def bandit_model(n_envs: int, **kwargs: Any) -> Any:
    network = {"net_arch": {"pi": [], "vf": []}, "log_std_init": float(np.log(0.5))}
    env = make_vec_env("DeJong-v0", n_envs, seed=0)
    model: Any = LRRP(Float64Policy, env, n_steps=1, policy_kwargs=network, seed=0, device="cpu", **kwargs)
    model._setup_learner()
    with th.no_grad():
        model.policy.action_net.bias.fill_(0.2)
        model.policy.log_std.fill_(np.log(0.5))
    return model


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("noise, low, high", [((10.0, 0.0), 0.0, 0.02), ((0.0, 1000.0), 0.98, 1.0), ((0.0, 0.0), 0.0, 0.5)])
def test_inverse_variance_picks_the_quieter_estimate(
    per_step: bool, noise: tuple[float, float], low: float, high: float
) -> None:
    model = bandit_model(64, per_step=per_step)
    batch = bandit(64, *noise, th.Generator().manual_seed(0))
    _, shares = model._weigh(batch, halves(64, 1, per_step))
    assert low < shares.min() and shares.max() < high


def test_each_step_has_a_share_of_its_own() -> None:
    model, generator = bandit_model(64, per_step=True), th.Generator().manual_seed(0)
    quiet, loud = bandit(64, 10.0, 0.0, generator), bandit(64, 0.0, 1000.0, generator)
    both = [th.stack([getattr(part, name) for part in (quiet, loud)], 1).flatten(0, 1) for name in vars(quiet)]
    batch = GradientBatch(*both)
    _, shares = model._weigh(batch, halves(64, 2, True))
    assert (shares[::2] < 0.02).all() and (shares[1::2] > 0.98).all()
    _, shares = model._weigh(batch, halves(64, 2, False))
    assert shares.unique().numel() == 2, "one for each half"


@pytest.mark.parametrize("per_step", [False, True])
def test_a_half_is_weighed_by_the_other_half_alone(per_step: bool) -> None:
    model, batch = bandit_model(16, per_step=per_step), bandit(16, 1.0, 2.0, th.Generator().manual_seed(0))
    parts = halves(16, 1, per_step)
    first, second = (part.flatten() for part in parts)
    rows = {name: value.clone() for name, value in vars(batch).items()}
    for value in rows.values():
        value[first] = 3 * value[first] + 1
    found = []
    for one in (batch, GradientBatch(**rows)):
        th.manual_seed(0)
        advantages, shares = model._weigh(one, parts)
        found.append((shares, one.advantages - advantages))
    for one, other in zip(*found):
        assert th.allclose(one[first], other[first], rtol=1e-12, atol=0)
        assert not th.isclose(one[second], other[second], rtol=1e-3).any()


def test_the_mix_is_unbiased_though_its_weights_are_estimated() -> None:
    """120 windows of 16 samples, whose own variances would have favoured those that are not far off."""
    model, generator = bandit_model(16), th.Generator().manual_seed(0)
    parameters = [model.policy.action_net.bias, model.policy.log_std]
    found = []
    for _ in range(120):
        batch = bandit(16, 0.0, 2.0, generator)
        advantages, shares = model._weigh(batch, halves(16, 1, False))
        policy = gaussian(model.policy, batch.observations)
        mixed = shares * likelihood_ratio(batch, advantages, policy) + (1 - shares) * reparameterised(batch, policy)
        found.append(flat(th.autograd.grad(mixed.mean(), parameters)))
    within(th.stack(found), TRUE, 0.05)
    assert 0.1 < shares.mean() < 0.9


SHARES = [(1.0, LR, {"normalize_advantage": False}), (0.0, RP, {"action_gradient_lambda": None})]


@pytest.mark.parametrize("share, algorithm, kwargs", SHARES)
def test_the_share_is_lrs(share: float, algorithm: type[PolicyGradient], kwargs: dict[str, Any]) -> None:
    pure, mixed = linear_quadratic_model(algorithm, 6, **kwargs), linear_quadratic_model(LRRP, 6)
    mixed._weigh = lambda batch, parts: (batch.advantages, th.full_like(batch.advantages, share))
    for model in (pure, mixed):
        model.train()
    one, other = (flat([parameter.grad for parameter in actor(model)]) for model in (pure, mixed))
    assert (one - other).abs().max() < 1e-10 < 1e-4 < one.abs().min()


def test_a_window_without_usable_gradients_has_lrs_step() -> None:
    model = bandit_model(16)
    batch = replace(bandit(16, 0.0, 0.0, th.Generator().manual_seed(0)), action_gradients=th.zeros(16, 1))
    advantages, shares = model._weigh(batch, halves(16, 1, False))
    assert (shares == 1).all()
    assert advantages[:8].sum().item() == pytest.approx((batch.advantages[:8] - batch.advantages[8:].mean()).sum().item())


def test_per_sample_gradients_are_those_of_a_loop() -> None:
    """The variances by torch.func are those of autograd, sample by sample."""
    from sb3_gippo.lrrp.lrrp import variances

    model = linear_quadratic_model(LRRP, 6)
    batch, parameters = model.rollout_buffer.gradient_batch(), actor(model)
    rows = th.tensor([[0, 5, 9, 23], [2, 7, 1, 11]])
    found = variances(model.policy, parameters, batch, batch.advantages, rows)
    for group, chosen in zip(found, rows):
        policy = gaussian(model.policy, batch.observations)
        for variance, objective in zip(
            group, (likelihood_ratio(batch, batch.advantages, policy), reparameterised(batch, policy))
        ):
            each = th.stack([flat(th.autograd.grad(objective[i], parameters, retain_graph=True)) for i in chosen])
            assert variance.item() == pytest.approx(each.var(0).sum().item(), rel=1e-9)


def test_rpos_first_epoch_is_rps_step() -> None:
    models = [linear_quadratic_model(algorithm, 6, **kwargs) for algorithm, kwargs in ((RP, {}), (RPO, {"n_epochs": 1}))]
    for model in models:
        model.train()
    one, other = (flat(actor(model)).detach() for model in models)
    before = flat(actor(linear_quadratic_model(RP, 6))).detach()
    assert (one - other).abs().max() < 1e-10 < 1e-4 < (one - before).abs().min()


def test_rpos_surrogate_has_the_weighted_gradient_at_the_sampled_actions() -> None:
    generator = th.Generator().manual_seed(0)
    batch = bandit(400, 0.0, 0.0, generator)
    sampled: Gaussian = (th.full((400, 1), 0.2, dtype=th.float64), th.full((400, 1), 0.5, dtype=th.float64))
    old = log_prob(batch.actions, *sampled)
    mean = th.full((400, 1), 0.6, dtype=th.float64, requires_grad=True)
    std = th.full((400, 1), 0.4, dtype=th.float64, requires_grad=True)
    found, left_out = surrogate(batch, old, (mean, std), 0.8, 1.0)
    by_mean, by_std = th.autograd.grad(found.sum(), (mean, std))
    ratio = (log_prob(batch.actions, mean, std) - old).exp().detach()[:, None]
    inside = (ratio >= 0.2) & (ratio <= 2)
    assert 0.1 < inside.double().mean() < 0.9 and (ratio < 0.2).any() and (ratio > 2).any()
    assert left_out == pytest.approx(1 - inside.double().mean().item())
    expected = (ratio * batch.action_gradients).where(inside, 0.0)
    assert th.allclose(by_mean, expected, rtol=1e-12)
    assert th.allclose(by_std, expected * (batch.actions - 0.6) / 0.4, rtol=1e-12)


def test_rpos_later_step_has_the_gradient_of_all_its_terms() -> None:
    """Of the second step, after a first one so long that some rows fall out of the ratio's bounds on either side."""
    settings = {"learning_rate": 0.3, "kl_coef": 0.7, "ent_coef": 0.4, "max_grad_norm": 1e9}
    one, two = (linear_quadratic_model(RPO, 50, n_epochs=epochs, **settings) for epochs in (1, 2))
    batch = two.rollout_buffer.gradient_batch()
    old_mean, old_std = (part.detach() for part in gaussian(one.policy, batch.observations))
    one.train()
    two.train()
    mean, std = gaussian(one.policy, batch.observations)
    log_ratio = (
        ((batch.actions - old_mean) / old_std) ** 2 / 2 - ((batch.actions - mean) / std) ** 2 / 2 + (old_std / std).log()
    )
    ratio = log_ratio.sum(1).exp().detach()
    inside = (ratio >= 0.2) & (ratio <= 2.0)
    assert (ratio < 0.2).any() and (ratio > 2.0).any() and inside.any()
    noise = ((batch.actions - mean) / std).detach()
    gain = (ratio * inside)[:, None] * batch.action_gradients * (mean + std * noise)
    kl = (std / old_std).log() + (old_std**2 + (mean - old_mean) ** 2) / (2 * std**2) - 0.5
    objective = (gain - 0.7 * kl + 0.4 * std.log()).sum(1).mean()
    expected = -flat(th.autograd.grad(objective, actor(one)))
    found = flat([parameter.grad for parameter in actor(two)])
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_rpos_weights_make_the_later_gradient_right() -> None:
    """Importance weights without bounds have, under the old policy's samples, the present policy's gradient for their mean."""
    batch = bandit(40000, 0.0, 0.0, th.Generator().manual_seed(0))
    log_std = th.full((40000, 1), float(np.log(0.4)), dtype=th.float64, requires_grad=True)
    mean = th.full((40000, 1), 0.3, dtype=th.float64, requires_grad=True)
    old = log_prob(batch.actions, th.tensor(0.2, dtype=th.float64), th.tensor(0.5, dtype=th.float64))
    found = th.autograd.grad(surrogate(batch, old, (mean, log_std.exp()), 1.0, 1e9)[0].sum(), (mean, log_std))
    truth = th.tensor([-2 * (0.3 - 1), -2 * 0.4**2], dtype=th.float64)
    within(th.cat(found, 1), truth, 0.02)


def test_rpos_divergence_holds_it_near_the_policy_that_sampled() -> None:
    moved = []
    for kl_coef in (0.0, 1000.0):
        model = linear_quadratic_model(RPO, 6, n_epochs=20, learning_rate=1e-2, kl_coef=kl_coef)
        before = flat(actor(model)).detach()
        model.train()
        moved.append((flat(actor(model)) - before).norm().item())
    assert moved[1] < 0.5 * moved[0]


def test_rpos_entropy_widens_the_policy() -> None:
    wide = []
    for ent_coef in (0.0, 1000.0):
        model = linear_quadratic_model(RPO, 6, n_epochs=1, ent_coef=ent_coef)
        before = model.policy.log_std.detach().clone()
        model.train()
        wide.append((model.policy.log_std > before).all().item())
    assert wide == [False, True]
