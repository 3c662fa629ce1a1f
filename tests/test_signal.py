"""What a batch's gradients say, on known answers: signal and chance, mean and σ, agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th

from sb3_gippo.gippo.signal import ROW_LIMIT, Signal, column_space, read_signal, share_of_signal, shortened

N, P = 2000, 8


def normal(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def read(advantages: th.Tensor, noise: th.Tensor, whitened: th.Tensor, features: th.Tensor | None = None) -> Signal:
    return read_signal(normal(len(noise), P, seed=9) if features is None else features, noise, whitened, advantages)


def linear(scale: float = 1.0) -> Signal:
    """Â = u·ε with the whitened gradient u, times ``scale``."""
    noise, slope = normal(N, 3), th.tensor([0.3, -0.5, 0.2], dtype=th.float64)
    return read((noise * slope).sum(1), noise, scale * slope.expand(N, 3))


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.25])
def test_the_gradients_of_a_linear_advantage_are_all_signal_and_agree(scale: float) -> None:
    signal = linear(scale)
    assert signal.mean_trust > 0.999 and signal.std_trust < 0.9
    assert signal.agreement_error < 0.06 / abs(scale)
    assert signal.agreement == pytest.approx(1 / scale, abs=3 * signal.agreement_error)


def test_at_the_optimum_of_a_quadratic_advantage_sigma_has_all_of_the_signal() -> None:
    """Â = -½ Σ k ε² and σ g = -k ε, beside what later actions add to the advantage."""
    n = 50_000
    noise, k = normal(n, 2), th.tensor([0.3, 0.05], dtype=th.float64)
    signal = read(-0.5 * (k * noise.square()).sum(1) + normal(n, seed=1), noise, -k * noise)
    assert signal.std_trust > 0.99 and signal.mean_trust < 0.5
    assert signal.agreement == pytest.approx(1.0, abs=3 * signal.agreement_error) and signal.agreement_error < 0.1


@pytest.mark.parametrize("distance", [0.2, 1.0, 3.0])
def test_the_distance_of_a_quadratics_optimum_is_found(distance: float) -> None:
    noise = normal(N, 1)
    whitened = -0.1 * (noise + distance)
    signal = read(1e3 * normal(N, seed=1), noise, whitened)  # advantages that shorten no row
    assert signal.distance == pytest.approx(distance, rel=0.05)


def test_gradients_that_are_noise_have_no_signal_and_their_agreement_the_stated_error() -> None:
    signals = [read(normal(200, seed=s), normal(200, 2, seed=s + 1000), normal(200, 2, seed=s + 2000)) for s in range(200)]
    assert np.mean([signal.mean_trust for signal in signals]) < 0.15
    scores = [s.agreement / s.agreement_error for s in signals if math.isfinite(s.agreement)]
    assert len(scores) > 100 and abs(np.mean(scores)) < 0.25 and np.std(scores) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_noise_in_the_rows_is_told_from_the_signal_below_it(share: float) -> None:
    """Rows of noise 10 times as strong as what the features explain, as chaotic dynamics have them: agreement all the same."""
    n, p = 20_000, 8
    features, noise = normal(n, p, seed=1), normal(n, 2)
    direction = features @ normal(p, 2, seed=2)
    direction *= 0.1 / direction.square().sum(1).mean().sqrt()
    # What chance explains has the power (p + 1)/n of the rest's.
    chance = 0.1**2 * (1 - share) / share
    rest = normal(n, 2, seed=3) * math.sqrt(chance * n / (p + 1) / 2)
    advantages = (direction * noise).sum(1) + 1e3 * normal(n, seed=4)
    signal = read_signal(features, noise, direction + rest, advantages)
    assert signal.mean_trust == pytest.approx(share, abs=0.15)
    quiet = read_signal(features, noise, direction + rest, 1e-2 * advantages)
    assert quiet.agreement_error < signal.agreement_error


def test_the_agreement_sees_through_noise_that_is_right_on_average() -> None:
    n = 20_000
    features, noise = normal(n, P, seed=1), normal(n, 2)
    direction = features @ normal(P, 2, seed=2) / 10
    advantages = (direction * noise).sum(1) + 3 * normal(n, seed=4)
    signal = read_signal(features, noise, direction + 0.5 * normal(n, 2, seed=3), advantages)
    assert signal.agreement == pytest.approx(1.0, abs=3 * signal.agreement_error) and signal.agreement_error < 0.1


def test_what_features_explain_of_noise_counts_for_nothing() -> None:
    n, p = 400, 20
    features = normal(n, p)
    found = [read(1e3 * normal(n), normal(n, 3, seed=s), normal(n, 3, seed=s + 500), features) for s in range(40)]
    basis = column_space(features)
    explained = [(basis.T @ normal(n, 3, seed=s + 500)).square().sum().item() / n for s in range(40)]
    signal = np.mean([signal.mean_trust * power for signal, power in zip(found, explained)])
    assert signal < 0.3 * np.mean(explained) and np.mean(explained) == pytest.approx(3 * (p + 1) / n, rel=0.1)


def test_a_small_batch_leaves_half_of_its_rows_to_tell_chance_by() -> None:
    assert column_space(normal(10, 40)).shape == (10, 5) and column_space(normal(1, 4)).shape == (1, 0)
    basis = column_space(normal(50, 4))
    th.testing.assert_close(basis.T @ basis, th.eye(5, dtype=th.float64))


def test_a_constant_observation_is_no_special_case() -> None:
    assert column_space(th.ones(64, 32, dtype=th.float64)).shape == (64, 1)
    noise = normal(64, 1)
    signal = read((2 * noise).sum(1), noise, th.full((64, 1), 2.0, dtype=th.float64), th.ones(64, 32, dtype=th.float64))
    assert signal.mean_trust > 0.99


def test_long_rows_are_shortened_to_the_advantages_spread_then_to_mean_rows() -> None:
    whitened = normal(200, 2)
    whitened[0] *= 100
    far = read(1e9 * normal(200, seed=1), normal(200, 2, seed=2), whitened).whitened
    th.testing.assert_close(far[1:], whitened[1:])
    th.testing.assert_close(far[0].norm(), ROW_LIMIT * whitened.norm(dim=1).mean())
    near = read(0.5 * normal(200, seed=1), normal(200, 2, seed=2), whitened).whitened
    assert near.norm(dim=1).max() <= 0.5 * normal(200, seed=1).std(unbiased=False) * (1 + 1e-9)
    th.testing.assert_close(near / near.norm(dim=1, keepdim=True), whitened / whitened.norm(dim=1, keepdim=True))
    assert not shortened(th.zeros(4, 2), th.tensor(1.0)).any()


def test_vanishing_gradients_say_nothing() -> None:
    signal = read(normal(9), normal(9, 2), th.zeros(9, 2, dtype=th.float64))
    assert math.isnan(signal.agreement) and not math.isfinite(signal.agreement_error)
    assert (signal.mean_trust, signal.std_trust, signal.distance) == (0, 0, math.inf)
    assert share_of_signal(0.0, 0.0) == 0 and share_of_signal(2.0, 0.5) == 0.75 and share_of_signal(1.0, 2.0) == 0
