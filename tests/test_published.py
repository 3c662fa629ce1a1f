"""GI-PPO as published: iterations against the paper's equations, written once more here, and PPO's steps that are retried."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.cli.experiment import CurveCallback, make_model
from sb3_gippo.gippo.published import PublishedStep
from tests.helpers import collected, is_finite, logged
from tests.reference import Float64Policy

Tensors = dict[str, th.Tensor]
ACTOR = ("mlp_extractor.policy_net.", "action_net.", "log_std")
CLIP, MAX_NORM, INTERVAL, FACTOR, MAX_OUT_OF_RANGE, MAX_ALPHA = 0.2, 1.0, 0.4, 1.1, 0.5, 10.0


@dataclass
class Reference:
    """
    An iteration by the paper's equations (arXiv 2312.08710) and, where they leave something open, its public code's order of
    things. Shares nothing with the library: own network, own densities, own Adam.
    """

    alpha: float
    learning_rate: float
    n_iterations: int
    step: int = 0
    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)
    gains: tuple[float, float, float] = (0.0, 1.0, 1e-4)
    """mean, variance and number of the estimated improvements"""
    attempts: int = 0

    def network(self, p: Tensors, o: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: μ and σ"""
        x = o
        for layer, norm in ((0, 2), (3, 5)):
            name = "mlp_extractor.policy_net."
            x = x @ p[f"{name}{layer}.weight"].T + p[f"{name}{layer}.bias"]
            x = th.where(x > 0, x, x.exp() - 1)  # ELU
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x * p[f"{name}{norm}.weight"] + p[f"{name}{norm}.bias"]
        return x @ p["action_net.weight"].T + p["action_net.bias"], (p["log_std"] + x @ p["log_std_net.weight"].T).exp()

    @staticmethod
    def density(a: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
        """:return: log π(a)"""
        return (-0.5 * ((a - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(1)

    @staticmethod
    def clipped(gradients: Tensors) -> Tensors:
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        return {name: gradient * min(1.0, MAX_NORM / (norm + 1e-6)) for name, gradient in gradients.items()}

    def gradient(self, loss: th.Tensor, p: Tensors) -> Tensors:
        return self.clipped(dict(zip(p, th.autograd.grad(loss, list(p.values())))))

    def adam(self, p: Tensors, gradients: Tensors, learning_rate: float) -> Tensors:
        """Betas of 0.7 and 0.95, as in the paper's experiments."""
        self.step += 1
        moved = {}
        for name, g in gradients.items():
            self.first[name] = 0.7 * self.first.get(name, th.zeros_like(g)) + 0.3 * g
            self.second[name] = 0.95 * self.second.get(name, th.zeros_like(g)) + 0.05 * g**2
            direction = (self.first[name] / (1 - 0.7**self.step)) / ((self.second[name] / (1 - 0.95**self.step)).sqrt() + 1e-8)
            moved[name] = (p[name] - learning_rate * direction).detach().requires_grad_()
        return moved

    def fit(self, p: Tensors, o: th.Tensor, eps: th.Tensor, target: th.Tensor) -> tuple[Tensors, float | None]:
        """The policy nearest to the α-policy's samples, by attempts at lower and lower rates."""
        learning_rate = self.learning_rate
        for self.attempts in range(1, 9):
            q, losses = p, []
            for _ in range(self.n_iterations):
                mean, std = self.network(q, o)
                loss = ((mean + std * eps - target) ** 2).sum(1).mean()
                losses.append(loss.item())
                q = self.adam(q, self.gradient(loss, q), learning_rate)
            if losses[-1] < losses[0]:
                return q, losses[-1] / losses[0]
            learning_rate /= 1.5
        self.learning_rate = max(self.learning_rate / 1.5, 1e-5)
        return p, None

    def iterate(self, p: Tensors, o: th.Tensor, a: th.Tensor, g: th.Tensor, advantages: th.Tensor) -> dict[str, Any]:
        p = {name: value.clone().requires_grad_() for name, value in p.items()}
        with th.no_grad():
            old = self.network(p, o)
        q, loss_ratio = self.fit(p, o, (a - old[0]) / old[1], a + self.alpha * g)
        mean, std = self.network(q, o)
        before, after = self.density(a, *old), self.density(a, mean, std)
        rho = (after - before).exp().detach()
        # det(I + α ∇²A): how the map from noise to action is stretched
        determinant = (std / old[1]).prod(1).detach()
        gain = float((advantages * rho).sum() - advantages.sum())
        out_of_range = float(((rho < 1 - CLIP) | (rho > 1 + CLIP)).double().mean())
        decision = self.control(loss_ratio is not None, determinant, gain, out_of_range)
        together = bool(((before - after).abs() <= 4).all())
        virtual = (0.5 * (before.exp() + after.exp())).log().detach() if together else after.detach()
        normal = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = (after - virtual).exp()
        loss = -th.min(normal * ratio, normal * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        return {
            "loss_ratio": loss_ratio,
            "determinant": determinant,
            "gain": gain,
            "out_of_range": out_of_range,
            "decision": decision,
            "together": together,
            "virtual": virtual,
            "gradient": self.gradient(loss, q),
        }

    def control(self, fitted: bool, determinant: th.Tensor, gain: float, out_of_range: float) -> str:
        mean, variance, n = self.gains
        biased = gain < 0 and (gain - mean) / math.sqrt(variance + 1e-5) < -1
        moments = n * variance + (gain - mean) ** 2 * n / (n + 1)
        self.gains = mean + (gain - mean) / (n + 1), moments / (n + 1), n + 1
        if not fitted:
            return "fit_failed"
        safe = bool((determinant >= 1 - INTERVAL).all() and (determinant <= 1 + INTERVAL).all())
        rises = safe and not biased and out_of_range <= MAX_OUT_OF_RANGE
        self.alpha = min(self.alpha * FACTOR if rises else self.alpha / FACTOR, MAX_ALPHA)
        if biased:
            return "biased"
        return "out_of_range" if out_of_range > MAX_OUT_OF_RANGE else "safe" if safe else "unsafe_variance"


def actor_of(model: GIPPO) -> Tensors:
    """:return: copies of the actor's parameters"""
    parameters = model.policy.named_parameters()
    return {name: value.detach().clone() for name, value in parameters if name.startswith(ACTOR)}


def published(n_steps: int = 8, **kwargs: Any) -> GIPPO:
    """A float64 model with the paper's network and settings, its window one minibatch."""
    network = dict(net_arch=[16, 8], activation_fn=nn.ELU, state_dependent_std=True, layer_norm=True, ortho_init=False)
    settings: dict[str, Any] = {
        "batch_size": 8 * n_steps,
        "n_epochs": 1,
        "max_grad_norm": MAX_NORM,
        "vf_coef": 0.0,
        "critic_epochs": 0,
        "alpha_solver": "published",
        "policy_kwargs": {**network, "squash_actions": True, "optimizer_kwargs": {"eps": 1e-8}},
    }
    env = make_vec_env("CartPoleSwingUp-v0", 8, seed=1)
    return GIPPO(Float64Policy, env, n_steps=n_steps, seed=0, device="cpu", **{**settings, **kwargs})


@pytest.mark.parametrize(
    "alpha, learning_rate, iterations, seen",
    [
        pytest.param(0.05, 1e-3, 5, {"safe", "biased"}, id="small steps"),
        pytest.param(5.0, 3e-2, 3, {"biased", "unsafe_variance", "safe", "apart"}, id="large steps"),
        pytest.param(10.0, 1e-2, 3, {"out_of_range", "apart"}, id="larger targets"),
        pytest.param(1e-3, 1e-2, 4, {"safe", "retried"}, id="rates too large at first"),
        pytest.param(1e-6, 1e-1, 2, {"fit_failed", "retried"}, id="rates too large altogether"),
    ],
)
def test_iterations_are_those_of_the_papers_equations(
    alpha: float, learning_rate: float, iterations: int, seen: set[str]
) -> None:
    """The fit, what is made of it, α, log π_h and the gradient of PPO's first step, to 1e-6, over several iterations."""
    model = published(alpha=alpha, alpha_kwargs={"learning_rate": learning_rate, "max_alpha": MAX_ALPHA})
    reference = Reference(alpha, learning_rate, 16)
    found: list[Tensors] = []
    model.policy.optimizer.register_step_pre_hook(
        lambda *_: found.append({n: p.grad.clone() for n, p in model.policy.named_parameters() if n.startswith(ACTOR)})  # type: ignore[union-attr]
    )
    happened = set()
    for _ in range(iterations):
        collected(model)
        buffer: Any = model.rollout_buffer
        buffer.advantages = buffer.advantages.astype(np.float64)
        rows = [
            th.as_tensor(array.swapaxes(0, 1).reshape(64, -1), dtype=th.float64)
            for array in (buffer.observations, buffer.actions, buffer.action_gradients, buffer.advantages)
        ]
        expected = reference.iterate(actor_of(model), *rows[:3], rows[3].flatten())
        found.clear()
        model.train()
        log = logged(model)

        assert log["train/alpha_decision"] == expected["decision"]
        assert model.alpha_step is not None
        assert model.alpha_step.alpha == pytest.approx(reference.alpha, rel=1e-12)
        assert log["train/alpha_loss_ratio"] == pytest.approx(expected["loss_ratio"] or 1.0, rel=1e-6)
        if expected["loss_ratio"] is not None:
            for name in ("min", "mean", "max"):
                determinant = getattr(expected["determinant"], name)().item()
                assert log[f"train/std_ratio_{name}"] == pytest.approx(determinant, rel=1e-6)
            assert log["train/out_of_range_ratio"] == pytest.approx(expected["out_of_range"])
        # The buffer keeps float32.
        th.testing.assert_close(
            th.as_tensor(buffer.log_probs.flatten(), dtype=th.float64), expected["virtual"], rtol=1e-6, atol=1e-6
        )
        for name, gradient in expected["gradient"].items():
            th.testing.assert_close(
                found[0][name], gradient, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
        controller: Any = model.alpha_step.controller
        statistics = controller.gain_mean, controller.gain_std**2, controller.gain_count
        assert statistics == pytest.approx(reference.gains, rel=1e-6, abs=1e-9)
        happened |= {
            expected["decision"],
            "retried" if reference.attempts > 1 else "",
            "" if expected["together"] else "apart",
        }
    assert seen <= happened


def ppo_step(learning_rate: float) -> tuple[GIPPO, bool, float]:
    """
    Make one update whose PPO step has this learning rate.

    :return: the model, whether that step left the actor as the α-step had it, and what it left of the rate
    """
    model = collected(published(n_epochs=5, learning_rate=learning_rate, alpha=0.05, gae_lambda=0.9))
    model._setup_learner()
    step: Any = model.alpha_step
    seen: list[Tensors] = []
    make = step.make_ppo_step
    step.make_ppo_step = lambda *args: (seen.append(actor_of(model)), make(*args))
    model.train()
    assert is_finite(model)
    stayed = all(th.equal(before, after) for before, after in zip(seen[0].values(), actor_of(model).values()))
    return model, stayed, step.controller.ppo_rate_scale


def test_a_ppo_step_whose_loss_rises_is_undone_and_made_again_at_a_lower_rate() -> None:
    model, stayed, scale = ppo_step(1e-4)
    assert (model._n_updates, stayed, scale) == (5, False, 1.0)
    # Each of the eight attempts fails: the actor is put back, and the next iteration begins with less.
    model, stayed, scale = ppo_step(10.0)
    assert (model._n_updates, stayed, scale) == (8 * 5, True, pytest.approx(1 / 1.5))
    assert logged(model)["train/learning_rate_mean"] == pytest.approx(10 / 1.5)
    collected(model).train()
    assert model._n_updates == 16 * 5 and model.alpha_step.controller.ppo_rate_scale == pytest.approx(1.5**-2)  # type: ignore[union-attr]


def test_a_ppo_step_that_succeeds_at_the_lower_rate_keeps_the_full_one() -> None:
    """The losses it is told decide, and the attempts' rates are not lowered further and further."""
    model = published()
    model._setup_learner()
    step: Any = model.alpha_step
    assert isinstance(step, PublishedStep)
    told = iter([[1.0, 2.0], [1.0, math.nan], [1.0, 1.0]])
    scales = []

    def train(given: Any, losses: Any) -> None:
        scales.append({scale for _, scale in given})
        losses += next(told)
        with th.no_grad():
            for parameter in step.actor.moves_mean:
                parameter += 1.0

    before = [[p.detach().clone() for p in group] for group in (step.actor.moves_mean, step.actor.moves_std)]
    step.make_ppo_step(train, collected(model).rollout_buffer.gradient_batch(), before)
    assert scales == [{1.0}, {1 / 1.5}, {1 / 1.5}] and step.controller.ppo_rate_scale == 1.0
    assert all(th.equal(p, value + 1) for p, value in zip(step.actor.moves_mean, before[0]))


def test_the_losses_told_are_ppos_own() -> None:
    """Of each epoch, as its log has their mean."""
    model = collected(published(n_epochs=3, learning_rate=1e-3, alpha=0.05))
    model._setup_learner()
    step: Any = model.alpha_step
    told: list[float] = []

    def make(train: Any, *_: Any) -> None:
        train([], told)

    step.make_ppo_step = make
    model.train()
    assert len(told) == 3 and told[-1] < told[0]
    assert np.mean(told) == pytest.approx(logged(model)["train/policy_gradient_loss"], rel=1e-5)
    # However an epoch is cut into minibatches, a policy that stays has the same loss.
    model = collected(published(n_epochs=3, batch_size=16, learning_rate=1e-30, alpha=0.05))
    model._setup_learner()
    assert model.alpha_step is not None
    told.clear()
    model.alpha_step.make_ppo_step = make  # type: ignore[method-assign]
    model.train()
    assert told == pytest.approx([told[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("initial", [1e-5, 5e-3])
def test_ppos_rate_follows_the_kl_divergence_of_its_steps(initial: float) -> None:
    """Each step's learning rate, from the divergences between the policies before the steps, worked out here."""
    threshold = 1e-4
    model = published(n_epochs=8, learning_rate=initial, alpha=0.05, alpha_kwargs={"ppo_kl": threshold})
    policies: list[Tensors] = []
    rates: list[float] = []
    optimizer = model.policy.optimizer
    optimizer.register_step_pre_hook(lambda *_: policies.append(actor_of(model)))
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    reference, scale, expected = Reference(0.05, 1e-3, 16), 1.0, initial
    for _ in range(3):
        collected(model)
        observations = th.as_tensor(model.rollout_buffer.observations.reshape(64, -1), dtype=th.float64)
        policies.clear()
        rates.clear()
        model.train()
        for number, rate in enumerate(rates):
            start = scale if number < 8 else scale / 1.5  # the first attempt's, and the others'
            expected = start * initial if number % 8 == 0 else expected
            assert rate * start == pytest.approx(expected, rel=1e-6)
            kl = 0.0
            if number % 8 > 0:
                (mean, std), (old_mean, old_std) = (
                    reference.network(policies[number - back], observations) for back in (0, 1)
                )
                terms = (old_std / std).log() + (std**2 + (mean - old_mean) ** 2) / (2 * old_std**2) - 0.5
                kl = terms.sum(1).mean().item()
            if kl > 2 * threshold:
                expected = max(expected / 1.5, 1e-6)
            elif kl < threshold / 2:
                expected = min(expected * 1.5, 1e-2)
        assert model.alpha_step is not None
        scale = model.alpha_step.state_dict()["controller"]["ppo_rate_scale"]
        assert scale * initial == pytest.approx(expected)
    assert expected != pytest.approx(initial)


def test_its_entry_brings_de_jong_towards_its_minimum() -> None:
    model, _ = make_model("gippo", "DeJong-v0", seed=1, conf="gippo_published.yml")
    assert isinstance(model, GIPPO) and model.alpha_solver == "published"
    curve = CurveCallback()
    model.learn(60 * 64, callback=curve)
    assert curve.returns[0] < -1.0 and curve.returns[-1] > -1.0
