"""Step gradients: both forms give the same products, and what an environment hands over is checked in clear words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from gippo_envs import BatchedEnv, SingleEnv
from gippo_envs.step_gradient import GraphStepGradient
from sb3_gippo import GIPPO, GradientChannelError, make_vec_env
from sb3_gippo.rollout.step_gradient import KEYS, DenseStepGradient, offered_step_gradient, states_of
from tests.reference import LinearQuadratic, linear_quadratic

STATE, ACTION, OBSERVATION, N_ENVS = 3, 2, 4, 2


def grads(seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes = {
        "state_state": (STATE, STATE),
        "state_action": (STATE, ACTION),
        "obs_state": (OBSERVATION, STATE),
        "obs_action": (OBSERVATION, ACTION),
        "reward_state": (STATE,),
        "reward_action": (ACTION,),
        "action": (ACTION,),
        "obs": (OBSERVATION,),
        "reward": (),
    }
    return [{key: np.asarray(rng.normal(size=shape)) for key, shape in shapes.items()} for _ in range(N_ENVS)]


def stacked(items: list[dict[str, Any]]) -> DenseStepGradient:
    return DenseStepGradient.from_infos([{"grad": item} for item in items], ACTION, OBSERVATION)


def bars(seed: int = 1) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    shapes = ((N_ENVS, STATE), (N_ENVS, OBSERVATION), (N_ENVS,))
    state, obs, reward = (th.randn(*shape, generator=generator, dtype=th.float64) for shape in shapes)
    return state, obs, reward


def test_dense_vjp_is_the_transposed_jacobian() -> None:
    items, (state_bar, obs_bar, reward_bar) = grads(), bars()
    found = stacked(items).vjp(state_bar, obs_bar, reward_bar)
    for index, item in enumerate(items):
        cotangent = np.concatenate([state_bar[index], obs_bar[index], reward_bar[index : index + 1]])
        for wrt, bar in zip(("state", "action"), found):
            jacobian = np.vstack([item[f"state_{wrt}"], item[f"obs_{wrt}"], item[f"reward_{wrt}"]])
            np.testing.assert_allclose(bar[index], cotangent @ jacobian, rtol=1e-12)


@pytest.mark.parametrize("missing", KEYS)
def test_a_missing_block_is_zero_in_all_environments_or_in_one(missing: str) -> None:
    for environments in ((0, 1), (1,)):
        lacking, zeroed = grads(), grads()
        for index in environments:
            del lacking[index][missing]
            zeroed[index][missing] = np.zeros_like(zeroed[index][missing])
        for found, expected in zip(stacked(lacking).vjp(*bars()), stacked(zeroed).vjp(*bars())):
            assert th.equal(found, expected)


def test_a_problem_without_state_needs_no_more_than_reward_action() -> None:
    keep = ("reward_action", "action", "obs", "reward")
    gradient = stacked([{key: item[key] for key in keep} for item in grads()])
    assert gradient.state_size == 0
    _, obs_bar, reward_bar = bars()
    state_bar, action_bar = gradient.vjp(None, obs_bar, reward_bar)
    assert state_bar.shape == (N_ENVS, 0)
    np.testing.assert_allclose(action_bar, reward_bar[:, None] * th.as_tensor(np.stack([g["reward_action"] for g in grads()])))


def test_no_cotangent_of_the_next_state_is_a_zero_one() -> None:
    state_bar, obs_bar, reward_bar = bars()
    for found, expected in zip(
        stacked(grads()).vjp(None, obs_bar, reward_bar), stacked(grads()).vjp(0 * state_bar, obs_bar, reward_bar)
    ):
        th.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_cotangents_keep_their_type_whatever_the_environments(dtype: th.dtype) -> None:
    cotangents = [bar.to(dtype) for bar in bars()]
    single = [{key: value.astype(np.float32) for key, value in item.items()} for item in grads()]
    assert {bar.dtype for gradient in (stacked(grads()), stacked(single)) for bar in gradient.vjp(*cotangents)} == {dtype}
    graph = graph_gradient(N_ENVS)
    assert {bar.dtype for bar in graph.vjp(cotangents[0], cotangents[1][:, :3], cotangents[2])} == {dtype}


def graph_gradient(n_envs: int) -> GraphStepGradient:
    env = BatchedEnv(LinearQuadratic, n_envs, differentiable=True)
    env.reset(seed=0)
    env.step(np.random.default_rng(0).uniform(-1, 1, (n_envs, 2)))
    return GraphStepGradient.from_transition(env.transition)


def test_graph_and_dense_agree_and_the_graph_can_be_asked_again() -> None:
    graph = graph_gradient(5)
    infos = []
    single = SingleEnv(LinearQuadratic, differentiable=True)
    single.reset(seed=0)
    for state, action in zip(graph.inputs[0].detach().numpy(), graph.action):
        single.set_state(state)
        infos.append(single.step(action)[4])
    dense = DenseStepGradient.from_infos(infos, 2, 3)
    generator = th.Generator().manual_seed(0)
    for with_state in (True, False, True):
        state_bar = th.randn(5, 3, generator=generator, dtype=th.float64) if with_state else None
        obs_bar, reward_bar = (th.randn(*shape, generator=generator, dtype=th.float64) for shape in ((5, 3), (5,)))
        for found, expected in zip(graph.vjp(state_bar, obs_bar, reward_bar), dense.vjp(state_bar, obs_bar, reward_bar)):
            th.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name in ("action", "observation", "reward"):
        np.testing.assert_allclose(getattr(graph, name), getattr(dense, name), rtol=1e-15)


def test_a_graph_of_constants_gives_zeros() -> None:
    state, action = th.zeros(2, 3).requires_grad_(), th.zeros(2, 1).requires_grad_()
    constants = (th.ones(2, 3), th.ones(2, 4), th.ones(2))
    gradient = GraphStepGradient((state, action), constants, np.zeros((2, 1)), np.ones((2, 4)), np.ones(2))
    for bar, leaf in zip(gradient.vjp(th.ones(2, 3), th.ones(2, 4), th.ones(2)), (state, action)):
        assert th.equal(bar, th.zeros_like(leaf))


def change(key: str, value: Any, index: int = 1) -> Callable[[list[dict[str, Any]]], None]:
    return lambda items: items[index].__setitem__(key, value)


def remove(key: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda items: items[1].__delitem__(key)


BROKEN: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "transposed": (
        change("obs_action", np.zeros((ACTION, OBSERVATION))),
        r"\['obs_action'\].*environment 1.*\(2, 4\).*\(4, 2\)",
    ),
    "row for vector": (change("reward_action", np.zeros((1, ACTION))), r"\['reward_action'\].*\(1, 2\).*\(2,\)"),
    "scalar": (change("reward_action", 1.0), r"\['reward_action'\].*shape \(\) where \(2,\)"),
    "not square": (change("state_state", np.zeros((STATE, STATE + 1))), r"\['state_state'\].*\(3, 4\).*\(3, 3\)"),
    "other action": (change("action", np.zeros(ACTION + 1)), r"\['action'\].*\(3,\).*\(2,\)"),
    "other obs": (change("obs", np.zeros(OBSERVATION - 1)), r"\['obs'\].*\(3,\).*\(4,\).*VecFrameStack"),
    "reward of two": (change("reward", np.zeros(2)), r"\['reward'\].*\(2,\).*\(\)"),
    "no action": (remove("action"), "environment 1 lacks 'action'"),
    "no obs": (remove("obs"), "environment 1 lacks 'obs'"),
    "no reward": (remove("reward"), "environment 1 lacks 'reward'"),
    "text": (
        change("reward_action", np.array(["a", "b"])),
        r"\['reward_action'\] of environment 1 is not an array of numbers",
    ),
    "nothing": (change("reward_action", None), r"\['reward_action'\] of environment 1 is not an array of numbers"),
    "no state": (change("state_state", None), r"\['state_state'\] of environment 1 is not an array of numbers"),
    "ragged": (change("obs_action", [[1.0, 2.0], [3.0]]), r"\['obs_action'\] of environment 1 is not an array of numbers"),
    "ragged state": (change("state_state", [[1.0], []]), r"\['state_state'\] of environment 1 is not an array of numbers"),
    "other state by one key": (
        change("obs_state", np.zeros((OBSERVATION, 2))),
        r"size 3 .* but of size 2 in 'obs_state' of env",
    ),
    "other state": (
        change("state_state", np.zeros((STATE + 1, STATE + 1))),
        r"size 3 in 'state_state' of environment 0 but of size 4 in 'state_state' of environment 1: .*must keep its size",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_wrong_gradient_ends_in_one_sentence(case: str) -> None:
    breaking, message = BROKEN[case]
    items: list[dict[str, Any]] = grads()
    breaking(items)
    with pytest.raises(GradientChannelError, match=message) as caught:
        stacked(items)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("grad", [None, np.zeros(2), "yes"])
def test_a_gradient_that_is_no_dict_ends_in_one_sentence(grad: Any) -> None:
    with pytest.raises(GradientChannelError, match=r'^info\["grad"\] of environment 1 is a \w+, not a dict of arrays\.$'):
        stacked([grads()[0], grad])


def test_an_environment_without_gradient_among_others_is_named() -> None:
    with pytest.raises(GradientChannelError, match=r'^Environment 1 returned no info\["grad"\]'):
        DenseStepGradient.from_infos([{"grad": grads()[0]}, {}], ACTION, OBSERVATION)


CASTS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda value: value.tolist(),
    "float32": lambda value: value.astype(np.float32),
    "tensor": th.as_tensor,
    "tensor with graph": lambda value: th.as_tensor(value).requires_grad_() * 1,
    "parameter": lambda value: th.nn.Parameter(th.as_tensor(value)),
    "bfloat16": lambda value: th.as_tensor(value).bfloat16(),
    "sparse": lambda value: th.as_tensor(value).to_sparse(),
    "integers": lambda value: np.round(value).astype(np.int64),
    "bools": lambda value: value.astype(bool) if value.max() <= 1 else value,
    "long doubles": lambda value: value.astype(np.longdouble),
}


def one_grad(cast: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    blocks = {"state_state": np.eye(2), "state_action": np.ones((2, 1)), "reward_action": np.array([2.0])}
    return {**{key: cast(value) for key, value in blocks.items()}, "action": [0.0], "obs": [0.0, 0.0, 0.0], "reward": 0.0}


@pytest.mark.parametrize("case", list(CASTS))
def test_arrays_and_tensors_of_all_sorts_are_read(case: str) -> None:
    gradient = DenseStepGradient.from_infos([{"grad": one_grad(CASTS[case])}], 1, 3)
    state_bar, action_bar = gradient.vjp(th.ones(1, 2), th.zeros(1, 3), th.ones(1))
    assert state_bar.tolist() == [[1, 1]] and action_bar.tolist() == [[4]]


@pytest.mark.parametrize(
    "value", [th.ones(1, device="meta"), "much", None, [[1.0], [1.0, 2.0]], np.array(["a"]), np.ones(1, dtype=complex)]
)
def test_what_holds_no_numbers_is_named(value: Any) -> None:
    with pytest.raises(GradientChannelError, match=r"reward_action.\] of environment 0 is not an array of numbers"):
        DenseStepGradient.from_infos([{"grad": {**one_grad(np.asarray), "reward_action": value}}], 1, 3)


@pytest.mark.parametrize("key", ["state_act", "state_actions", "reward_obs", "State_state", "next"])
def test_a_misspelt_key_is_no_zero_block(key: str) -> None:
    with pytest.raises(GradientChannelError, match=rf"of environment 0 has an unknown key '{key}': known are"):
        DenseStepGradient.from_infos([{"grad": {**one_grad(np.asarray), key: np.ones(2)}}], 1, 3)


def test_states_are_kept_where_every_environment_tells_them() -> None:
    told = {**one_grad(np.asarray), "state": np.zeros(2), "next_state": np.ones(2)}
    both = DenseStepGradient.from_infos([{"grad": told}, {"grad": told}], 1, 3)
    assert states_of(both)[1].tolist() == [[1, 1], [1, 1]]  # type: ignore[index]
    assert states_of(DenseStepGradient.from_infos([{"grad": told}, {"grad": one_grad(np.asarray)}], 1, 3)) is None
    with pytest.raises(GradientChannelError, match=r"of size 2 in .* but of size 3 in 'next_state'"):
        DenseStepGradient.from_infos([{"grad": {**told, "next_state": np.ones(3)}}], 1, 3)


class ByProperty(VecEnvWrapper):
    """Computes its step gradient when it is asked for."""

    @property
    def step_gradient(self) -> Any:
        return offered_step_gradient(self.venv)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_a_step_gradient_may_be_a_property() -> None:
    plain, wrapped = (
        GIPPO("MlpPolicy", wrap(make_vec_env("DeJong-v0", 4, seed=0)), n_steps=2, batch_size=8, seed=0, device="cpu").learn(16)
        for wrap in (lambda env: env, ByProperty)
    )
    assert wrapped._has_gradients
    np.testing.assert_array_equal(wrapped.rollout_buffer.action_gradients, plain.rollout_buffer.action_gradients)
    assert offered_step_gradient(DummyVecEnv([linear_quadratic])) is None


class Counted(gym.Env):
    """Integer observations: x counts steps of ±1."""

    observation_space = spaces.Box(-100, 100, (1,), np.int64)

    def __init__(self, dtype: Any = np.float32):
        self.action_space = spaces.Box(-1, 1, (1,), dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = 0, 0
        return np.array([self.x]), {}

    def step(self, action: Any) -> Any:
        self.x, self.t = self.x + int(np.sign(action[0])), self.t + 1
        reward = -abs(self.x) - float(action[0]) ** 2
        grad = {"reward_action": -2.0 * np.asarray(action, dtype=np.float64), "action": action, "obs": np.array([self.x])}
        return np.array([self.x]), reward, False, self.t == 9, {"grad": {**grad, "reward": reward}}


def test_integer_observations_work_and_integer_actions_are_ppos() -> None:
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "seed": 0, "device": "cpu"}
    assert GIPPO("MlpPolicy", DummyVecEnv([Counted]), **settings).learn(64)._has_gradients
    with pytest.warns(UserWarning, match="as plain PPO: its actions are int64, which the rollout buffer rounds"):
        GIPPO("MlpPolicy", DummyVecEnv([lambda: Counted(np.int64)]), **settings).learn(32)
