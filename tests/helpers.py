"""What many tests share: small models and environments, interrupts, what a model logged, and whether two are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.on_policy.gradient_ppo import GradientPPO

SOLVERS = ["trust_region", "published"]
SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
"""a short window"""


def cartpole(n_envs: int = 4, **kwargs: Any) -> VecEnv:
    return make_vec_env("CartPoleSwingUp-v0", n_envs, seed=1, **kwargs)


def small(env: VecEnv | str | None = None, policy: Any = "MlpPolicy", **kwargs: Any) -> GIPPO:
    """A model with a short window."""
    return GIPPO(policy, cartpole() if env is None else env, **{**SETTINGS, **kwargs})


class Strike(BaseCallback):
    """Does something in one step, or at the end of a rollout."""

    def __init__(self, deed: Callable[[], Any], step: int | None = None):
        super().__init__()
        self.deed, self.step = deed, step

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.deed()
        return True

    def _on_rollout_end(self) -> None:
        if self.step is None:
            self.deed()


def interrupt() -> None:
    raise KeyboardInterrupt


def logged(model: GradientPPO) -> dict[str, Any]:
    """:return: what the last update logged"""
    return model.logger.name_to_value


def collected(model: Any, callback: Any = None) -> Any:
    """Let the model collect one window."""
    _, callback = model._setup_learn(10**6, callback)
    callback.on_training_start({}, {})
    assert model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, model.n_steps)
    return model


def is_finite(model: GradientPPO) -> bool:
    """:return: whether all that the model learns with is"""
    state = {} if model.actor is None else model._learner_state(with_critic_fit=True)
    return all(value.isfinite().all() for value in tensors([model.get_parameters(), state]))


def tensors(tree: Any) -> list[th.Tensor]:
    """:return: all tensors and numbers in dicts, lists and tuples, in order"""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in tensors(branch)]
    return [th.as_tensor(tree)] if isinstance(tree, (th.Tensor, int, float)) else []


def assert_same_learner(one: GradientPPO, other: GradientPPO) -> None:
    """Parameters, optimizers, α and all that goes with it are the same, bit for bit."""
    assert (one.num_timesteps, one._n_updates) == (other.num_timesteps, other._n_updates)
    assert_same_tree(one.get_parameters(), other.get_parameters())
    assert (one.actor is None) == (other.actor is None)
    if one.actor is not None:
        assert_same_tree(one._learner_state(with_critic_fit=True), other._learner_state(with_critic_fit=True))


def assert_same_tree(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        one, other = [*one.items()], [*other.items()]
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (mine, theirs) in enumerate(zip(one, other)):
            assert_same_tree(mine, theirs, f"{where}/{index}")
    elif isinstance(one, th.Tensor):
        assert th.equal(one, other), where
    else:
        assert one == other, where
