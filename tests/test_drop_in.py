"""The drop-in example: `GIPPO` in the place of `PPO`, on small budgets."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from stable_baselines3 import PPO

from sb3_gippo import GIPPO

pytestmark = pytest.mark.filterwarnings("ignore:GIPPO trains without gradients:UserWarning")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drop_in", Path(__file__).parent.parent / "examples" / "drop_in.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_published_entry_ends_with_ppos_parameters(example: ModuleType) -> None:
    ppo, gippo = (example.published(algorithm, "CartPole-v1", 1024) for algorithm in (PPO, GIPPO))
    assert (gippo.n_envs, gippo.n_steps, gippo.gae_lambda) == (8, 32, 0.8)
    assert gippo.lr_schedule(0.5) == gippo.lr_schedule(1.0) / 2 > 0
    assert example.same_parameters(ppo, gippo)
    assert example.mean_return(ppo) == example.mean_return(gippo) > 10


def test_gradients_are_used_where_there_are_some(example: ModuleType) -> None:
    ppo, gippo = example.with_gradients(PPO, 2048), example.with_gradients(GIPPO, 2048)
    assert not example.same_parameters(ppo, gippo)


def test_mujocos_published_entry_equals_ppo_without_the_wrapper_and_differs_with_it(example: ModuleType) -> None:
    pytest.importorskip("mujoco")
    MujocoGradient = pytest.importorskip("sb3_gippo.mujoco.wrapper").MujocoGradient
    cheetah = ("HalfCheetah-v4", 512, "HalfCheetah-v5")
    ppo, gippo = example.published(PPO, *cheetah), example.published(GIPPO, *cheetah)
    assert example.same_parameters(ppo, gippo)
    assert not example.same_parameters(ppo, example.published(GIPPO, *cheetah, wrapper=MujocoGradient))
