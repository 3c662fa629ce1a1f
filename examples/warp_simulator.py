"""A simulator of one's own as a Warp kernel: wrapped in one torch.autograd.Function, it is a FunctionalEnv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch as th
import warp as wp

from gippo_envs import FunctionalEnv, register_functional
from sb3_gippo import GIPPO, check_differentiable_env, make_vec_env

wp.config.quiet = True
wp.init()


@wp.kernel
def swing(state: wp.array2d(dtype=wp.float64), torque: wp.array2d(dtype=wp.float64), out: wp.array2d(dtype=wp.float64)):
    i = wp.tid()
    angle = wp.float64(state[i, 0])
    speed = wp.float64(state[i, 1])
    for _ in range(8):  # substeps
        speed = speed + wp.float64(0.00625) * (wp.float64(9.81) * wp.sin(angle) + wp.float64(6.0) * torque[i, 0])
        angle = angle + wp.float64(0.00625) * speed
    out[i, 0] = angle
    out[i, 1] = speed


class Swing(th.autograd.Function):
    """(state (n, 2), torque (n, 1)) -> next state (n, 2); one launch forward, one of the kernel's adjoint backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: th.Tensor) -> th.Tensor:
        inputs = tuple(tensor.detach().contiguous() for tensor in inputs)
        out = th.empty_like(inputs[0])
        wp.launch(swing, len(out), [wp.from_torch(tensor) for tensor in inputs], [wp.from_torch(out)])
        ctx.save_for_backward(*inputs, out)
        return out

    @staticmethod
    def backward(ctx: Any, *bars: th.Tensor) -> Any:
        *inputs, out = (wp.from_torch(tensor) for tensor in ctx.saved_tensors)
        pulled = tuple(th.zeros_like(tensor) for tensor in ctx.saved_tensors[:2])
        adjoints = [wp.from_torch(bar) for bar in pulled], [wp.from_torch(bars[0].contiguous().clone())]
        wp.launch(swing, len(bars[0]), inputs, [out], adj_inputs=adjoints[0], adj_outputs=adjoints[1], adjoint=True)
        return pulled


@dataclass
class Pendulum(FunctionalEnv):
    """Swing a pendulum up and hold it. State: angle from upright, speed; observation: its cosine, sine, speed."""

    dtype: str = "float64"

    def __post_init__(self) -> None:
        self.state_size = 2
        self.observation_space, self.action_space = self.box(-100.0, 100.0, 3), self.box(-1.0, 1.0, 1)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        return th.randn(n, 2, generator=generator, dtype=self.torch_dtype) + th.tensor([th.pi, 0.0])

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        following: th.Tensor = Swing.apply(state, action)
        reward = following[:, 0].cos() - 0.01 * following[:, 1].square() - 0.001 * action[:, 0].square()
        return following, reward, th.zeros(len(state), dtype=th.bool)

    def observe(self, state: th.Tensor) -> th.Tensor:
        return th.stack([state[:, 0].cos(), state[:, 0].sin(), state[:, 1]], dim=1)


register_functional("WarpPendulum-v0", Pendulum, max_episode_steps=100)

if __name__ == "__main__":
    import argparse

    import gymnasium as gym

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000)
    steps = parser.parse_args().steps
    print(check_differentiable_env(gym.make("WarpPendulum-v0")))
    env = make_vec_env("WarpPendulum-v0", n_envs=32, seed=0)
    GIPPO("MlpPolicy", env, n_steps=32, batch_size=256, seed=0, device="cpu", verbose=1).learn(steps)
