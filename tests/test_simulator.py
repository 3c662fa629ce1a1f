"""Torch simulators that keep their state to themselves, and the gradient path's copies on the CPU."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from gippo_envs import BatchedEnv, TorchSimulatorEnv
from sb3_gippo import DifferentiableVecEnv, TorchVecEnv, check_differentiable_vec_env
from tests.reference import LinearQuadratic, difference_gradients
from tests.test_action_gradients import assert_close, rollout

CORE: Any = LinearQuadratic()


class Simulator:
    """LinearQuadratic as an object that writes its state in place."""

    def __init__(self, num_envs: int = 3, fault: str = ""):
        self.core, self.num_envs, self.fault = LinearQuadratic(limit=2.5), num_envs, fault
        self.observation_space, self.action_space = self.core.observation_space, self.core.action_space
        self.x = th.zeros(num_envs, 3, dtype=th.float64)

    def reset(self, generator: th.Generator) -> Any:
        self.x *= 0.0
        self.x += self.core.initial_state(self.num_envs, generator)
        return self.core.observe(self.x).numpy() if self.fault == "array" else self.core.observe(self.x)

    def step(self, action: th.Tensor) -> Any:
        if self.fault == "numpy":
            self.x, action = self.x.detach(), action.detach()
        following, reward, terminated = self.core.step(self.x.clone(), action)
        self.x *= 0.0
        self.x += following
        return self.core.observe(self.x), reward, False if self.fault == "bool" else terminated

    def get_state(self) -> th.Tensor:
        return self.x[:, 0] if self.fault == "shape" else self.x

    def set_state(self, state: th.Tensor) -> None:
        self.x = state.detach() if self.fault == "cut" else state + 1 if self.fault == "other" else state


@pytest.mark.parametrize("normalized", [False, True])
def test_action_gradients_through_the_real_rollout(normalized: bool) -> None:
    env: Any = DifferentiableVecEnv(TorchSimulatorEnv(Simulator(5), 4))
    env = VecNormalize(env) if normalized else env
    model, record = rollout(env, 12, policy_kwargs={"squash_actions": normalized})
    dones, truncated = np.array(record.dones), np.array(record.truncated)
    assert (dones[:-1] & truncated[:-1]).any() and (dones[:-1] & ~truncated[:-1]).any()
    # VecNormalize rounds observations and rewards to float32.
    assert_close(model, difference_gradients(model, Simulator().core, record), 1e-5 if normalized else 1e-6)


def test_the_checker_passes_it() -> None:
    report = check_differentiable_vec_env(TorchSimulatorEnv(Simulator(2), 4), n_episodes=2, max_steps=5)
    assert report.unjudged == 0 and report.error < 0.1


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (
            "shape",
            r"Simulator.get_state\(\) has returned a tensor \(3,\) of torch.float64; expected was one of floats \(3, n\)",
        ),
        ("other", r"get_state\(\) is not what was given to set_state\(\)"),
        ("cut", r"Simulator.set_state\(\) cuts the graph: keep the tensor"),
        ("array", r"Simulator.reset\(\) has returned a ndarray; expected was a tensor"),
        ("bool", r"Simulator.step\(\) has returned \(Tensor, Tensor, bool\); expected were three tensors"),
        ("numpy", r"Nothing that Simulator.step\(\) gives depends on state and action by a graph"),
    ],
)
def test_what_does_not_fit_ends_in_a_sentence(fault: str, sentence: str) -> None:
    env = TorchSimulatorEnv(Simulator(fault=fault), 5)
    with pytest.raises(ValueError, match=sentence):
        env.reset(seed=0)
        for on in (False, True):  # a first step without gradients hides nothing
            env.set_differentiable(on)
            env.step(np.zeros((3, 2)))


def test_a_reset_in_place_leaves_the_others_alone() -> None:
    env = TorchSimulatorEnv(Simulator(3), 4, stagger=True)
    env.set_differentiable(True)
    env.reset(seed=0)
    ended = 0
    for _ in range(8):
        _, _, terminated, truncated, _ = env.step(np.full((3, 2), 0.1))
        done, gradient = terminated | truncated, env.step_gradient
        assert gradient is not None and gradient.next_state is not None
        same = (env.get_state() == gradient.next_state).all(axis=1)
        np.testing.assert_array_equal(same, ~done)
        np.testing.assert_array_equal(gradient.next_state, gradient.outputs[0].detach())
        np.testing.assert_array_equal(
            gradient.next_state, CORE.step(*map(th.from_numpy, (gradient.state, gradient.action)))[0]
        )
        ended += int(done.any() and not done.all())
    assert ended > 2


def test_it_can_be_copied_in_the_middle() -> None:
    env = TorchSimulatorEnv(Simulator(2), 3)
    env.set_differentiable(True)
    env.reset(seed=0)
    env.step(np.zeros((2, 2)))
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    outcomes = [np.concatenate([each.step(np.ones((2, 2)))[0] for _ in range(5)]) for each in (env, *twins)]
    for outcome in outcomes[1:]:
        np.testing.assert_array_equal(outcome, outcomes[0])


def test_no_copies_on_the_cpu() -> None:
    env = TorchVecEnv(BatchedEnv(LinearQuadratic, 4, 5, differentiable=True))
    env.reset()
    env.step(np.zeros((4, 2)))
    gradient: Any = env.step_gradient
    held = {"state": gradient.inputs[0], "action": gradient.inputs[1]}
    held |= dict(zip(("next_state", "observation", "reward"), gradient.outputs))
    for name, tensor in held.items():
        assert getattr(gradient, name).__array_interface__["data"][0] == tensor.data_ptr(), name
    bars = th.ones(4, 3, dtype=th.float64), th.ones(4, dtype=th.float64)
    moved: list[Any] = []

    class Watch(th.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_to_copy" in str(func):
                moved.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        gradient.vjp(None, *bars)
    assert moved == []
    with Watch():
        gradient.vjp(None, *(bar.float() for bar in bars))
    assert len(moved) == 2 + 2 + 2, "another type: two made here, two cotangents in, two out"
