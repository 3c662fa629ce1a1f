"""
Drop-in: PPO as SB3's documentation and rl_zoo3's published hyper-parameters have it, then `GIPPO` in its place, with nothing
else changed. Without gradients both end with the same parameters, bit for bit; where there are gradients, GI-PPO uses them.

rl_zoo3's entries need `pip install "sb3-gippo[zoo]"`, their environments what Gymnasium says they need.
"""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from sb3_gippo import GIPPO
from sb3_gippo.experiment import build_model, read_entry

warnings.filterwarnings("ignore", "GIPPO trains without gradients", UserWarning)


def quickstart(algorithm: type[PPO], total_timesteps: int = 25_000) -> BaseAlgorithm:
    """The PPO example of SB3's documentation (which does not seed)."""
    vec_env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = algorithm("MlpPolicy", vec_env, seed=1, device="cpu")
    return model.learn(total_timesteps=total_timesteps)


def published(
    algorithm: type[PPO], entry_of: str, total_timesteps: int, env_id: str | None = None, wrapper: str | None = None
) -> BaseAlgorithm:
    """
    A PPO entry of rl_zoo3.

    :param entry_of: the environment the entry was published for
    :param total_timesteps: less than the entry's
    :param env_id: the environment's present id, if that is another
    :param wrapper: a class to wrap the environment in
    """
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None, 'install rl_zoo3: pip install "sb3-gippo[zoo]"'
    entry = read_entry(Path(spec.origin).parent / "hyperparams" / "ppo.yml", entry_of)
    model, _ = build_model(algorithm, env_id or entry_of, {**entry, "env_wrapper": wrapper}, seed=1)
    return model.learn(total_timesteps=total_timesteps)


def mean_return(model: BaseAlgorithm) -> float:
    """:return: of the last (at most 100) episodes of training"""
    assert model.ep_info_buffer is not None
    return float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def same_parameters(a: BaseAlgorithm, b: BaseAlgorithm) -> bool:
    """:return: whether all parameters of both policies are equal, bit for bit"""
    return all(th.equal(p, q) for p, q in zip(a.policy.parameters(), b.policy.parameters(), strict=True))


def report(name: str, ppo: BaseAlgorithm, gippo: BaseAlgorithm) -> None:
    """Print both results."""
    verdict = "the same parameters" if same_parameters(ppo, gippo) else "GI-PPO used gradients"
    print(f"{name:42} PPO {mean_return(ppo):9.1f}   GI-PPO {mean_return(gippo):9.1f}   {verdict}", flush=True)


def main() -> None:
    """Mean returns after a small budget of steps, the same for both."""
    ppo, gippo = quickstart(PPO), quickstart(GIPPO)
    assert same_parameters(ppo, gippo)
    report("CartPole-v1, SB3's PPO example", ppo, gippo)

    for env_id, package, steps in (("Pendulum-v1", "gymnasium", 40_960), ("LunarLanderContinuous-v3", "Box2D", 49_152)):
        if importlib.util.find_spec(package) is None:
            print(f"{env_id}: left out, it needs {package}")
            continue
        ppo, gippo = published(PPO, env_id, steps), published(GIPPO, env_id, steps)
        assert same_parameters(ppo, gippo)
        report(f"{env_id}, rl_zoo3's entry", ppo, gippo)


if __name__ == "__main__":
    main()
