"""The adjoint sweep gives the closed form of a linear-quadratic problem, and stays inside episodes and window."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch as th

from sb3_gippo.rollout.adjoint import Limit, action_gradients
from sb3_gippo.rollout.step_gradient import DenseStepGradient

STEPS, N_ENVS, STATE, ACTION = 6, 4, 3, 2


@dataclass
class Problem:
    """
    x' = A x + B a, r = -½ x'ᵀ Q x' - ½ aᵀ R a, o' = x'; policy a = s (K w x + ε), value V = -½ (w x)ᵀ P (w x), with
    the constant scales s of actions, w of observations and c of rewards.
    """

    gamma: float = 0.9
    gae_lambda: float = 0.8
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    terminated: dict[int, int] = field(default_factory=dict)
    """environment: the step in which its episode terminates; the next one begins anew"""
    truncated: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.a = np.eye(STATE) + 0.3 * rng.normal(size=(STATE, STATE))
        self.b, self.k = rng.normal(size=(STATE, ACTION)), 0.3 * rng.normal(size=(ACTION, STATE))
        square = [x @ x.T for x in (rng.normal(size=(n, n)) for n in (STATE, ACTION, STATE))]
        self.q, self.r, self.p = square
        self.bootstrap = np.ones((STEPS, N_ENVS), dtype=bool)
        self.continues = np.ones((STEPS, N_ENVS), dtype=bool)
        self.continues[-1] = False
        for env, step in self.terminated.items():
            self.bootstrap[step, env] = self.continues[step, env] = False
        for env, step in self.truncated.items():
            self.continues[step, env] = False
        s, w, _ = self.scales
        self.states = np.zeros((STEPS, N_ENVS, STATE))
        self.actions, self.following = np.zeros((STEPS, N_ENVS, ACTION)), np.zeros((STEPS, N_ENVS, STATE))
        state = rng.normal(size=(N_ENVS, STATE))
        for t in range(STEPS):
            self.states[t] = state
            self.actions[t] = s * (w * state @ self.k.T + rng.normal(size=(N_ENVS, ACTION)))
            self.following[t] = state @ self.a.T + self.actions[t] @ self.b.T
            state = np.where(self.continues[t, :, None], self.following[t], rng.normal(size=(N_ENVS, STATE)))

    def step_gradients(self) -> list[DenseStepGradient]:
        gradients = []
        for actions, following in zip(self.actions, self.following):
            infos = []
            for a, x in zip(actions, following):
                by_following = -self.q @ x
                grad = {
                    "state_state": self.a,
                    "state_action": self.b,
                    "obs_state": self.a,
                    "obs_action": self.b,
                    "reward_state": self.a.T @ by_following,
                    "reward_action": self.b.T @ by_following - self.r @ a,
                }
                infos.append({"grad": {**grad, "action": a, "obs": x, "reward": np.array(0.0)}})
            gradients.append(DenseStepGradient.from_infos(infos, ACTION, STATE))
        return gradients

    def swept(self, gradients: list[DenseStepGradient] | None = None, limit: Limit | None = None) -> np.ndarray:
        s, w, c = self.scales
        k = th.from_numpy(self.k)
        window = (STEPS, N_ENVS)
        return action_gradients(
            gradients or self.step_gradients(),
            th.full((*window, ACTION), s, dtype=th.float64),
            th.full((*window, STATE), w, dtype=th.float64),
            th.full(window, c, dtype=th.float64),
            th.from_numpy(-w * self.following @ self.p),
            lambda t, g: g @ k,
            th.from_numpy(self.bootstrap),
            th.from_numpy(self.continues),
            self.gamma,
            self.gae_lambda,
            limit,
        ).numpy()

    def closed_form(self, share: np.ndarray | None = None) -> np.ndarray:
        """
        Σ_l (γλ)^l of the derivatives of δ_{t+l} by a_t, by powers of the closed loop F = A + B s K w; λ is multiplied by the
        share of every step that is reached (1).
        """
        share = np.ones((STEPS, N_ENVS)) if share is None else share
        s, w, c = self.scales
        feedback = s * w * self.k
        loop = self.a + self.b @ feedback
        result = np.zeros((STEPS, N_ENVS, ACTION))
        for t, env in np.ndindex(STEPS, N_ENVS):
            for l in range(STEPS - t):  # noqa: E741
                u = t + l
                reach = np.linalg.matrix_power(loop, l) @ self.b  # dx_{u+1} / da_t
                of_value = self.gamma * self.bootstrap[u, env] * w**2 * self.p
                delta = -reach.T @ (c * self.q + of_value) @ self.following[u, env]
                if l == 0:
                    delta -= c * self.r @ self.actions[t, env]
                else:
                    before = np.linalg.matrix_power(loop, l - 1) @ self.b  # dx_u / da_t
                    delta -= c * (feedback @ before).T @ self.r @ self.actions[u, env]
                    delta += w**2 * before.T @ self.p @ self.states[u, env]
                result[t, env] += (self.gamma * self.gae_lambda) ** l * share[t + 1 : u + 1, env].prod() * s * delta
                if not self.continues[u, env]:
                    break
        return result


@pytest.mark.parametrize("gamma, gae_lambda", [(0.9, 0.8), (1.0, 1.0), (0.9, 0.0), (0.0, 0.8), (0.0, 0.0)])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.5, 3.0, 0.2)])
@pytest.mark.parametrize("terminated, truncated", [({}, {}), ({0: 2, 1: 0}, {1: 3, 2: 4}), ({3: 5}, {0: 5})])
def test_linear_quadratic_closed_form(
    gamma: float, gae_lambda: float, scales: tuple[float, float, float], terminated: dict[int, int], truncated: dict[int, int]
) -> None:
    problem = Problem(gamma, gae_lambda, scales, terminated, truncated)
    np.testing.assert_allclose(problem.swept(), problem.closed_form(), rtol=1e-10, atol=1e-10)


def test_a_long_window_neither_divides_by_small_numbers_nor_needs_to() -> None:
    # (γλ)^t underflows within the window: a division by it would give inf or NaN.
    problem = Problem(gamma=1e-100, gae_lambda=1.0)
    np.testing.assert_allclose(problem.swept(), problem.closed_form(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["state_state", "obs_action", "reward_action"])
def test_what_is_not_finite_stays_in_its_episode(key: str, poison: float) -> None:
    problem = Problem(terminated={1: 2})
    clean, gradients = problem.swept(), problem.step_gradients()
    gradients[4].blocks[key] = gradients[4].blocks[key].clone()
    gradients[4].blocks[key][1] = poison
    dirty = problem.swept(gradients)
    finite = np.isfinite(dirty).all(2)
    np.testing.assert_array_equal(dirty[finite], clean[finite])
    # Other environments, the episode before, and the steps after it never see it; this step or the one before does.
    expected = np.ones((STEPS, N_ENVS), dtype=bool)
    expected[3:5, 1] = False
    assert finite[expected].all()
    assert not finite[3, 1]


def test_nothing_crosses_a_reset_or_comes_from_another_environment() -> None:
    problem = Problem(terminated={0: 1}, truncated={2: 3})
    clean, gradients = problem.swept(), problem.step_gradients()
    changed = {(t, 0) for t in range(2, STEPS)} | {(t, 2) for t in range(4, STEPS)}
    for t, env in changed:
        for key, block in gradients[t].blocks.items():
            gradients[t].blocks[key] = block.clone()
            gradients[t].blocks[key][env] *= -3.0
    dirty = problem.swept(gradients)
    for t, env in np.ndindex(STEPS, N_ENVS):
        assert np.array_equal(dirty[t, env], clean[t, env]) == ((t, env) not in changed)


def test_a_window_that_claims_to_go_on_is_refused() -> None:
    problem = Problem()
    problem.continues[-1, 2] = True
    with pytest.raises(AssertionError, match="behind the window's end"):
        problem.swept()


def limited(problem: Problem, size: float) -> np.ndarray:
    """The sweep of the problem with σ = 1 and a limit."""
    std = th.ones(STEPS, N_ENVS, ACTION, dtype=th.float64)
    return problem.swept(limit=Limit(std, size))


def test_a_limit_that_nothing_exceeds_changes_nothing() -> None:
    problem = Problem(terminated={0: 2}, truncated={1: 3})
    np.testing.assert_array_equal(limited(problem, np.inf), problem.swept())
    np.testing.assert_array_equal(limited(problem, 1.001 * np.linalg.norm(problem.swept(), axis=2).max()), problem.swept())


def test_beyond_a_limit_lambda_is_lowered_for_that_step_and_environment() -> None:
    """Â_t = δ_t + γ λ c_{t+1} Â_{t+1}: the closed form with every step's own c."""
    problem = Problem(terminated={0: 2}, truncated={1: 3})
    limit = float(np.median(np.linalg.norm(problem.swept(), axis=2)))
    found = limited(problem, limit)
    share = np.minimum(1.0, limit / np.linalg.norm(found, axis=2))
    assert (share < 1).any() and (share == 1).any()
    np.testing.assert_allclose(found, problem.closed_form(share), rtol=1e-10, atol=1e-10)


def test_with_a_limit_what_is_not_finite_reaches_what_it_reaches_without() -> None:
    problem = Problem(terminated={1: 2})
    gradients = problem.step_gradients()
    gradients[4].blocks["state_action"] = gradients[4].blocks["state_action"].clone()
    gradients[4].blocks["state_action"][1] = np.inf
    std = th.ones(STEPS, N_ENVS, ACTION, dtype=th.float64)
    found = np.isfinite(problem.swept(gradients, limit=Limit(std, 1e9)))
    np.testing.assert_array_equal(found, np.isfinite(problem.swept(gradients)))
    assert not found.all()
