"""check_differentiable_env: whether the derivatives an environment hands over are those of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from sb3_gippo.checker.differences import Differences, central_differences
from sb3_gippo.checker.recorder import FLOATS, Outcome, Recorder
from sb3_gippo.rollout.collector import check_integrity
from sb3_gippo.rollout.step_gradient import KEYS, STATES, TAKEN_AT, DenseStepGradient, GradientChannelError


@dataclass
class GradientReport:
    """
    What :func:`check_differentiable_env` compared.

    :param transitions: number of transitions whose derivatives were compared
    :param entries: number of derivatives
    :param worst: the one furthest from its central difference, with both values
    :param error: how far that is, as a share of what is tolerated
    """

    transitions: int = 0
    entries: int = 0
    worst: str = "none"
    error: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.entries} derivatives at {self.transitions} transitions agree with central differences; "
            f"the worst, at {self.error:.0%} of what is tolerated: {self.worst}"
        )


class Precision(NamedTuple):
    """What the numbers of a type can show."""

    eps: float
    """their relative rounding error"""
    step: float
    """step of the differences: rounding costs eps / step, curvature step²"""
    derivative: float
    """relative tolerance of derivatives, unless another is asked for"""
    repeat: float
    """tolerance of numbers that ought to be the same, relative and absolute"""


SMALL = 1e-3
"""entries below this share of their row's largest may be as wrong as one of that size"""
PRECISIONS = {"float32": Precision(1.2e-7, 5e-3, 1e-2, 1e-5), "float64": Precision(2.3e-16, 1e-5, 1e-5, 1e-9)}


def check_differentiable_env(
    env: gym.Env,
    n_episodes: int = 5,
    max_steps: int = 50,
    n_checked: int = 3,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradientReport:
    """
    Check the gradient channel of an environment, its wrappers included: shapes, finiteness, agreement with central
    differences along random rollouts, the same answer twice, the same numbers with and without gradients, nothing that leaks
    across a reset, changes afterwards, or touches a global random generator.

    The environment needs ``get_state() -> (n,)`` and ``set_state(x)``, which restores everything ``step`` depends on within
    an episode; gradients are switched on by ``set_differentiable(bool)``, or come with every step. Let it compute in float64
    if it can: in float32, differences show errors of more than a percent only.

    :param env: returns ``info["grad"]``; it is reset, and gradients stay switched on
    :param n_episodes: number of rollouts with random actions
    :param max_steps: where rollouts are cut
    :param n_checked: of each rollout's transitions, how many are compared with differences, the last one always
    :param tolerance: relative tolerance of derivatives; ``None`` for what their types can show, 1e-2 in float32 and 1e-5 in
        float64. Gradients that are finite differences themselves need more, say 1e-3.
    :param seed: of the rollouts
    :return: what was compared
    :raises GradientChannelError: at the first fault, named in a sentence
    """
    recorder = Recorder(env)
    recorder.action_space.seed(seed)
    check = _Check(recorder, tolerance)
    rng = np.random.default_rng(seed)
    for episode in range(seed, seed + n_episodes):
        states, actions, outcomes = check.rollout(episode, max_steps)
        check.repeat_first_step(episode, actions[0], outcomes[0])
        others = rng.permutation(len(actions) - 1)[: max(n_checked - 1, 0)]
        for t in (*sorted(others.tolist()), len(actions) - 1):
            recorder.reset(episode)
            check.replay(states[t], actions[t], outcomes[t])
            where = f"at step {t} of the episode with seed {episode}"
            check.differences(where, states[t], actions[t], outcomes[t])
    recorder.switch(True)
    return check.report


class _Check:
    """The single checks."""

    def __init__(self, recorder: Recorder, tolerance: float | None):
        self.recorder = recorder
        self.report = GradientReport()
        self.precisions = {
            name: precision if tolerance is None else precision._replace(derivative=tolerance)
            for name, precision in PRECISIONS.items()
        }

    def rollout(self, seed: int, max_steps: int) -> tuple[list[np.ndarray], list[np.ndarray], list[Outcome]]:
        """An episode of random actions: states before the steps, actions, outcomes."""
        self.recorder.switch(True)
        self.recorder.reset(seed)
        states, actions = [self.recorder.get_state()], []
        outcomes: list[Outcome] = []
        while not outcomes or (len(outcomes) < max_steps and not outcomes[-1].ended):
            actions.append(self.recorder.random_action(PRECISIONS["float32"].step))
            outcomes.append(self.recorder.step(actions[-1]))
            states.append(outcomes[-1].state)
            self.check_form(actions[-1], outcomes[-1])
        self.recorder.check_untouched()
        return states, actions, outcomes

    def check_form(self, action: np.ndarray, outcome: Outcome) -> None:
        """Keys, shapes, types, finiteness, and the values the gradient says it was taken at."""
        for name in ("obs", "reward", "state"):
            if not np.isfinite(getattr(outcome, name)).all():
                raise GradientChannelError(f"After step() the {name} is not finite: {getattr(outcome, name)}.")
        grad = outcome.grad
        if grad is None:
            raise GradientChannelError(
                'step() returned no info["grad"]: it must in every step, once gradients are switched on by '
                "set_differentiable(True) or at construction."
            )
        known = (*KEYS, *TAKEN_AT, *STATES)
        for key, array in grad.items():
            if key not in known:
                raise GradientChannelError(f'info["grad"] has an unknown key {key!r}: known are {", ".join(known)}.')
            if array.dtype.kind == "f" and array.dtype.name not in FLOATS:
                raise GradientChannelError(f'info["grad"][{key!r}] is {array.dtype}: it must be float32 or float64.')
        step_gradient = DenseStepGradient.from_infos([{"grad": grad}], action.size, outcome.obs.size)
        size = len(outcome.state)
        if any("state" in key for key in grad) and step_gradient.state_size != size:
            raise GradientChannelError(
                f"get_state() returns {size} numbers, while the gradient is about a state of {step_gradient.state_size}."
            )
        for key, block in step_gradient.blocks.items():
            if not block.isfinite().all():
                index = np.argwhere(~block[0].isfinite().numpy())[0]
                raise GradientChannelError(f"{_entry(key, index.tolist())} is not finite.")
        check_integrity(step_gradient, action.reshape(1, -1), outcome.obs[None], outcome.reward[None], None)

    def repeat_first_step(self, seed: int, action: np.ndarray, first: Outcome) -> None:
        self.recorder.reset(seed)
        self.compare(
            first,
            self.recorder.step(action),
            "A reset with the same seed and the same first action gave another",
            "something leaks across the reset, or is drawn from a generator that reset(seed=...) does not seed.",
        )

    def replay(self, state: np.ndarray, action: np.ndarray, outcome: Outcome) -> None:
        """The transition once more with gradients, and once without."""
        self.recorder.set_state(state)
        self.compare(
            outcome,
            self.recorder.step(action),
            "The same state and action gave another",
            "set_state(x) must restore everything step() depends on, and step() must draw no random numbers.",
        )
        if self.recorder.switchable:
            self.recorder.switch(False)
            self.recorder.set_state(state)
            plain = self.recorder.step(action)
            self.recorder.switch(True)
            if plain.grad is not None:
                raise GradientChannelError('step() returns info["grad"] after set_differentiable(False).')
            self.compare(
                outcome._replace(grad=None),
                plain,
                "Asking for gradients changes the",
                "the numbers must be the same with and without.",
            )
        self.recorder.check_untouched()

    def compare(self, expected: Outcome, found: Outcome, what: str, why: str) -> None:
        """:raises GradientChannelError: ``what`` gave another number than expected, and ``why`` that may be"""
        precision = self.precisions[expected.dtype]
        pairs = [
            (name, getattr(expected, name), getattr(found, name), precision.repeat)
            for name in ("obs", "reward", "state", "terminated")
        ]
        for key, value in (expected.grad or {}).items():
            other = (found.grad or {}).get(key, np.full(value.shape, np.nan))
            tolerance = precision.derivative if key in KEYS else precision.repeat
            pairs.append((f'info["grad"][{key!r}]', value, other, tolerance))
        for name, one, other, tolerance in pairs:
            close = np.isclose(one, other, rtol=tolerance, atol=tolerance)
            if not close.all():
                index = tuple(np.argwhere(~close)[0])
                raise GradientChannelError(f"{what} {name} ({one[index]:.8g}, then {other[index]:.8g}): {why}")

    def differences(self, where: str, state: np.ndarray, action: np.ndarray, outcome: Outcome) -> None:
        """Compare all six blocks, as one matrix, with differences of [state, obs, reward] by [state, action]."""
        grad = outcome.grad
        assert grad is not None
        n, k = len(state), len(outcome.obs)
        # An action of float32 may be worked with in float32 before anything else is.
        by_action = "float32" if action.dtype == np.float32 else outcome.dtype
        types = [outcome.dtype] * n + [by_action] * action.size
        eps, step, tolerance, _ = (np.array(column) for column in zip(*(self.precisions[name] for name in types)))

        def rounded(inputs: np.ndarray) -> np.ndarray:
            parts = inputs[:n].astype(state.dtype), inputs[n:].astype(action.dtype)
            return np.concatenate(parts, dtype=np.float64)

        def outputs(inputs: np.ndarray) -> np.ndarray:
            self.recorder.set_state(inputs[:n].astype(state.dtype))
            moved = self.recorder.step(inputs[n:].reshape(action.shape).astype(action.dtype))
            return np.concatenate([moved.state, moved.obs, moved.reward[None]])

        x = np.concatenate([state, action.ravel()], dtype=np.float64)
        # Large numbers are coarse: a step must be many roundings long.
        steps = np.maximum(step, 100 * eps * np.abs(x))
        steps[n:] = np.minimum(steps[n:], np.ravel(self.recorder.action_space.high - self.recorder.action_space.low) / 4)
        self.recorder.switch(False)
        differences = central_differences(outputs, rounded, x, steps, eps)
        self.recorder.switch(True)
        self.recorder.handed_over.clear()

        wrt = {"state": n, "action": action.size}
        of = {"state": n, "obs": k, "reward": 1}
        given = np.block(
            [[np.reshape(grad.get(f"{a}_{b}", np.zeros(of[a] * wrt[b])), (of[a], wrt[b])) for b in wrt] for a in of]
        )
        error = _error(given, differences, tolerance)
        row, column = np.unravel_index(error.argmax(), error.shape)
        (a, i), (b, j) = _names(of)[row], _names(wrt)[column]
        name = _entry(f"{a}_{b}", [j] if a == "reward" else [i, j])
        missing = "" if f"{a}_{b}" in grad else " (missing, so zero)"
        worst = f"{name}: given {given[row, column]:.6g}{missing}, central difference {differences.central[row, column]:.6g}"
        if not error[row, column] <= 1:
            raise GradientChannelError(
                f"The gradient is wrong {where}: {worst} ({(error > 1).sum()} of {error.size} entries differ"
                + ("; compared as float32, see whether float64 says the same)." if types[column] == "float32" else ").")
            )
        self.report.transitions += 1
        self.report.entries += error.size
        if error[row, column] >= self.report.error:
            self.report.worst, self.report.error = worst, float(error[row, column])


def _error(given: np.ndarray, differences: Differences, tolerance: np.ndarray) -> np.ndarray:
    """How far given derivatives are from differences, as a share of what is tolerated; all (outputs, inputs)."""
    central, low, high = differences
    room = np.where(given > central, high - central, central - low)
    size = np.maximum(np.abs(given), np.abs(central))
    size = np.maximum(size, SMALL * size.max(axis=1, keepdims=True))
    return np.abs(given - central) / (room + tolerance * size)


def _names(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, i) for name, size in sizes.items() for i in range(size)]


def _entry(key: str, index: Sequence[int]) -> str:
    return f"{key}[{', '.join(map(str, index))}]"
