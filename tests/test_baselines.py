"""What the alternatives to GI-PPO do as SB3's algorithms do: learn, save, go on, answer, and refuse what makes no sense."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_gippo import LR, LRRP, PE, RP, RPO, make_vec_env
from sb3_gippo.common.policies import MlpPolicy
from tests.helpers import Strike, assert_same_learner, cartpole, is_finite, logged

POLICY_GRADIENTS: list[Any] = [LR, RP, LRRP, RPO]
ALL: list[Any] = [*POLICY_GRADIENTS, PE]
ITERATION = 4 * 8


def small(algorithm: Any, env: VecEnv | None = None, **kwargs: Any) -> Any:
    settings = {"n_steps": 8, "seed": 0, "device": "cpu", "critic_epochs": 3, **kwargs}
    if algorithm is PE:
        settings = {"batch_size": 16, "n_epochs": 2, **settings}
    return algorithm("MlpPolicy", cartpole() if env is None else env, **settings)


def go_on(model: Any, env: VecEnv) -> Any:
    env.seed(7)
    model.set_env(env, force_reset=True)
    set_random_seed(7)
    return model.learn(3 * ITERATION, reset_num_timesteps=False)


@pytest.mark.parametrize("kwargs", [{}, {"policy_kwargs": {"squash_actions": True, "state_dependent_std": True}}])
@pytest.mark.parametrize("algorithm", ALL)
def test_learning_goes_on_exactly_after_loading(algorithm: Any, kwargs: dict[str, Any], tmp_path: Path) -> None:
    if algorithm is not LR:
        kwargs = {**kwargs, "target_critic_tau": 0.3}
    env = VecNormalize(cartpole())
    model = small(algorithm, env, **kwargs).learn(3 * ITERATION)
    model.save(tmp_path / "model", include=["critic_fit"])
    env.save(str(tmp_path / "statistics.pkl"))
    other_env = VecNormalize.load(str(tmp_path / "statistics.pkl"), cartpole())
    loaded = algorithm.load(tmp_path / "model", env=other_env, device="cpu")
    assert_same_learner(model, loaded)
    observations = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    answers = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    np.testing.assert_array_equal(*answers)
    before = [parameter.clone() for parameter in loaded.policy.parameters()]
    assert_same_learner(go_on(model, env), go_on(loaded, other_env))
    assert any(not th.equal(a, b) for a, b in zip(before, loaded.policy.parameters()))
    assert is_finite(model)


@pytest.mark.parametrize("algorithm", ALL)
def test_equal_seeds_learn_the_same_and_every_argument_is_kept(algorithm: Any) -> None:
    one, other = (small(algorithm).learn(2 * ITERATION) for _ in range(2))
    assert_same_learner(one, other)
    for name in inspect.signature(algorithm).parameters:
        if name != "_init_setup_model":
            assert hasattr(one, name) or hasattr(one, f"_{name}"), name


@pytest.mark.parametrize("algorithm", ALL)
def test_callbacks_are_called_and_may_stop_it(algorithm: Any, tmp_path: Path) -> None:
    struck: list[int] = []
    model = small(algorithm, tensorboard_log=str(tmp_path))
    model.learn(2 * ITERATION, callback=[Strike(lambda: struck.append(1), 3), Strike(lambda: struck.append(2))])
    assert struck == [1, 2, 2]
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"], "logged under its own name"
    assert model.learn(10 * ITERATION, callback=lambda *_: False).num_timesteps == 4


@pytest.mark.parametrize("algorithm, learning_rate", [(LRRP, 3e-2), (RPO, 1e-2), (PE, 1e-2)])
def test_it_learns_a_map(algorithm: Any, learning_rate: float) -> None:
    env = make_vec_env("DeJongContext-v0", 64, seed=0)
    kwargs = {"batch_size": 64, "n_epochs": 2} if algorithm is PE else {}
    model = algorithm("MlpPolicy", env, learning_rate, n_steps=1, critic_epochs=1, seed=0, device="cpu", **kwargs)
    model.learn(64)
    first = np.mean([episode["r"] for episode in model.ep_info_buffer])
    model.learn(64 * 40)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 0.3 * first


def test_lr_learns_without_gradients_and_asks_for_none() -> None:
    env = make_vec_env("DeJong-v0", 64, seed=0, env_kwargs={"dim": 2})
    model = LR("MlpPolicy", env, 1e-2, n_steps=1, critic_epochs=1, seed=0, device="cpu")
    asked: list[bool] = []
    model.learn(64, callback=Strike(lambda: asked.append(env.get_attr("differentiable")[0]), 1))
    assert asked == [False]
    first = np.mean([episode["r"] for episode in model.ep_info_buffer])
    model.learn(64 * 100)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 0.3 * first
    assert model.rollout_buffer.step_gradients == []
    LR("MlpPolicy", sb3_make_vec_env("Pendulum-v1", 2), n_steps=8, device="cpu").learn(32)


@pytest.mark.parametrize("algorithm", [RP, LRRP, RPO])
def test_without_gradients_the_others_refuse_in_one_sentence(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{algorithm.__name__} learns from the gradients of its environments only, .*\.$"):
        algorithm("MlpPolicy", sb3_make_vec_env("Pendulum-v1", 4), n_steps=8, device="cpu").learn(32)


def test_lr_refuses_policies_that_are_no_gaussian() -> None:
    with pytest.raises(ValueError, match=r"^LR is for continuous actions of a diagonal Gaussian, and its actions are Discr"):
        LR("MlpPolicy", sb3_make_vec_env("CartPole-v1", 4), device="cpu")


@pytest.mark.parametrize(
    "algorithm, kwargs, sentence",
    [
        (PE, {"radius": 1.5}, "`radius` must be a number between 0 and 1, not 1.5"),
        (PE, {"n_neighbours": 0}, "`n_neighbours` must be an integer of at least 1, not 0"),
        (RPO, {"n_epochs": 0}, "`n_epochs` must be an integer of at least 1, not 0"),
        (RPO, {"clip_low": 1.2}, "`clip_low` must be a number between 0 and 1, not 1.2"),
        (RPO, {"clip_high": -1}, "`clip_high` must be a number finite and at least 0, not -1"),
        (RPO, {"kl_coef": float("nan")}, "`kl_coef` must be a number finite and at least 0, not nan"),
        (RPO, {"ent_coef": -1}, "`ent_coef` must be a number finite and at least 0, not -1"),
        (
            LRRP,
            {"n_steps": 1, "per_step": False, "env": 3},
            "over the halves of 3 steps in a window: it needs 4",
        ),
        (LRRP, {"per_step": True, "env": 3}, "over the halves of 3 environments: it needs 4 or more"),
        (RP, {"critic_kwargs": {"windows": 3}}, "`critic_kwargs` has no 'windows' here"),
    ],
)
def test_what_makes_no_sense_is_refused(algorithm: Any, kwargs: dict[str, Any], sentence: str) -> None:
    env = cartpole(kwargs.pop("env", 4))
    with pytest.raises(AssertionError, match=sentence):
        small(algorithm, env, **kwargs)


@pytest.mark.parametrize("algorithm", [RP, LRRP, RPO, PE])
def test_gradients_that_are_not_finite_are_left_out(algorithm: Any) -> None:
    model = small(algorithm)

    def spoil() -> None:
        model.rollout_buffer.action_gradients[:] = 0
        model._has_gradients = False

    model.learn(2 * ITERATION, callback=Strike(spoil))
    assert is_finite(model)
    before = [parameter.clone() for parameter in model.actor.mean]
    model.learn(ITERATION, callback=Strike(spoil))
    moved = any(not th.equal(a, b) for a, b in zip(before, model.actor.mean))
    assert moved == (algorithm in (LRRP, PE)), "LR's and PPO's steps need none"


class Dropping(MlpPolicy):
    """An actor with dropout and running statistics."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        layers = [th.nn.Dropout(0.5), th.nn.Linear(5, 64), th.nn.BatchNorm1d(64)]
        self.mlp_extractor.policy_net = th.nn.Sequential(*layers)


@pytest.mark.parametrize("algorithm", POLICY_GRADIENTS)
def test_layers_that_count_do_so_in_the_step_alone(algorithm: Any) -> None:
    model = algorithm(Dropping, cartpole(), n_steps=8, critic_epochs=1, seed=0, device="cpu").learn(2 * ITERATION)
    counted = model.policy.mlp_extractor.policy_net[2].num_batches_tracked.item()
    assert counted == (2 * model.n_epochs if algorithm is RPO else 2) and is_finite(model)


def test_a_step_whose_gradient_is_not_finite_is_left_out() -> None:
    model = small(RP).learn(ITERATION)
    before = [parameter.clone() for parameter in model.actor.mean]
    for factor, moves in ((float("inf"), False), (1.0, True)):
        model._actor_step(factor * sum(parameter.sum() for parameter in model.actor.mean))
        assert any(not th.equal(a, b) for a, b in zip(before, model.actor.mean)) == moves


def test_what_they_log() -> None:
    for algorithm, keys in {
        LR: {"train/critic_loss"},
        RP: {"train/action_grad_norm", "train/critic_loss"},
        LRRP: {"train/action_grad_norm", "train/lr_share"},
        RPO: {"train/action_grad_norm", "train/approx_kl", "train/clip_fraction"},
    }.items():
        found = logged(small(algorithm).learn(ITERATION))
        assert {*keys, "train/n_updates", "train/learning_rate"} <= found.keys(), algorithm
    assert 0 <= logged(small(LRRP).learn(ITERATION))["train/lr_share"] <= 1
