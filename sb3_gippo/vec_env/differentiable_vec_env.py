"""A batched differentiable environment as an SB3 VecEnv, whatever it computes with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_gippo.rollout.batched import BatchedContract, check_batched_env
from sb3_gippo.rollout.step_gradient import StepGradient


class DifferentiableVecEnv(VecEnv):
    """
    SB3's view of a batched Gymnasium environment that offers the derivative of its last step
    (:class:`~sb3_gippo.rollout.batched.DifferentiableVectorEnv`), as :class:`gippo_envs.BatchedEnv` does: all environments
    step in one call.

    What the environment returns is looked at once: a wrong shape or type ends in a sentence that names both.
    Episode returns and lengths are reported in ``infos[i]["episode"]``, as a ``Monitor`` around every environment would;
    episodes that staggering cut short are not.
    One random stream, seeded by the first of SB3's seeds, serves all environments.

    It can be copied and pickled whenever the batched environment can, during training as well. The copy goes on as the
    original does; it has no gradient until its next step, and no monitor file, which two cannot write.

    :param env: the batched environment
    :param monitor_file: where to log the episodes (Monitor's csv format); ``None`` for nowhere
    :raises ValueError: if the environment is not what it has to be, an autoreset in the next step included
    """

    def __init__(self, env: Any, monitor_file: str | None = None):
        check_batched_env(env)
        self.env = env
        self._contract = BatchedContract(env)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata["render_fps"] = env.metadata.get("render_fps", 30)  # of videos
        self.step_gradient: StepGradient | None = None
        """the gradient of the last step, where gradients are switched on"""
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._start = time.time()
        self._writer: ResultsWriter | None = None
        if monitor_file is not None:
            spec = getattr(env, "spec", None)
            env_id = spec.id if spec is not None else None
            self._writer = ResultsWriter(monitor_file, header={"t_start": self._start, "env_id": str(env_id)})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "step_gradient": None, "_writer": None}

    def reset(self) -> np.ndarray:
        outcome = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._contract.check_reset(outcome)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        self.step_gradient = None
        return outcome[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self._actions is not None, "call step_async() first"
        outcome = self.env.step(self._actions)
        self._contract.check_step(outcome)
        observations, rewards, terminated, truncated, batched = outcome
        self.step_gradient = self.env.step_gradient
        if self.step_gradient is not None:
            self._contract.check_gradient(self.step_gradient)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        stagger = getattr(self.env, "stagger", False)
        for index in np.flatnonzero(dones):
            infos[index] = {
                "terminal_observation": batched["final_obs"][index],
                "TimeLimit.truncated": bool(truncated[index]),
            }
            whole = not (stagger and truncated[index] and self._lengths[index] < self.env.max_episode_steps)
            episode = self._end_episode(int(index), log=whole)
            if whole:
                infos[index]["episode"] = episode
        return observations, rewards, dones, infos

    def _end_episode(self, index: int, log: bool) -> dict[str, Any]:
        episode = {
            "r": float(self._returns[index]),
            "l": int(self._lengths[index]),
            "t": round(time.time() - self._start, 6),
        }
        self._returns[index] = 0
        self._lengths[index] = 0
        if self._writer is not None and log:
            self._writer.write_row(episode)
        return episode

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        images = self.env.render()
        return [None] * self.num_envs if images is None else images

    def has_attr(self, attr_name: str) -> bool:
        return hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._refuse_some(indices)
        setattr(self.env, attr_name, value)
        self._drop_graph()

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment, once; its result is returned for every environment."""
        self._refuse_some(indices)
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        self._drop_graph()
        return [result] * self.num_envs

    def _drop_graph(self) -> None:
        """After a change of the environment: where it has given up its gradient, nobody needs it."""
        if self.env.step_gradient is None:
            self.step_gradient = None

    def _refuse_some(self, indices: VecEnvIndices) -> None:
        if indices is not None and list(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ValueError("A DifferentiableVecEnv is one batched environment: it cannot be changed for some indices only.")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """It does what a ``Monitor`` does, and says so, that SB3's evaluation reads its episodes."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
