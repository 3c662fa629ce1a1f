"""check_differentiable_env: whether the derivatives an environment hands over are those of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_gippo.checker.differences import Differences, central_differences
from sb3_gippo.checker.recorder import FLOATS, Outcome, Recorder, is_coarse
from sb3_gippo.checker.verdict import SMALL, Given
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
    :param unjudged: number of derivatives of which the differences show nothing, as they would have agreed with a very wrong
        one too
    :param unjudged_example: one of them, with what would have passed
    """

    transitions: int = 0
    entries: int = 0
    worst: str = "none"
    error: float = 0.0
    unjudged: int = 0
    unjudged_example: str = "none"

    def __str__(self) -> str:
        judged = f"{self.entries - self.unjudged} of {self.entries}" if self.unjudged else f"{self.entries}"
        unjudged = f"; {self.unjudged} cannot be judged by differences, so {self.unjudged_example}" if self.unjudged else ""
        return (
            f"{judged} derivatives at {self.transitions} transitions agree with central differences{unjudged}; "
            f"the worst, at {self.error:.0%} of what is tolerated: {self.worst}"
        )


class Precision(NamedTuple):
    """What the numbers of a type can show."""

    eps: float
    """their relative rounding error"""
    steps: tuple[float, ...]
    """steps of the differences, as shares of what is moved: rounding costs eps / step, curvature step². The first does, as a
    rule; the others are tried where it does not"""
    derivative: float
    """relative tolerance of derivatives, unless another is asked for"""
    repeat: float
    """relative tolerance of numbers that ought to be the same"""


FINE = Precision(2.3e-16, (1e-5, 1e-3, 1e-7, 1e-9), 1e-5, 1e-9)
COARSE = Precision(1.2e-7, (5e-3, 5e-2, 2e-4, 1e-5), 1e-2, 1e-5)


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
        check.measure(states, actions, outcomes)
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
        self.tolerances = (FINE.derivative, COARSE.derivative) if tolerance is None else (tolerance, tolerance)
        self.sizes_out = self.sizes_in = np.zeros(0)
        """how large outputs (n + k + 1,) and inputs (n + m,) are in the present episode"""

    def rollout(self, seed: int, max_steps: int) -> tuple[list[np.ndarray], list[np.ndarray], list[Outcome]]:
        """An episode of random actions: states before the steps, actions, outcomes."""
        self.recorder.switch(True)
        self.recorder.reset(seed)
        states, actions = [self.recorder.get_state()], []
        outcomes: list[Outcome] = []
        while not outcomes or (len(outcomes) < max_steps and not outcomes[-1].ended):
            actions.append(self.recorder.random_action(COARSE.steps[0]))
            outcomes.append(self.recorder.step(actions[-1]))
            self.check_form(states[-1], actions[-1], outcomes[-1])
            states.append(outcomes[-1].state)
        self.recorder.check_untouched()
        return states, actions, outcomes

    def measure(self, states: list[np.ndarray], actions: list[np.ndarray], outcomes: list[Outcome]) -> None:
        """How large things are in an episode, whatever their units: an entry may be next to zero at a step."""
        self.sizes_out = np.abs([outcome.numbers for outcome in outcomes]).max(axis=0)
        of_states = np.abs(states).max(axis=0).astype(np.float64)
        of_states[of_states == 0] = of_states.max(initial=0.0) or 1.0
        low, high = self.recorder.bounds
        of_actions = np.abs([np.ravel(action) for action in actions]).max(axis=0).astype(np.float64)
        of_actions[of_actions == 0] = 1.0
        ranges = (high - low) / 2
        of_actions = np.where(np.isfinite(ranges) & (ranges > 0), ranges, of_actions)
        self.sizes_in = np.concatenate([of_states, of_actions])

    def check_form(self, before: np.ndarray, action: np.ndarray, outcome: Outcome) -> None:
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
        if any("state" in key for key in grad if key in KEYS) and step_gradient.state_size != size:
            raise GradientChannelError(
                f"get_state() returns {size} numbers, while the gradient is about a state of {step_gradient.state_size}."
            )
        for key, block in step_gradient.blocks.items():
            if not block.isfinite().all():
                index = np.argwhere(~block[0].isfinite().numpy())[0]
                raise GradientChannelError(f"{_entry(key, index.tolist())} is not finite.")
        for key, when, state in zip(STATES, ("before", "after"), (before, outcome.state)):
            if key in grad:
                _check_state(key, when, grad[key], state)
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
        n, k = len(expected.state), len(expected.obs)
        outputs = dict(zip(("state", "obs", "reward"), np.split(self.sizes_out, [n, n + k])))
        inputs = dict(zip(("state", "action"), np.split(self.sizes_in, [n])))
        pairs: list[tuple[str, np.ndarray, np.ndarray, float, Any]] = []
        for name in ("obs", "reward", "state", "terminated"):
            one, other = getattr(expected, name), getattr(found, name)
            size = outputs.get(name, np.zeros(1)).reshape(one.shape)
            tolerance = self.repeat_tolerance(one, expected.state)
            pairs.append((name, one, other, tolerance, tolerance * np.maximum(size, SMALL * np.max(size, initial=0.0))))
        for key, value in (expected.grad or {}).items():
            other = (found.grad or {}).get(key, np.full(value.shape, np.nan))
            if key in KEYS:
                tolerance = self.tolerances[is_coarse(value) or is_coarse(expected.state)]
                of, by = key.split("_")
                block = np.atleast_2d(value), tolerance, outputs[of], inputs[by]
                least = Given(*block).tolerated.reshape(value.shape)
            else:
                tolerance = self.repeat_tolerance(value, expected.state)
                least = tolerance * SMALL * np.max(np.abs(value), initial=0.0)
            pairs.append((f'info["grad"][{key!r}]', value, other, tolerance, least))
        for name, one, other, tolerance, least in pairs:
            close = np.abs(np.subtract(other, one, dtype=np.float64)) <= np.maximum(tolerance * np.abs(one), least)
            if not close.all():
                index = tuple(np.argwhere(~close)[0])
                raise GradientChannelError(f"{what} {name} ({one[index]:.8g}, then {other[index]:.8g}): {why}")

    def repeat_tolerance(self, array: np.ndarray, state: np.ndarray) -> float:
        return (COARSE if is_coarse(array) or is_coarse(state) else FINE).repeat

    def differences(self, where: str, state: np.ndarray, action: np.ndarray, outcome: Outcome) -> None:
        """Compare all six blocks, as one matrix, with differences of [state, obs, reward] by [state, action]."""
        grad = outcome.grad
        assert grad is not None
        wrt = {"state": len(state), "action": action.size}
        of = {"state": len(state), "obs": len(outcome.obs), "reward": 1}
        blocks = [[np.reshape(grad.get(f"{a}_{b}", np.zeros(of[a] * wrt[b])), (of[a], wrt[b])) for b in wrt] for a in of]
        given: np.ndarray = np.block(blocks)
        # An action of float32 may be worked with in float32 before anything else is.
        coarse_inputs = np.repeat([is_coarse(state), is_coarse(action)], list(wrt.values()))
        coarse = np.block([[np.full(block.shape, is_coarse(block)) for block in row] for row in blocks])
        coarse |= outcome.coarse[:, None] | coarse_inputs
        tolerance = np.where(coarse, self.tolerances[1], self.tolerances[0])

        self.recorder.switch(False)
        claim = Given(given, tolerance, self.sizes_out, self.sizes_in)
        differences = self.judge(claim, state, action, outcome.coarse, coarse_inputs)
        verdict = claim.verdict(differences)
        self.recorder.switch(True)
        self.recorder.handed_over.clear()

        def describe(row: int, column: int) -> str:
            (a, i), (b, j) = _names(of)[row], _names(wrt)[column]
            missing = "" if f"{a}_{b}" in grad else " (missing, so zero)"
            return f"{_entry(f'{a}_{b}', [j] if a == 'reward' else [i, j])}: given {given[row, column]:.6g}{missing}"

        # An entry that cannot be judged is the worst only if it is wrong.
        error = np.where(verdict.judged | (verdict.error > 1), verdict.error, 0.0)
        row, column = divmod(int(error.argmax()), given.shape[1])
        worst = f"{describe(row, column)}, central difference {differences.central[row, column]:.6g}"
        if not error[row, column] <= 1:
            raise GradientChannelError(
                f"The gradient is wrong {where}: {worst} ({(error > 1).sum()} of {given.size} entries differ"
                + ("; compared as float32, see whether float64 says the same)." if coarse[row, column] else ").")
            )
        self.report.transitions += 1
        self.report.entries += given.size
        self.report.unjudged += int((~verdict.judged).sum())
        if error[row, column] >= self.report.error:
            self.report.worst, self.report.error = worst, float(error[row, column])
        if not verdict.judged.all() and self.report.unjudged_example == "none":
            row, column = (int(index) for index in np.argwhere(~verdict.judged)[0])
            low, high = differences.low[row, column], differences.high[row, column]
            self.report.unjudged_example = f"{describe(row, column)}, and from {low:.3g} to {high:.3g} all would pass, {where}"

    def judge(
        self, given: Given, state: np.ndarray, action: np.ndarray, coarse_outputs: np.ndarray, coarse_inputs: np.ndarray
    ) -> Differences:
        """
        Differences with such steps as it takes to judge derivatives.

        :param given: the derivatives
        :param state: (n,)
        :param action: of any shape, m numbers
        :param coarse_outputs: which outputs are rounded to float32, (outputs,)
        :param coarse_inputs: which inputs are, (inputs,)
        """
        n = len(state)
        x = np.concatenate([state, action.ravel()], dtype=np.float64)
        seen: list[np.ndarray] = []

        def rounded(inputs: np.ndarray) -> np.ndarray:
            parts = inputs[:n].astype(state.dtype), inputs[n:].astype(action.dtype)
            return np.concatenate(parts, dtype=np.float64)

        def outputs(inputs: np.ndarray) -> np.ndarray:
            self.recorder.set_state(inputs[:n].astype(state.dtype))
            seen.append(self.recorder.step(inputs[n:].reshape(action.shape).astype(action.dtype)).numbers)
            return seen[-1]

        low, high = self.recorder.bounds
        space = np.concatenate([np.full(n, np.inf), np.minimum(x[n:] - low, high - x[n:])])
        found = unknown = Differences.unknown(len(coarse_outputs), len(x))
        settled = found.still
        for precision in (FINE, COARSE):
            eps = np.where(coarse_inputs, COARSE.eps, precision.eps)
            for share, coarse_share in zip(precision.steps, COARSE.steps):
                # What one step has shown is not looked at again: another step may happen to agree with anything.
                wanted = (coarse_outputs == (precision is COARSE))[:, None] & ~settled
                if not wanted.any():
                    break
                # Large numbers are coarse: a step must be many roundings long.
                steps = np.maximum(np.where(coarse_inputs, coarse_share, share) * self.sizes_in, 100 * eps * np.abs(x))
                steps = np.where(wanted.any(axis=0), np.minimum(steps, space), 0.0)
                tried = central_differences(outputs, rounded, x, steps, eps, self.sizes_out)
                better = tried.doubt < found.doubt
                # The longer the step, the more a function may do in between: a longer one is no evidence against anybody, and
                # a shorter one that shows something else is right.
                if share > precision.steps[0]:
                    better &= given.verdict(tried).error <= 1
                else:
                    better |= tried.excludes(found) & given.verdict(tried).settled
                better &= wanted
                found = found.replaced(better, tried)
                # A float may have been made of a float32.
                hidden = ~coarse_outputs & _in_float32(np.stack(seen))
                coarse_outputs = coarse_outputs | hidden
                found = found.replaced(hidden[:, None], unknown)
                settled = given.verdict(found).settled
        return found


def _in_float32(values: np.ndarray) -> np.ndarray:
    """
    :param values: (points, outputs)
    :return: which outputs are float32 numbers at all points, and not because they are simple ones as 0.5, (outputs,)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        fits = (values == values.astype(np.float32)).all(axis=0)
        return fits & ~(np.frexp(values)[0] * 2**12 % 1 == 0).all(axis=0)


def _check_state(key: str, when: str, given: np.ndarray, state: np.ndarray) -> None:
    """:raises GradientChannelError: if the state a gradient names is not the one that get_state() returns"""
    if given.shape != state.shape:
        raise GradientChannelError(
            f'info["grad"][{key!r}] has shape {given.shape}, while get_state() {when} the step returns {state.shape}.'
        )
    kind = np.float32 if is_coarse(given) or is_coarse(state) else np.float64
    wrong = np.flatnonzero(given.astype(kind) != state.astype(kind))
    if len(wrong):
        raise GradientChannelError(
            f'info["grad"][{key!r}] must be what get_state() returns {when} the step, and is not: its entry {wrong[0]} is '
            f"{given[wrong[0]]:.8g}, while the state's is {state[wrong[0]]:.8g}."
        )


def _names(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, i) for name, size in sizes.items() for i in range(size)]


def _entry(key: str, index: Sequence[int]) -> str:
    return f"{key}[{', '.join(map(str, index))}]"
