"""Differentiable environments for Gymnasium: the problems of the GI-PPO paper, with a gradient channel.

Importing the package registers the environments. It needs Gymnasium and torch, nothing else; the robots
need MuJoCo, to read their models, and Warp.
"""

from collections.abc import Callable
from typing import Any

from gymnasium.envs.registration import register

from gippo_envs.core import BatchedEnv, FunctionalEnv, SingleEnv, Transition
from gippo_envs.simulator import TorchSimulator, TorchSimulatorEnv

__all__ = [
    "BatchedEnv",
    "FunctionalEnv",
    "SingleEnv",
    "TorchSimulator",
    "TorchSimulatorEnv",
    "Transition",
    "register_functional",
]


def register_functional(
    env_id: str, core: str | Callable[..., FunctionalEnv], max_episode_steps: int | None = None, **constants: Any
) -> None:
    """
    Register a functional core with Gymnasium, as a single and as a batched environment.

    :param env_id: for instance ``"MyTask-v0"``
    :param core: a :class:`FunctionalEnv` class, or where to import it from (``"module:Class"``)
    :param max_episode_steps: time limit
    :param constants: fields of the core; ``gymnasium.make`` may override them by keyword
    """
    register(
        env_id,
        entry_point="gippo_envs.core:SingleEnv",
        vector_entry_point="gippo_envs.core:BatchedEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"core": core, **constants},
    )


register_functional("DeJong-v0", "gippo_envs.functions:DeJong")
register_functional("DeJong64-v0", "gippo_envs.functions:DeJong", dim=64)
register_functional("Ackley-v0", "gippo_envs.functions:Ackley")
register_functional("Ackley64-v0", "gippo_envs.functions:Ackley", dim=64)
register_functional("DeJongContext-v0", "gippo_envs.functions:DeJongContext")
register_functional("AckleyContext-v0", "gippo_envs.functions:AckleyContext")
register_functional("Rosenbrock-v0", "gippo_envs.functions:Rosenbrock", dim=2)
register_functional("Rastrigin-v0", "gippo_envs.functions:Rastrigin", dim=2)
register_functional("CartPoleSwingUp-v0", "gippo_envs.physics.cartpole:CartPoleSwingUp", max_episode_steps=240)
for _module, _robot in (
    ("hopper", "Hopper"),
    ("half_cheetah", "HalfCheetah"),
    ("walker2d", "Walker2d"),
    ("ant", "Ant"),
    ("humanoid", "Humanoid"),
):
    register_functional(f"Diff{_robot}-v0", f"gippo_envs.physics.{_module}:{_robot}", max_episode_steps=1000)
register_functional("PaceCar-v0", "gippo_envs.traffic.pace_car:PaceCar", max_episode_steps=1000)
for _scenario, _lanes, _vehicles in (("A", 1, 1), ("B", 2, 4), ("C", 3, 9), ("D", 4, 16), ("E", 10, 10)):
    register_functional(
        f"PaceCar{_scenario}-v0",
        "gippo_envs.traffic.pace_car:PaceCar",
        max_episode_steps=1000,
        lanes=_lanes,
        vehicles=_vehicles,
    )
