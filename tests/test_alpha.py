"""The α-policy's density, the diagnostics of an α-step and the control of α on known answers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_gippo.gippo.alpha_step import (
    MAX_LOG_RATIO,
    AlphaStep,
    Diagnostics,
    diagnose,
    virtual_log_prob,
)
from sb3_gippo.gippo.published import PublishedController, PublishedSettings, PublishedStep
from sb3_gippo.gippo.signal import Signal
from sb3_gippo.gippo.trust_region import AgreementController, TrustRegionSettings, TrustRegionStep
from sb3_gippo.on_policy.actor import Actor, log_prob
from tests.helpers import small

PUBLISHED = PublishedSettings(interval=0.4, factor=1.25, max_alpha=0.2, max_out_of_range=0.5)
REGION = TrustRegionSettings(factor=1.25, max_alpha=0.2, bias_z=1.0)
SAFE = {
    "std_ratio_min": 0.9,
    "std_ratio_mean": 1.0,
    "std_ratio_max": 1.1,
    "improvement": 1.0,
    "improvement_z": 3.0,
    "gain": 1.0,
    "out_of_range_ratio": 0.1,
}


def diagnostics(**kwargs: Any) -> Diagnostics:
    """A safe step, but for what is given."""
    values: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Diagnostics)}
    return Diagnostics(**{**values, **SAFE, **kwargs})


def normal(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def test_log_prob_sums_over_dimensions() -> None:
    zeros, ones = th.zeros(1, 2), th.ones(1, 2)
    assert log_prob(zeros, zeros, ones).item() == pytest.approx(-math.log(2 * math.pi))
    assert log_prob(2 * ones, zeros, 2 * ones).item() == pytest.approx(-math.log(2 * math.pi) - 1 - 2 * math.log(2))


def test_the_virtual_policy_is_the_mean_of_the_densities() -> None:
    old, alpha = normal(100), normal(100, seed=1)
    th.testing.assert_close(virtual_log_prob(old, alpha).exp(), 0.5 * (old.exp() + alpha.exp()))
    # densities of 1 and 3 have the mean 2, and it does not matter that both underflow
    for offset in (0.0, -2000.0):
        found = virtual_log_prob(th.tensor([offset]), th.tensor([offset + math.log(3)]))
        assert found.item() == pytest.approx(offset + math.log(2), rel=1e-6, abs=1e-6)


def test_beyond_a_log_ratio_of_4_the_virtual_policy_is_the_alpha_policy_sample_by_sample() -> None:
    assert MAX_LOG_RATIO == 4.0
    old = th.zeros(6, dtype=th.float64)
    alpha = th.tensor([4.0, -4.0, 4.1, -4.1, 100.0, -100.0], dtype=th.float64)
    mixture = math.log(0.5 + 0.5 * math.exp(4)), math.log(0.5 + 0.5 * math.exp(-4))
    np.testing.assert_allclose(virtual_log_prob(old, alpha), [*mixture, 4.1, -4.1, 100.0, -100.0])


def test_an_alpha_policy_without_density_leaves_the_old_one() -> None:
    alpha = th.tensor([math.nan, -math.inf, math.inf, 1.0])
    found = virtual_log_prob(th.ones(4), alpha)
    assert found.tolist() == [1.0, 1.0, 1.0, 1.0]


def judged(advantages: list[float], log_ratios: list[float], stds: th.Tensor, new_stds: th.Tensor) -> Diagnostics:
    return diagnose(
        advantages=th.tensor(advantages),
        signal=Signal(th.zeros(1, 2), 0.0, 0.0, 0.0, 0.5, 0.25),
        log_probs=(th.zeros(len(log_ratios)), th.tensor(log_ratios)),
        stds=(stds, new_stds),
        clip_range=0.2,
    )


def test_the_determinant_is_the_ratio_of_the_standard_deviations() -> None:
    old = th.tensor([[1.0, 2.0], [0.5, 1e-5], [3.0, 4.0], [1.0, 1.0]])
    scale = th.tensor([[1.1, 0.9], [1.0, 1.0], [0.5, 0.5], [2.0, 1.5]])
    found = judged([0.0] * 4, [0.0] * 4, old, old * scale)
    assert (found.std_ratio_min, found.std_ratio_max) == (pytest.approx(0.25), pytest.approx(3.0))
    assert found.std_ratio_mean == pytest.approx((0.99 + 1.0 + 0.25 + 3.0) / 4)


def test_improvement_pairs_each_advantage_with_its_own_ratio() -> None:
    ones = th.ones(4, 2)
    log_ratios = [math.log(ratio) for ratio in (1.5, 0.5, 1.1, 1.0)]
    found = judged([12.0, 8.0, 9.0, 11.0], log_ratios, ones, ones)
    gains = np.array([2 * 0.5, -2 * -0.5, -1 * 0.1, 0.0])  # advantages less their mean of 10
    assert found.improvement == pytest.approx(gains.mean(), rel=1e-5)
    assert found.improvement_z == pytest.approx(gains.mean() / (gains.std(ddof=1) / 2), rel=1e-5)
    turned = judged([8.0, 12.0, 11.0, 9.0], log_ratios, ones, ones)
    assert turned.improvement == pytest.approx(-gains.mean(), rel=1e-5)
    assert turned.improvement_z == pytest.approx(-found.improvement_z, rel=1e-5)


def test_out_of_range_counts_ratios_beyond_the_clip_range() -> None:
    ones = th.ones(5, 2)
    ratios = [math.log(ratio) for ratio in (1.0, 1.19, 0.81, 1.21, 0.79)]
    assert judged([0.0] * 5, ratios, ones, ones).out_of_range_ratio == pytest.approx(0.4)


def test_diagnostics_of_absurd_or_single_samples_are_finite() -> None:
    ones = th.ones(2, 2)
    found = judged([1.0, -1.0], [1e4, -1e4], ones, ones)
    assert math.isfinite(found.improvement) and found.out_of_range_ratio == 1.0
    alone = judged([1.0], [0.3], ones[:1], ones[:1])
    assert alone.improvement == 0.0 and alone.improvement_z == 0.0
    unmoved = judged([1.0, 2.0], [0.0, 0.0], ones, ones)
    assert unmoved.improvement == 0.0 and unmoved.improvement_z == 0.0


@pytest.mark.parametrize(
    "change, decision, factor",
    [
        ({}, "safe", 1.25),
        ({"std_ratio_min": 0.6, "std_ratio_max": 1.4}, "safe", 1.25),
        ({"std_ratio_min": 0.59}, "unsafe_variance", 0.8),
        ({"std_ratio_max": 1.41}, "unsafe_variance", 0.8),
        ({"std_ratio_max": math.nan}, "unsafe_variance", 0.8),
        ({"gain": -1.1}, "biased", 0.8),
        ({"gain": -0.9}, "safe", 1.25),
        ({"gain": math.inf}, "biased", 0.8),
        ({"out_of_range_ratio": 0.5}, "safe", 1.25),
        ({"out_of_range_ratio": 0.51}, "out_of_range", 0.8),
        ({"std_ratio_max": 1.41, "gain": -2.0, "out_of_range_ratio": 1.0}, "biased", 0.8),
    ],
)
def test_published_control(change: dict[str, float], decision: str, factor: float) -> None:
    controller = PublishedController(PUBLISHED, alpha=0.1)
    assert controller.alpha == 0.1
    assert controller.update(diagnostics(**change)) == decision
    assert controller.alpha == pytest.approx(0.1 * factor)


def test_published_control_keeps_alpha_where_the_fit_failed_and_below_its_cap() -> None:
    controller = PublishedController(PUBLISHED, alpha=0.1)
    assert controller.update(None) == "fit_failed" and controller.alpha == 0.1
    for _ in range(10):
        controller.update(diagnostics())
    assert controller.alpha == PUBLISHED.max_alpha


@pytest.mark.parametrize(
    "earlier, gain, biased",
    [
        ([], -0.99, False),
        ([], -1.01, True),
        ([100.0, -100.0] * 10, -50.0, False),
        ([100.0, -100.0] * 10, -150.0, True),
        ([10.0, 12.0] * 10, 5.0, False),  # less than ever, but no loss
        ([10.0, 12.0] * 10, -0.1, True),
    ],
)
def test_an_improvement_is_negative_beyond_the_noise_of_those_before(earlier: list[float], gain: float, biased: bool) -> None:
    controller = PublishedController(PUBLISHED, alpha=0.1)
    for value in earlier:
        controller.is_biased(value)
    if earlier:
        assert controller.gain_mean == pytest.approx(np.mean(earlier), rel=1e-3, abs=1e-6)
        assert controller.gain_std == pytest.approx(np.std(earlier), rel=1e-3)
    assert controller.is_biased(gain) is biased
    before = dataclasses.replace(controller)
    assert controller.is_biased(math.nan) and controller == before


def test_the_published_learning_rate_falls_with_failures_to_its_floor() -> None:
    controller = PublishedController(PUBLISHED, alpha=0.1)
    scales = [1.0]
    for _ in range(20):
        controller.lower_learning_rate(1e-3)
        scales.append(controller.learning_rate_scale)
    assert scales[1] == pytest.approx(1 / 1.5) and scales == sorted(scales, reverse=True)
    assert scales[-1] == pytest.approx(1e-2), "1e-5, whatever the nominal rate"
    for nominal in (1e-6, 0.0):  # below the floor from the beginning: nothing is raised to it
        controller = PublishedController(PUBLISHED, alpha=0.1)
        controller.lower_learning_rate(nominal)
        assert controller.learning_rate_scale == 1.0


@pytest.mark.parametrize("step_class", [PublishedStep, TrustRegionStep])
def test_every_solver_lowers_alpha_without_gradients_and_its_state_can_be_taken_over(step_class: type[AlphaStep]) -> None:
    actor = Actor(small().policy)
    step = step_class(actor, 0.1, step_class.Settings(factor=1.25), 1.0)
    assert step.no_gradients() == "no_gradients"
    assert step.alpha == pytest.approx(0.1 / 1.25)
    step.controller.update(diagnostics(agreement=0.4, agreement_error=0.1))
    other = step_class(actor, 0.1, step_class.Settings(factor=1.25), 1.0)
    other.load_state_dict(step.state_dict())
    assert other.controller == step.controller
    capped = step_class(actor, 0.1, step_class.Settings(max_alpha=0.1), 1.0)
    step.controller.alpha = 0.5
    capped.load_state_dict(step.state_dict())
    assert capped.alpha == 0.1


def test_control_by_agreement_follows_the_evidence() -> None:
    agreeing, useless, misleading = ([diagnostics(agreement=slope, agreement_error=0.05)] * 20 for slope in (1.0, 0.0, -1.0))
    for evidence, rises in ((agreeing, True), (useless, False), (misleading, False)):
        controller = AgreementController(REGION, alpha=0.1)
        for step in evidence:
            controller.update(step)
        assert controller.alpha == REGION.max_alpha if rises else controller.alpha < 0.1
    controller = AgreementController(REGION, alpha=0.1)
    assert controller.update(None) == "fit_failed" and controller.alpha == 0.1


def test_an_alpha_that_disagreement_lowered_to_its_floor_is_zero_and_returns() -> None:
    """A small α-step is not harmless where the gradients mislead for good."""
    useless, agreeing = (diagnostics(agreement=slope, agreement_error=0.05) for slope in (0.0, 1.0))
    controller = AgreementController(REGION, alpha=0.1)
    alphas = []
    for _ in range(20):
        controller.update(useless)
        alphas.append(controller.alpha)
    assert alphas[-1] == 0 and all(alpha == 0 or alpha >= controller.MIN_ALPHA for alpha in alphas)
    while controller.update(agreeing) == "disagrees":
        assert controller.alpha == 0
    assert controller.alpha == controller.MIN_ALPHA
    small = AgreementController(dataclasses.replace(REGION, max_alpha=1e-3), alpha=1e-3)
    while small.update(agreeing) == "disagrees":
        assert small.alpha == 0
    assert small.alpha == 1e-3


def test_agreement_that_cannot_be_measured_teaches_nothing() -> None:
    controller = AgreementController(REGION, alpha=0.1)
    before = controller.slope
    controller.update(diagnostics(agreement=math.nan, agreement_error=math.nan))
    controller.update(diagnostics(agreement=5.0, agreement_error=math.inf))
    assert controller.slope == before and math.isfinite(controller.alpha)
