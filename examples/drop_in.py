"""
Drop-in: PPO as SB3's documentation and rl_zoo3's published hyper-parameters have it, then `GIPPO` in its place, with nothing
else changed. Without gradients both end with the same parameters, bit for bit; where there are gradients, GI-PPO uses them.

It needs `pip install "sb3-gippo[zoo]"` for rl_zoo3's file; environments whose simulator is not installed are left out.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from sb3_gippo import GIPPO
from sb3_gippo.cli.experiment import build_model
from sb3_gippo.cli.hyperparams import read_entry, read_hyperparams

Wrapper = Callable[[gym.Env], gym.Env]


def quickstart(algorithm: type[PPO], total_timesteps: int = 25_000) -> BaseAlgorithm:
    """The PPO example of SB3's documentation, seeded."""
    vec_env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = algorithm("MlpPolicy", vec_env, seed=1)
    return model.learn(total_timesteps=total_timesteps)


def published(
    algorithm: type[PPO], entry: str, total_timesteps: int, env_id: str | None = None, wrapper: Wrapper | None = None
) -> BaseAlgorithm:
    """
    A PPO entry of rl_zoo3.

    :param entry: the environment it was published for
    :param total_timesteps: fewer than published
    :param env_id: the environment's present id, if that is another
    :param wrapper: to wrap every environment in
    """
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None, 'rl_zoo3 is missing: pip install "sb3-gippo[zoo]"'
    hyperparams = read_entry(Path(spec.origin).parent / "hyperparams" / "ppo.yml", entry)
    model, _ = build_model(algorithm, env_id or entry, {**hyperparams, "env_wrapper": wrapper}, seed=1)
    return model.learn(total_timesteps=total_timesteps)


def with_gradients(algorithm: type[PPO], total_timesteps: int) -> BaseAlgorithm:
    """Our differentiable cart-pole, with the hyper-parameters that our file has for PPO."""
    model, _ = build_model(algorithm, "CartPoleSwingUp-v0", read_hyperparams("ppo", "CartPoleSwingUp-v0"), seed=1)
    return model.learn(total_timesteps=total_timesteps)


def mean_return(model: BaseAlgorithm) -> float:
    """:return: of the last (at most 100) episodes of training"""
    return float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def same_parameters(a: BaseAlgorithm, b: BaseAlgorithm) -> bool:
    """:return: whether both policies have the same parameters, bit for bit"""
    return all(th.equal(p, q) for p, q in zip(a.policy.parameters(), b.policy.parameters(), strict=True))


def compare(name: str, train: Callable[[type[PPO]], BaseAlgorithm], has_gradients: bool) -> None:
    """Train both, and print what became of them."""
    ppo, gippo = train(PPO), train(GIPPO)
    same = same_parameters(ppo, gippo)
    assert same is not has_gradients
    verdict = "gradients used" if has_gradients else "parameters equal"
    print(f"{name:40} PPO {mean_return(ppo):8.1f}   GI-PPO {mean_return(gippo):8.1f}   {verdict}", flush=True)


def main() -> None:
    """Mean returns of the last 100 episodes, after the same small number of steps."""
    warnings.filterwarnings("ignore", "GIPPO trains without gradients", UserWarning)
    compare("CartPole-v1 (SB3's example)", quickstart, has_gradients=False)
    compare("Pendulum-v1", lambda algorithm: published(algorithm, "Pendulum-v1", 20_480), has_gradients=False)
    lander = "LunarLanderContinuous-v3"
    try:
        gym.make(lander).close()
        compare(lander, lambda algorithm: published(algorithm, lander, 16_384), has_gradients=False)
    except gym.error.DependencyNotInstalled as error:
        print(f"{lander} left out: {error}")

    compare("CartPoleSwingUp-v0", lambda algorithm: with_gradients(algorithm, 102_400), has_gradients=True)
    try:
        from sb3_gippo import MujocoGradient
    except ImportError as error:
        print(f"HalfCheetah-v5 left out: {error}")
        return
    cheetah = ("HalfCheetah-v4", 20_480, "HalfCheetah-v5")
    compare("HalfCheetah-v5", lambda algorithm: published(algorithm, *cheetah), has_gradients=False)
    compare(
        "HalfCheetah-v5 in MujocoGradient",
        lambda algorithm: published(algorithm, *cheetah, wrapper=MujocoGradient),
        has_gradients=True,
    )


if __name__ == "__main__":
    main()
