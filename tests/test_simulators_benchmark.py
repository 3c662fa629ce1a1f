"""The cart-poles whose speed is compared are the same one: in float64 they move, earn and are differentiated alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.vec_env import VecNormalize

from gippo_envs import BatchedEnv
from sb3_gippo import DifferentiableVecEnv
from tests.reference import difference_gradients
from tests.test_action_gradients import assert_close, rollout

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def simulators(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import simulators

    return simulators


@pytest.fixture
def x64() -> Iterator[None]:
    jax = pytest.importorskip("jax")
    switches = {"jax_enable_x64": True, "jax_disable_most_optimizations": True}
    for name, on in switches.items():
        jax.config.update(name, on)
    yield
    for name, on in switches.items():
        jax.config.update(name, not on)


def test_jax_has_torchs_trajectories_and_gradients(simulators: Any, x64: None) -> None:
    assert max(simulators.deviations("jax", "float64", n_envs=3)) < 1e-13


def test_warp_has_torchs_trajectories_and_gradients(simulators: Any) -> None:
    pytest.importorskip("warp")
    assert max(simulators.deviations("warp", "float64", n_envs=3)) < 1e-13


@pytest.mark.parametrize("normalized", [False, True])
def test_action_gradients_of_a_warp_kernel_through_the_real_rollout(simulators: Any, normalized: bool) -> None:
    pytest.importorskip("warp")
    env: Any = DifferentiableVecEnv(BatchedEnv(simulators.WarpCartPole, 3, max_episode_steps=6, dtype="float64"))
    env = VecNormalize(env) if normalized else env
    model, record = rollout(env, 10, policy_kwargs={"squash_actions": normalized})
    # VecNormalize rounds observations and rewards to float32.
    expected = difference_gradients(model, simulators.WarpCartPole(dtype="float64"), record)
    assert_close(model, expected, 1e-5 if normalized else 1e-6)


def test_another_physics_is_seen(simulators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = simulators.deviations("torch", "float32", n_envs=3)
    assert 0 < max(before) < 1e-5, "float32's rounding"
    prepared = simulators.prepared

    def heavier(engine: str, n_envs: int, dtype: str) -> Any:
        env = prepared(engine, n_envs, dtype)
        env.env.core.pole_mass *= 1.01 if dtype == "float32" else 1.0
        return env

    monkeypatch.setattr(simulators, "prepared", heavier)
    assert min(simulators.deviations("torch", "float32", n_envs=3)) > 1e-4


def test_the_table_has_a_row_for_each_size_and_direction(simulators: Any) -> None:
    rows = simulators.measure("torch", [2, 3], windows=1)
    assert [(row["n_envs"], row["what"]) for row in rows] == [(n, what) for n in (2, 3) for what in ("forward", "gradient")]
    assert all(row["best"] >= row["median"] > 0 and float(row["deviation"]) < 1e-5 for row in rows)
