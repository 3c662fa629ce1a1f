"""TorchVecEnv and make_vec_env: what SB3 expects of its vectorised environments, in one batched call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from gippo_envs import BatchedEnv
from sb3_gippo import GIPPO, TorchVecEnv, make_vec_env
from tests.reference import LinearQuadratic


def linear(n_envs: int = 6, **kwargs: Any) -> TorchVecEnv:
    env = TorchVecEnv(BatchedEnv(LinearQuadratic, n_envs, max_episode_steps=5, limit=2.0), **kwargs)
    env.seed(0)
    return env


def run(env: VecEnv, steps: int, seed: int = 0) -> list[Any]:
    """Random actions; :return: everything that came back."""
    rng = np.random.default_rng(seed)
    results: list[Any] = [env.reset()]
    for _ in range(steps):
        results.append(env.step(rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)))  # type: ignore[misc]
    return results


def test_terminal_observations_time_limits_and_episodes_are_reported_as_monitor_does() -> None:
    env = linear()
    returns, lengths, seen = np.zeros(6), np.zeros(6, dtype=int), set()
    for observations, rewards, dones, infos in run(env, 20)[1:]:
        returns += rewards
        lengths += 1
        for index in range(6):
            if not dones[index]:
                assert infos[index] == {}
                continue
            info, truncated = infos[index], infos[index]["TimeLimit.truncated"]
            assert info["episode"]["r"] == pytest.approx(returns[index]) and info["episode"]["l"] == lengths[index]
            assert truncated == (abs(info["terminal_observation"][0]) <= 2.0)
            assert not truncated or lengths[index] == 5
            assert not np.array_equal(info["terminal_observation"], observations[index])
            returns[index], lengths[index] = 0, 0
            seen.add(truncated)
    assert seen == {True, False}


def test_a_reset_begins_all_episodes_anew() -> None:
    env = linear()
    run(env, 3)
    first_ends = [result[2].any() for result in run(env, 5)[1:]]
    env.close()
    assert first_ends[-1], "the time limit counts from the reset"
    lengths = [info["episode"]["l"] for result in run(linear(), 5)[1:] for info in result[3] if "episode" in info]
    assert max(lengths) == 5


def test_monitor_files_are_read_by_sb3(tmp_path: Path) -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 3, seed=0, monitor_dir=str(tmp_path), env_kwargs={"max_episode_steps": 4})
    results = run(env, 8)
    env.close()
    frame = load_results(str(tmp_path))
    expected = [info["episode"]["r"] for result in results[1:] for info in result[3] if "episode" in info]
    assert len(expected) == 6
    np.testing.assert_allclose(frame["r"], expected)
    assert set(frame["l"]) == {4}


def test_seeds_fix_all_that_is_random() -> None:
    first, again, other = (run(make_vec_env("CartPoleSwingUp-v0", 3, seed=seed), 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[3][0], again[3][0])
    assert not np.array_equal(first[0], other[0])
    spaces = [make_vec_env("CartPoleSwingUp-v0", 3, seed=5).action_space.sample() for _ in range(2)]
    np.testing.assert_array_equal(*spaces)
    env = make_vec_env("CartPoleSwingUp-v0", 3, seed=1)
    starts = [env.reset(), env.reset()]
    assert not np.array_equal(*starts), "the seed serves one reset"


@pytest.mark.parametrize("env_id", ["CartPoleSwingUp-v0", "DeJong-v0"])
def test_the_batched_form_is_the_looped_one(env_id: str) -> None:
    """From the same states, the same actions give the same numbers."""
    together, looped = make_vec_env(env_id, 4, seed=0), make_vec_env(env_id, 4, seed=0, vec_env_cls=DummyVecEnv)
    together.reset()
    looped.reset()
    states = np.random.default_rng(0).normal(size=(4, together.get_attr("core")[0].state_size)).astype(np.float32)
    together.env_method("set_state", states)
    for index in range(4):
        looped.env_method("set_state", states[index], indices=index)
    actions = np.random.default_rng(1).uniform(-1, 1, (4, *together.action_space.shape)).astype(np.float32)  # type: ignore[misc]
    found, expected = together.step(actions), looped.step(actions)
    for one, other in zip(found[:3], expected[:3]):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    for info, other_info in zip(found[3], expected[3]):
        assert info.get("TimeLimit.truncated", False) == other_info["TimeLimit.truncated"]
        assert ("terminal_observation" in info) == ("terminal_observation" in other_info)


def test_the_form_is_chosen_by_what_is_asked_for() -> None:
    assert isinstance(make_vec_env("CartPoleSwingUp-v0", 2), TorchVecEnv)
    separate = (
        {"vec_env_cls": DummyVecEnv},
        {"wrapper_class": gym.wrappers.ClipAction},
        {"monitor_kwargs": {"info_keywords": ()}},
    )
    for kwargs in separate:
        env = make_vec_env("CartPoleSwingUp-v0", 2, **kwargs)  # type: ignore[arg-type]
        assert isinstance(env, DummyVecEnv) and env.num_envs == 2
    assert isinstance(make_vec_env("Pendulum-v1", 2), DummyVecEnv)
    assert isinstance(make_vec_env(lambda: gym.make("DeJong-v0"), 2), TorchVecEnv)
    env = make_vec_env("DeJong-v0", 2, env_kwargs={"dim": 7}, vec_env_cls=DummyVecEnv)
    assert env.action_space.shape == (7,)
    assert make_vec_env("DeJong-v0", 2, env_kwargs={"dim": 7}).action_space.shape == (7,)


def test_ids_of_ones_own_reach_subprocesses() -> None:
    # A subprocess imports nothing but what it unpickles.
    env = make_vec_env("DeJong-v0", 2, seed=0, vec_env_cls=SubprocVecEnv, env_kwargs={"dim": 2})
    try:
        env.reset()
        _, rewards, dones, _ = env.step(np.zeros((2, 2), dtype=np.float32))
        assert rewards.tolist() == [0.0, 0.0] and dones.all()
    finally:
        env.close()


def test_it_cannot_be_changed_in_parts() -> None:
    env = linear()
    for change in (lambda: env.env_method("get_state", indices=[0]), lambda: env.set_attr("x", 1, indices=2)):
        with pytest.raises(ValueError, match=r"^A TorchVecEnv is one batched environment: .* some indices only\.$"):
            change()
    env.set_attr("differentiable", True)
    assert env.get_attr("differentiable", indices=[0, 3]) == [True, True]
    assert env.has_attr("core") and not env.has_attr("nothing")


def test_pictures_of_all_environments() -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=0)
    env.reset()
    assert [image.shape for image in env.get_images()] == [(300, 600, 3)] * 4  # type: ignore[union-attr]
    tiled = env.render(mode="rgb_array")
    assert tiled is not None and tiled.shape == (600, 1200, 3)


def test_evaluation_reads_its_episodes() -> None:
    env = make_vec_env("DeJong-v0", 4, seed=0)
    assert env.env_is_wrapped(Monitor) == [True] * 4 and env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    model = GIPPO("MlpPolicy", env, n_steps=2, batch_size=8, seed=0, device="cpu")
    mean, _ = evaluate_policy(model, make_vec_env("DeJong-v0", 3, seed=1), n_eval_episodes=9)
    action, _ = model.predict(np.zeros(1, dtype=np.float32), deterministic=True)
    assert mean == pytest.approx(-((5.12 * action.item()) ** 2), rel=1e-5)


def test_gradients_are_there_where_they_were_asked_for_and_only_there() -> None:
    env = linear()
    env.reset()
    actions = np.zeros((6, 2))
    env.step(actions)
    assert env.step_gradient is None
    env.env_method("set_differentiable", True)
    env.step(actions)
    assert env.step_gradient is not None and env.step_gradient.state_size == 3
    env.reset()
    assert env.step_gradient is None
