"""Models on another device than the environments': the same training as on the CPU, and nothing mixed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from gippo_envs import BatchedEnv, SingleEnv
from gippo_envs.core import transition
from gippo_envs.step_gradient import GraphStepGradient
from sb3_gippo import GIPPO, LRRP, PE, RP, RPO, check_differentiable_env
from sb3_gippo.on_policy.gradient_ppo import GradientPPO
from sb3_gippo.on_policy.policy_gradient import PolicyGradient
from sb3_gippo.rollout.buffer import GradientRolloutBuffer
from sb3_gippo.rollout.step_gradient import states_of
from sb3_gippo.vec_env import TorchVecEnv
from tests.helpers import SETTINGS, SOLVERS, collected, logged
from tests.reference import LinearQuadratic, linear_quadratic
from tests.second_device import DEVICE, Elsewhere, second_device

# SB3 recommends the CPU for small networks.
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to run .* on the GPU")

N_ENVS = 2
ITERATION = N_ENVS * SETTINGS["n_steps"]
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3))
FULL: dict[str, Any] = {
    **{name: SETTINGS[name] for name in ("n_steps", "seed")},
    "critic_epochs": 2,
    "critic_kwargs": {"n_windows": 2},
    "target_critic_tau": 0.5,
}
PPO: dict[str, Any] = {"batch_size": 8, "n_epochs": 2, "target_kl": 0.5}
POLICY = {"squash_actions": True, "state_dependent_std": True, "layer_norm": True}
LEARNERS: dict[str, tuple[type[GradientPPO], dict[str, Any]]] = {
    **{solver: (GIPPO, {**PPO, "alpha_solver": solver}) for solver in SOLVERS},
    "rp": (RP, {}),
    "lrrp": (LRRP, {}),
    "rpo": (RPO, {}),
    "pe": (PE, PPO),
}


def dense(dtype: str = "float64") -> VecEnv:
    """Environments that hand over Jacobians; some episodes end within a window."""
    env = DummyVecEnv([partial(linear_quadratic, 6, limit=2.0, dtype=dtype)] * N_ENVS)
    env.seed(0)
    return env


def batched() -> VecEnv:
    """The same as one environment, which keeps a graph."""
    env = TorchVecEnv(BatchedEnv(LinearQuadratic, N_ENVS, max_episode_steps=6, limit=2.0))
    env.seed(0)
    return env


def made(learner: str, env: VecEnv, device: Any, **kwargs: Any) -> GradientPPO:
    algorithm, own = LEARNERS[learner]
    return algorithm("MlpPolicy", env, device=device, **{**FULL, **own, **kwargs})


def assert_alike(model: GradientPPO, other: GradientPPO) -> None:
    """Both have learned the same, to rounding."""
    ours, theirs = learned(model), learned(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        th.testing.assert_close(value, theirs[name], rtol=1e-3, atol=2e-5, msg=partial("{}: {}".format, name))


def learned(model: GradientPPO) -> dict[str, th.Tensor]:
    state = {f"policy.{name}": value.cpu() for name, value in model.policy.state_dict().items()}
    if model.target_critic is not None:
        state |= {f"target.{name}": value.cpu() for name, value in model.target_critic.copy.state_dict().items()}
    if isinstance(model, GIPPO) and model.alpha_step is not None:
        state["alpha"] = th.tensor(model.alpha_step.alpha)
    return state


def assert_there(model: GradientPPO) -> None:
    """All that learns lives on the second device."""
    assert model.actor is not None and model.critic_fit is not None and model.target_critic is not None
    modules = [*model.policy.parameters(), *model.target_critic.copy.parameters()]
    assert all(isinstance(parameter, Elsewhere) for parameter in modules)
    optimizers: list[th.optim.Optimizer | None] = [model.critic_fit.optimizer]
    optimizers += [model.actor_optimizer if isinstance(model, PolicyGradient) else model.policy.optimizer]
    if isinstance(model, GIPPO):
        assert model.alpha_step is not None
        optimizers += [model.alpha_step.optimizer]
    for optimizer in optimizers:
        assert optimizer is not None
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        assert all(isinstance(moment, Elsewhere) for moment in moments)
    assert any(optimizer.state for optimizer in optimizers if optimizer is not None)


@pytest.mark.parametrize("environments", [dense, batched])
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_training_on_another_device_is_that_on_the_cpu(
    learner: str, environments: Callable[[], VecEnv], tmp_path: Path
) -> None:
    def learn(where: Any) -> tuple[GradientPPO, VecNormalize]:
        env = VecNormalize(environments())
        model = made(learner, env, where, policy_kwargs=POLICY)
        return model.learn(2 * ITERATION), env

    expected, _ = learn("cpu")
    with second_device():
        model, env = learn(DEVICE)
        assert_there(model)
        assert "train/action_grad_norm" in logged(model)
        assert_alike(model, expected)
        found, _ = model.predict(OBSERVATIONS, deterministic=True)
        model.save(tmp_path / "model", include=["critic_memory"])
    np.testing.assert_allclose(found, expected.predict(OBSERVATIONS, deterministic=True)[0], atol=1e-4)
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
    assert_alike(loaded, expected)
    np.testing.assert_allclose(loaded.predict(OBSERVATIONS, deterministic=True)[0], found, atol=1e-6)
    loaded.learn(ITERATION, reset_num_timesteps=False)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_model_of_the_cpu_goes_on_on_another_device(learner: str, tmp_path: Path) -> None:
    def go_on(where: Any) -> GradientPPO:
        model = LEARNERS[learner][0].load(tmp_path / "model", env=batched(), device=where)
        set_random_seed(7)
        return model.learn(ITERATION, reset_num_timesteps=False)

    made(learner, batched(), "cpu").learn(ITERATION).save(tmp_path / "model", include=["critic_memory"])
    expected = go_on("cpu")
    with second_device():
        model = go_on(DEVICE)
        assert_there(model)
        assert_alike(model, expected)


@dataclass
class LinearQuadraticThere(LinearQuadratic):
    """The environment with its tensors on the second device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.a, self.b = self.a.to(DEVICE), self.b.to(DEVICE)

    def observe(self, state: th.Tensor) -> th.Tensor:
        return super().observe(state.cpu()).to(DEVICE)


class GraphThere(TorchVecEnv):
    """Its graphs are on the second device."""

    def step_wait(self) -> Any:
        outcome = super().step_wait()
        assert self.env.transition is not None
        state, action = (leaf.to(DEVICE) for leaf in self.env.transition[:2])
        core = LinearQuadraticThere(limit=2.0)
        self.step_gradient = GraphStepGradient.from_transition(transition(core, state, action, differentiable=True))
        return outcome


class SingleThere(SingleEnv):
    """Its Jacobians and states are tensors on the second device."""

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        if "grad" in info:
            info["grad"] = {key: th.as_tensor(value, device=DEVICE) for key, value in info["grad"].items()}
        return *outcome, info

    def get_state(self) -> Any:
        return th.as_tensor(super().get_state(), device=DEVICE)


def graph_there() -> VecEnv:
    env = GraphThere(BatchedEnv(LinearQuadratic, N_ENVS, max_episode_steps=6, limit=2.0))
    env.seed(0)
    return env


def jacobians_there() -> VecEnv:
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(SingleThere(LinearQuadratic, limit=2.0), 6)] * N_ENVS)
    env.seed(0)
    return env


@pytest.mark.parametrize("where", ["cpu", DEVICE])
@pytest.mark.parametrize("here, there", [(batched, graph_there), (dense, jacobians_there)])
def test_environments_may_hand_over_derivatives_of_any_device(
    here: Callable[[], VecEnv], there: Callable[[], VecEnv], where: Any
) -> None:
    expected = made("trust_region", here(), "cpu").learn(ITERATION)
    with second_device():
        model = made("trust_region", there(), where).learn(ITERATION)
        assert_alike(model, expected)
        assert isinstance(model.rollout_buffer, GradientRolloutBuffer)
        assert all(states_of(step) is not None for step in model.rollout_buffer.step_gradients)


def test_the_checker_takes_derivatives_of_any_device() -> None:
    with second_device():
        report = check_differentiable_env(SingleThere(LinearQuadratic), n_episodes=1, max_steps=2)
    assert report.transitions > 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_no_float64_is_needed_on_the_device(learner: str) -> None:
    def learn(where: Any) -> GradientPPO:
        return made(learner, VecNormalize(dense("float32")), where).learn(ITERATION)

    expected = learn("cpu")
    with second_device(without_float64=True):
        model = learn(DEVICE)
        assert_there(model)
        assert_alike(model, expected)


def test_the_sweep_waits_for_the_device_no_longer_in_a_longer_window() -> None:
    waits = []
    for n_steps in (4, 12):
        with second_device() as device:
            model = collected(made("trust_region", dense(), DEVICE, n_steps=n_steps, target_critic_tau=None))
            before = device.waits
            model._differentiate(model.rollout_buffer)
            waits.append(device.waits - before)
    assert waits[0] == waits[1] > 0


REFUSED: dict[str, Callable[[th.Tensor], Any]] = {
    "sum": lambda there: there + th.ones(3),
    "product": lambda there: th.ones(2, 3) @ there,
    "choice": lambda there: th.ones(3).where(there > 0, 0.0),
    "stack of a number": lambda there: th.stack([there[0], th.tensor(1.0)]),
    "in place": lambda there: th.ones(3).add_(there),
    "number in place": lambda there: th.tensor(1.0).add_(there[0]),
    "indices": lambda there: th.ones(3)[there.long()],
    "written values": lambda there: there.index_put_((th.tensor([0]),), th.ones(1)),
    "backward": lambda there: there.requires_grad_().square().backward(th.ones(3)),
    "array": lambda there: there.numpy(),
    "numpy's array": lambda there: np.asarray(there),
    "fused optimizer": lambda there: fused_step(there),
    "tensor without data": lambda there: there + there.new_tensor([1.0, 2.0, 3.0]),
}


def fused_step(there: th.Tensor) -> None:
    parameter = th.nn.Parameter(there)
    parameter.grad = th.ones_like(there)
    th.optim.Adam([parameter]).step()
    th.optim.Adam([parameter], fused=True).step()


@pytest.mark.parametrize("case", list(REFUSED))
def test_the_second_device_refuses_what_a_real_one_would(case: str) -> None:
    with second_device(), pytest.raises((RuntimeError, TypeError)):
        REFUSED[case](th.ones(3, device=DEVICE))


def test_the_second_device_does_what_a_real_one_would() -> None:
    with second_device():
        there = th.zeros(2, 3, device=DEVICE)
        there[0] = th.ones(3)
        there[th.tensor([False, True])] = 2.0
        total = (there * th.tensor(0.5)).where(there > 1, th.tensor(0.0))[th.tensor([0, 1, 1])]
        assert isinstance(total, Elsewhere) and total.device == DEVICE
        assert total.cpu().tolist() == [[0.0] * 3, [1.0] * 3, [1.0] * 3] and total.sum().item() == 6.0
