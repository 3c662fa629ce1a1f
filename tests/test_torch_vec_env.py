"""TorchVecEnv is what SB3 expects of a VecEnv, trains its algorithms, and gives GIPPO the run that dense gradients give."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import runpy
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.results_plotter import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize, VecVideoRecorder

from gippo_envs.core import BatchedEnv, FunctionalEnv, SingleEnv
from gippo_envs.step_gradient import GraphStepGradient
from sb3_gippo import GIPPO, TorchVecEnv, make_vec_env
from sb3_gippo.rollout.step_gradient import DenseStepGradient
from tests.reference import Float64Policy, LinearQuadratic
from tests.second_device import DEVICE, Elsewhere, second_device

FUNCTIONAL = [env_id for env_id, spec in gym.registry.items() if spec.entry_point == "gippo_envs.core:SingleEnv"]


def torch_vec_env(n_envs: int = 3, max_episode_steps: int | None = 4, **kwargs: Any) -> TorchVecEnv:
    return TorchVecEnv(BatchedEnv(LinearQuadratic, n_envs, max_episode_steps, **kwargs))


def actions(env: VecEnv) -> np.ndarray:
    return np.stack([env.action_space.sample() for _ in range(env.num_envs)])


def run(env: VecEnv, steps: int, seed: int = 0) -> list[Any]:
    """Random actions; :return: everything that came back."""
    rng = np.random.default_rng(seed)
    results: list[Any] = [env.reset()]
    for _ in range(steps):
        results.append(env.step(rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)))  # type: ignore[misc]
    return results


def test_the_step_that_ends_an_episode_resets_it() -> None:
    env = torch_vec_env()
    env.seed(0)
    env.reset()
    env.action_space.seed(0)
    returns, before = np.zeros(3), np.zeros((3, 3))
    for step in range(1, 9):
        sent = actions(env)
        before = env.env.get_state()
        obs, rewards, dones, infos = env.step(sent)
        returns += rewards
        assert dones.all() == (step % 4 == 0) and not (dones.any() and not dones.all())
        after, _, _ = env.env.core.step(th.tensor(before), th.tensor(sent))
        last = env.env.core.observe(after).numpy()
        fresh = env.env.core.observe(th.tensor(env.env.get_state())).numpy()
        np.testing.assert_array_equal(obs, fresh)
        if not dones.any():
            assert infos == [{}, {}, {}], "nothing happened, nothing is told"
            np.testing.assert_array_equal(obs, last)
            continue
        for i, info in enumerate(infos):
            np.testing.assert_array_equal(info["terminal_observation"], last[i])
            assert (obs[i] != last[i]).any()
            assert info["TimeLimit.truncated"] is True
            assert info["episode"]["r"] == pytest.approx(returns[i]) and info["episode"]["l"] == 4
        returns[:] = 0


def test_terminations_are_no_truncations_and_end_single_episodes() -> None:
    env = torch_vec_env(8, max_episode_steps=5, limit=2.0)
    env.seed(0)
    env.reset()
    env.action_space.seed(0)
    seen, lengths = set(), np.zeros(8, dtype=int)
    for _ in range(30):
        _, _, dones, infos = env.step(actions(env))
        lengths += 1
        for i in np.flatnonzero(dones):
            beyond = abs(infos[i]["terminal_observation"][0]) > 2.0
            assert infos[i]["TimeLimit.truncated"] is not beyond
            assert infos[i]["episode"]["l"] == lengths[i] <= 5
            seen.add(bool(beyond))
        assert all(infos[i] == {} for i in np.flatnonzero(~dones))
        lengths[dones] = 0
    assert seen == {True, False}


def test_starts_are_fresh_and_follow_the_seed() -> None:
    def starts(seed: int) -> np.ndarray:
        env = torch_vec_env(4, max_episode_steps=1)
        env.seed(seed)
        return np.concatenate([env.reset()] + [env.step(actions(env))[0] for _ in range(5)])

    first = starts(1)
    assert len(np.unique(first, axis=0)) == len(first), "every environment, every episode starts elsewhere"
    np.testing.assert_array_equal(first, starts(1))
    assert (first != starts(2)).all()


def test_what_was_returned_stays_as_it_was() -> None:
    env = torch_vec_env()
    env.set_attr("differentiable", True)
    kept = [env.reset()]
    for _ in range(5):
        obs, rewards, dones, _ = env.step(actions(env))
        assert env.step_gradient is not None
        kept += [obs, rewards, dones, env.step_gradient.action, env.step_gradient.observation, env.step_gradient.reward]
    copies = [array.copy() for array in kept]
    for _ in range(5):
        env.step(actions(env))
    env.reset()
    for array, its_copy in zip(kept, copies):
        np.testing.assert_array_equal(array, its_copy)


def test_monitor_file_is_read_by_sb3(tmp_path: Path) -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 2, seed=0, monitor_dir=str(tmp_path), env_kwargs={"max_episode_steps": 5})
    assert isinstance(env, TorchVecEnv)
    env.reset()
    episodes = [info["episode"] for _ in range(10) for info in env.step(actions(env))[3] if info]
    env.close()
    table = load_results(str(tmp_path))
    assert len(table) == len(episodes) == 4
    np.testing.assert_allclose(table["r"], [episode["r"] for episode in episodes])
    assert (table["l"] == 5).all() and (np.diff(table["t"]) >= 0).all()


def test_make_vec_env_has_sb3s_signature_and_picks_the_batched_form() -> None:
    ours, theirs = inspect.signature(make_vec_env), inspect.signature(sb3_make_vec_env)
    assert list(ours.parameters) == list(theirs.parameters)
    assert all(ours.parameters[name].default == theirs.parameters[name].default for name in ours.parameters)
    assert isinstance(make_vec_env("DeJong-v0", 4), TorchVecEnv)
    assert make_vec_env("DeJong-v0", 4, env_kwargs={"dim": 3}).action_space.shape == (3,)
    assert isinstance(make_vec_env(lambda: gym.make("DeJong-v0"), 2), TorchVecEnv)
    apart: tuple[dict[str, Any], ...] = (
        {"vec_env_cls": DummyVecEnv},
        {"wrapper_class": gym.wrappers.FlattenObservation},
        {"monitor_kwargs": {"info_keywords": ()}},
    )
    for separate in (make_vec_env("Pendulum-v1", 2), *(make_vec_env("DeJong-v0", 2, **kwargs) for kwargs in apart)):
        assert isinstance(separate, DummyVecEnv) and separate.num_envs == 2


def test_some_of_a_batch_cannot_be_changed_alone() -> None:
    env = torch_vec_env()
    with pytest.raises(ValueError, match="cannot be changed for some indices only"):
        env.set_attr("differentiable", True, indices=[1])
    env.env_method("set_differentiable", True, indices=[0, 1, 2])
    assert env.get_attr("differentiable", indices=[1, 2]) == [True, True]
    with pytest.raises(ValueError, match=r"^A DifferentiableVecEnv is one batched environment: .* some indices only\.$"):
        env.env_method("get_state", indices=[0])
    assert env.has_attr("core") and not env.has_attr("nothing")


@pytest.mark.parametrize(
    "algorithm, kwargs",
    [
        (PPO, {"n_steps": 16, "batch_size": 32, "n_epochs": 2}),
        (A2C, {"n_steps": 8}),
        (SAC, {"learning_starts": 32, "batch_size": 16, "gradient_steps": 1}),
        (GIPPO, {"n_steps": 16, "batch_size": 32, "n_epochs": 2}),
    ],
)
def test_algorithms_train_and_evaluate_on_it(algorithm: Any, kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=0, env_kwargs={"max_episode_steps": 10})
    evaluation = make_vec_env("CartPoleSwingUp-v0", 2, seed=1, env_kwargs={"max_episode_steps": 10})
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    callback = EvalCallback(evaluation, eval_freq=8, n_eval_episodes=3, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(128, callback=callback)
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters()))
    assert np.isfinite(callback.last_mean_reward) and (tmp_path / "best_model.zip").exists()
    assert len(model.ep_info_buffer) == 12 and {episode["l"] for episode in model.ep_info_buffer} == {10}
    rewards, lengths = evaluate_policy(model, evaluation, n_eval_episodes=3, return_episode_rewards=True)
    assert len(rewards) == 3 and lengths == [10, 10, 10]


def test_video_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(make_vec_env("CartPoleSwingUp-v0", 2, seed=0), str(tmp_path), lambda step: step == 0, 3)
    assert env.frames_per_sec == 60
    env.reset()
    for _ in range(4):
        env.step(actions(env))
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_rendering_tiles_the_environments() -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=0)
    env.reset()
    picture = env.render()
    assert picture is not None and picture.shape == (600, 1200, 3) and picture.std() > 0
    blind = make_vec_env("CartPoleSwingUp-v0", 2, env_kwargs={"render_mode": None})
    assert blind.render_mode is None


@pytest.mark.parametrize("env_id", FUNCTIONAL)
def test_dense_and_graph_pull_the_same_cotangents_back(env_id: str) -> None:
    n_envs, steps = 3, 5
    batched = gym.make_vec(env_id, num_envs=n_envs, dtype="float64", differentiable=True)
    singles = [gym.make(env_id, dtype="float64", differentiable=True) for _ in range(n_envs)]
    assert isinstance(batched, BatchedEnv)
    batched.reset(seed=0)
    for i, single in enumerate(singles):
        single.reset(seed=i)
    generator = th.Generator().manual_seed(0)
    batched.action_space.seed(0)
    for _ in range(steps):
        states, sent = batched.get_state(), batched.action_space.sample()
        batched.step(sent)
        infos = []
        for i, single in enumerate(singles):
            single.unwrapped.set_state(states[i])  # type: ignore[attr-defined]
            infos.append(single.step(sent[i])[-1])
        m, k = sent[0].size, batched.single_observation_space.shape[0]  # type: ignore[index]
        dense, graph = DenseStepGradient.from_infos(infos, m, k), GraphStepGradient.from_transition(batched.transition)
        bars = [th.randn(n_envs, size, generator=generator, dtype=th.float64) for size in (states.shape[1], k, 1)]
        for state_bar in (bars[0], None):
            ours = dense.vjp(state_bar, bars[1], bars[2][:, 0])
            theirs = graph.vjp(state_bar, bars[1], bars[2][:, 0])
            for one, other in zip(ours, theirs):
                np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max() if other.numel() else 0))
        for name in ("action", "observation", "reward"):
            np.testing.assert_allclose(getattr(dense, name), getattr(graph, name), rtol=1e-12)


@dataclass
class InPhase(LinearQuadratic):
    """Every environment has a start of its own, always the same."""

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        return th.randn(4, 3, generator=th.Generator().manual_seed(0), dtype=self.torch_dtype)[:n]


class InPhaseSingle(SingleEnv):
    def __init__(self, index: int):
        super().__init__(InPhase)
        self.index = index

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        core: FunctionalEnv = self.core
        self._state = core.initial_state(4, th.Generator())[self.index : self.index + 1]
        return core.observe(self._state)[0].numpy().copy(), {}


@pytest.mark.parametrize("normalize", [False, True])
def test_dense_and_graph_train_the_same_policy(normalize: bool) -> None:
    def train(env: VecEnv, steps: int) -> GIPPO:
        env = VecNormalize(env) if normalize else env
        settings: dict[str, Any] = {"n_steps": 10, "batch_size": 20, "n_epochs": 3, "critic_epochs": 4, "seed": 1}
        return GIPPO(Float64Policy, env, device="cpu", **settings).learn(steps)

    singles: Any = [lambda i=i: gym.wrappers.TimeLimit(InPhaseSingle(i), 6) for i in range(4)]
    start = train(DummyVecEnv(singles), 0).policy.state_dict()
    dense = train(DummyVecEnv(singles), 5 * 40)
    graph = train(TorchVecEnv(BatchedEnv(InPhase, 4, 6)), 5 * 40)
    assert dense._n_updates == graph._n_updates == 15
    assert dense.alpha_step is not None and graph.alpha_step is not None
    assert dense.alpha_step.alpha == graph.alpha_step.alpha > 0
    for name, value in dense.policy.state_dict().items():
        moved = (value - start[name]).abs().max()
        assert moved > 1e-3
        # SB3 keeps rewards, values and advantages in float32, which doubles a rounding now and then.
        assert (value - graph.policy.state_dict()[name]).abs().max() < 1e-5 * moved, name


def test_staggered_environments_run_out_of_phase_and_report_whole_episodes_only() -> None:
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=0, env_kwargs={"stagger": True})
    env.reset()
    ends: list[list[int]] = [[] for _ in range(4)]
    episodes = 0
    for step in range(1, 500):
        _, _, dones, infos = env.step(np.zeros((4, 1), dtype=np.float32))
        for index in np.flatnonzero(dones):
            ends[index].append(step)
            assert infos[index]["TimeLimit.truncated"]
            whole = len(ends[index]) > 1 or index == 0
            assert ("episode" in infos[index]) == whole
            if whole:
                assert infos[index]["episode"]["l"] == 240
                episodes += 1
    assert ends == [[240, 480], [180, 420], [120, 360], [60, 300]] and episodes == 5
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_vec_env("DeJong-v0", 4, env_kwargs={"stagger": True})


def test_staggering_waits_for_an_episode_that_lasts() -> None:
    env = torch_vec_env(2, max_episode_steps=10, limit=1.0, stagger=True)
    env.reset()
    ends: list[list[tuple[int, bool, bool]]] = [[], []]
    for step in range(1, 33):
        # Far away is a failure: at the third step, in both.
        env.env.set_state(np.full((2, env.env.core.state_size), 9.0 if step == 3 else 0.0, dtype=np.float32))
        _, _, dones, infos = env.step(np.zeros((2, *env.action_space.shape), dtype=np.float32))  # type: ignore[misc]
        for index in np.flatnonzero(dones):
            ends[index].append((step, infos[index]["TimeLimit.truncated"], "episode" in infos[index]))
    assert ends[0] == [(3, False, True), (13, True, True), (23, True, True)]
    assert ends[1] == [(3, False, True), (8, True, False), (18, True, True), (28, True, True)]


def test_a_reset_begins_all_episodes_anew() -> None:
    env = torch_vec_env(6, max_episode_steps=5, limit=2.0)
    run(env, 3)
    first_ends = [result[2].any() for result in run(env, 5)[1:]]
    env.close()
    assert first_ends[-1], "the time limit counts from the reset"
    lengths = [
        info["episode"]["l"]
        for result in run(torch_vec_env(6, max_episode_steps=5, limit=2.0), 5)[1:]
        for info in result[3]
        if "episode" in info
    ]
    assert max(lengths) == 5


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


def test_ids_of_ones_own_reach_subprocesses() -> None:
    # A subprocess imports nothing but what it unpickles.
    env = make_vec_env("DeJong-v0", 2, seed=0, vec_env_cls=SubprocVecEnv, env_kwargs={"dim": 2})
    try:
        env.reset()
        _, rewards, dones, _ = env.step(np.zeros((2, 2), dtype=np.float32))
        assert rewards.tolist() == [0.0, 0.0] and dones.all()
    finally:
        env.close()


def test_evaluation_reads_its_episodes() -> None:
    env = make_vec_env("DeJong-v0", 4, seed=0)
    assert env.env_is_wrapped(Monitor) == [True] * 4 and env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    model = GIPPO("MlpPolicy", env, n_steps=2, batch_size=8, seed=0, device="cpu")
    mean, _ = evaluate_policy(model, make_vec_env("DeJong-v0", 3, seed=1), n_eval_episodes=9)
    action, _ = model.predict(np.zeros(1, dtype=np.float32), deterministic=True)
    assert mean == pytest.approx(-((5.12 * action.item()) ** 2), rel=1e-5)


def test_gradients_are_there_where_they_were_asked_for_and_only_there() -> None:
    env = torch_vec_env(6, max_episode_steps=5, limit=2.0)
    env.reset()
    actions = np.zeros((6, 2))
    env.step(actions)
    assert env.step_gradient is None
    env.env_method("set_differentiable", True)
    env.step(actions)
    assert env.step_gradient is not None and env.step_gradient.state_size == 3
    env.reset()
    assert env.step_gradient is None


class Copying(BaseCallback):
    """Copies the environment in every step of a training, and lets the copies step."""

    def __init__(self) -> None:
        super().__init__()
        self.copied = 0

    def _on_step(self) -> bool:
        env = self.training_env
        assert isinstance(env, TorchVecEnv)
        sent = np.random.default_rng(self.n_calls).uniform(-1, 1, (6, env.num_envs, 2))
        one, other = copy.deepcopy(env), pickle.loads(pickle.dumps(env))
        for action in sent:
            for found, expected in zip(one.step(action)[:3], other.step(action)[:3]):
                np.testing.assert_array_equal(found, expected)
        assert one.step_gradient is not None and env.step_gradient is not None
        self.copied += 1
        return True


def test_it_can_be_copied_during_training_and_after_it(tmp_path: Path) -> None:
    def train(callback: BaseCallback | None) -> GIPPO:
        env = TorchVecEnv(BatchedEnv(LinearQuadratic, 4, 6, stagger=True), str(tmp_path / f"{callback is None}.monitor.csv"))
        model = GIPPO(Float64Policy, env, n_steps=10, batch_size=20, n_epochs=1, critic_epochs=1, seed=1, device="cpu")
        return model.learn(80, callback)

    callback = Copying()
    model, undisturbed = train(callback), train(None)
    assert callback.copied == 20
    for parameter, other in zip(model.policy.parameters(), undisturbed.policy.parameters()):
        assert th.equal(parameter, other)
    env = model.get_env()
    assert isinstance(env, TorchVecEnv)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    sent = np.random.default_rng(0).uniform(-1, 1, (20, 4, 2))
    lines = len((tmp_path / "False.monitor.csv").read_text().splitlines())
    results = [[twin.step(action) for action in sent] for twin in (*twins, env)]
    for result in results[:2]:
        for found, expected in zip(result, results[2]):
            for one, other in zip(found[:3], expected[:3]):
                np.testing.assert_array_equal(one, other)
            for info, its_info in zip(found[3], expected[3]):
                assert info.keys() == its_info.keys()
                assert "episode" not in info or [info["episode"][k] == its_info["episode"][k] for k in "rl"] == [True, True]
    episodes = sum("episode" in info for *_, infos in results[2] for info in infos)
    for each in (*twins, env, undisturbed.env):
        each.close()
    written = len((tmp_path / "False.monitor.csv").read_text().splitlines()) - lines
    assert written == episodes > 0, "the original alone writes its file"


@pytest.mark.parametrize("how", ["set_attr", "env_method"])
def test_gradients_switched_off_leave_no_graph(how: str) -> None:
    env = torch_vec_env()
    env.reset()
    env.env_method("set_differentiable", True)
    env.step(actions(env))
    assert env.step_gradient is not None and env.env.transition is not None
    graph = weakref.ref(env.env.transition.reward)
    env.env_method("get_state")
    assert env.step_gradient is not None
    getattr(env, how)("differentiable" if how == "set_attr" else "set_differentiable", False)
    gc.collect()
    assert env.step_gradient is None and graph() is None


def test_the_device_is_a_keyword() -> None:
    expected = run(make_vec_env("CartPoleSwingUp-v0", 3, seed=0, env_kwargs={"max_episode_steps": 3}), 5)
    with second_device():
        env = make_vec_env("CartPoleSwingUp-v0", 3, seed=0, env_kwargs={"max_episode_steps": 3, "device": DEVICE.type})
        found = run(env, 5)
        assert isinstance(env, TorchVecEnv) and type(env.env.transition.state) is Elsewhere  # type: ignore[union-attr]
    np.testing.assert_array_equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:]):
        for mine, its in zip(one[:3], other[:3]):
            np.testing.assert_array_equal(mine, its)
            assert type(mine) is np.ndarray


def test_the_example_of_the_documentation_learns(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "own_environment.md").read_text()
    (example,) = re.findall(r"## Batched torch environments\n.*?```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(example)
    try:
        model = runpy.run_path(str(path))["model"]
        untrained: Any = GIPPO("MlpPolicy", model.env, seed=0, device="cpu")
        before, after = (evaluate_policy(policy, model.env, n_eval_episodes=32)[0] for policy in (untrained, model))
        assert before < -100 and after > -40
    finally:
        del gym.registry["Cart-v0"]
