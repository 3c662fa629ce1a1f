"""The RP baseline: its step is the gradient of the window's return, it learns, and it refuses to go without gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_gippo import RP, make_vec_env
from sb3_gippo.on_policy.actor import gaussian


def test_it_ascends_the_reparameterised_return() -> None:
    model = RP("MlpPolicy", make_vec_env("CartPoleSwingUp-v0", 4, seed=0), 1e-3, 8, critic_epochs=0, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    gradients: list[th.Tensor] = []

    class Watched(RP):
        def train(self) -> None:
            batch = self.rollout_buffer.gradient_batch()  # type: ignore[attr-defined]
            mean, std = gaussian(self.policy, batch.observations)
            objective = (batch.action_gradients * (mean + std * batch.noise)).sum(1).mean()
            assert self.actor is not None
            actor = [*self.actor.mean, *self.actor.std]
            gradients.extend(th.autograd.grad(objective, actor))
            super().train()

    model.__class__ = Watched
    model.learn(32)
    assert model.actor is not None
    actor = [*model.actor.mean, *model.actor.std]
    moved = {id(p): p.detach() - old for p, old in zip(model.policy.parameters(), before)}
    for parameter, gradient in zip(actor, gradients):
        large = gradient.abs() > 1e-6
        # Adam's first step is its learning rate along the sign.
        assert th.allclose(moved[id(parameter)][large], 1e-3 * gradient[large].sign(), atol=2e-5)
    critic = [p for p in model.policy.parameters() if not any(p is q for q in actor)]
    assert critic and not any(moved[id(p)].any() for p in critic)


def test_it_learns_a_map_and_goes_on_after_loading(tmp_path: Path) -> None:
    env = make_vec_env("DeJongContext-v0", 64, seed=0)
    model = RP("MlpPolicy", env, 1e-2, n_steps=1, critic_epochs=2, target_critic_tau=0.5, seed=0, device="cpu").learn(64 * 150)
    assert evaluate_policy(model, env, 128, warn=False)[0] > -2.0
    model.save(tmp_path / "rp")
    loaded = RP.load(tmp_path / "rp", env=env, device="cpu")
    observations = np.zeros((1, 4), dtype=np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    loaded.learn(64, reset_num_timesteps=False)


def test_without_gradients_it_refuses_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^RP learns from the gradients of its environments only, .*\.$"):
        RP("MlpPolicy", sb3_make_vec_env("Pendulum-v1"), n_steps=8, device="cpu").learn(8)
