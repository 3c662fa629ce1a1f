"""The same cart-pole in torch, JAX and Warp, through the same door: deviation, compile times, and processor time on one core.

python benchmarks/simulators.py --out benchmarks/results/simulators.csv
"""

# Without `from __future__ import annotations`: Warp reads a kernel's types from its signature.

import argparse
import csv
import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from gippo_envs import BatchedEnv
from gippo_envs.physics.cartpole import CartPoleSwingUp
from sb3_gippo import DifferentiableVecEnv

WINDOW = 32
ENGINES = ("torch", "jax", "warp")


def jax_cart_pole(dtype: str) -> Any:
    """:return: :class:`CartPoleSwingUp` as a ``JaxEnv``, with the same constants"""
    import jax
    import jax.numpy as jnp

    from sb3_gippo import JaxEnv

    core = CartPoleSwingUp(dtype=dtype)
    moment, h = core.pole_mass * core.pole_length / 2, core.dt / core.substeps
    h_cart = core.cart_mass + core.pole_mass + core.armature
    h_pole = core.pole_inertia + moment * core.pole_length / 2 + core.armature

    def reset(key: Any) -> Any:
        width = jnp.array([core.start_spread] * 2 + [core.start_speed_spread] * 2, dtype)
        return jnp.array([0.0, -np.pi, 0.0, 0.0], dtype) + width * (jax.random.uniform(key, (4,), dtype) - 0.5)

    def step(state: Any, action: Any, key: Any) -> Any:
        force = jnp.clip(action[0], -1.0, 1.0) * core.max_force
        x, angle, speed, spin = state
        for _ in range(core.substeps):
            sine, coupling = jnp.sin(angle), moment * jnp.cos(angle)
            beyond = x - jnp.clip(x, -core.rail, core.rail)
            push = force - core.cart_damping * speed - core.rail_stiffness * beyond + moment * spin**2 * sine
            twist = moment * core.gravity * sine - core.pole_damping * spin
            determinant = h_cart * h_pole - coupling**2
            speed = speed + h * (h_pole * push - coupling * twist) / determinant
            spin = spin + h * (h_cart * twist - coupling * push) / determinant
            x, angle = x + h * speed, angle + h * spin
        wrapped = jnp.arctan2(jnp.sin(angle), jnp.cos(angle))
        reward = -(wrapped**2) - 0.1 * spin**2 - 0.05 * x**2 - 0.1 * speed**2
        return jnp.stack([x, angle, speed, spin]), reward, False

    def observe(state: Any) -> Any:
        x, angle, speed, spin = state
        return jnp.stack([x, speed, jnp.sin(angle), jnp.cos(angle), spin])

    return JaxEnv(reset, step, observe, core.observation_space, core.action_space)


@lru_cache
def warp_kernel(dtype: str) -> Any:
    """:return: Warp's kernel of a step in float32 or float64, and its type of a number"""
    import warp as wp

    wp.config.log_level = wp.LOG_ERROR
    wp.config.kernel_cache_dir = tempfile.mkdtemp()  # compiled anew in every process
    wp.init()
    real: Any = getattr(wp, dtype)

    @wp.kernel(module="unique")
    def step(
        state: wp.array2d(dtype=real),  # type: ignore[valid-type]
        action: wp.array2d(dtype=real),  # type: ignore[valid-type]
        constants: wp.array(dtype=real),  # type: ignore[valid-type]
        following: wp.array2d(dtype=real),  # type: ignore[valid-type]
        reward: wp.array(dtype=real),  # type: ignore[valid-type]
    ) -> None:
        i = wp.tid()
        h, gravity, moment, h_cart, h_pole = constants[0], constants[1], constants[2], constants[3], constants[4]
        cart_damping, pole_damping, rail, stiffness = constants[5], constants[6], constants[7], constants[8]
        force = wp.clamp(action[i, 0], real(-1.0), real(1.0)) * constants[9]
        x = state[i, 0]
        angle = state[i, 1]
        speed = state[i, 2]
        spin = state[i, 3]
        for _ in range(wp.static(CartPoleSwingUp.substeps)):
            sine, coupling = wp.sin(angle), moment * wp.cos(angle)
            beyond = x - wp.clamp(x, -rail, rail)
            push = force - cart_damping * speed - stiffness * beyond + moment * spin * spin * sine
            twist = moment * gravity * sine - pole_damping * spin
            determinant = h_cart * h_pole - coupling * coupling
            speed = speed + h * (h_pole * push - coupling * twist) / determinant
            spin = spin + h * (h_cart * twist - coupling * push) / determinant
            x = x + h * speed
            angle = angle + h * spin
        wrapped = wp.atan2(wp.sin(angle), wp.cos(angle))
        following[i, 0] = x
        following[i, 1] = angle
        following[i, 2] = speed
        following[i, 3] = spin
        reward[i] = -wrapped * wrapped - real(0.1) * spin * spin - real(0.05) * x * x - real(0.1) * speed * speed

    return step, real


class KernelStep(th.autograd.Function):
    """Warp's step forward, and its adjoint backward."""

    @staticmethod
    def forward(ctx: Any, state: th.Tensor, action: th.Tensor, constants: th.Tensor) -> Any:
        following, reward = th.empty_like(state), state.new_empty(len(state))
        ctx.save_for_backward(state, action, constants, following, reward)
        KernelStep.launch([state, action, constants], [following, reward])
        return following, reward

    @staticmethod
    def backward(ctx: Any, *bars: th.Tensor) -> Any:
        state, action, constants, following, reward = ctx.saved_tensors
        pulled = [th.zeros_like(state), th.zeros_like(action)]
        # An adjoint adds to, and may clear, what it is given.
        given = [bar.clone() for bar in bars]
        KernelStep.launch([state, action, constants], [following, reward], [*pulled, None], given)
        return *pulled, None

    @staticmethod
    def launch(inputs: list[Any], outputs: list[Any], adj_inputs: Any = None, adj_outputs: Any = None) -> None:
        import warp as wp

        kernel, real = warp_kernel(str(inputs[0].dtype).removeprefix("torch."))

        def arrays(tensors: list[Any]) -> list[Any]:
            return [None if x is None else wp.from_torch(x.detach().contiguous(), dtype=real) for x in tensors]

        adjoint: dict[str, Any] = {}
        if adj_inputs is not None:
            adjoint = {"adj_inputs": arrays(adj_inputs), "adj_outputs": arrays(adj_outputs), "adjoint": True}
        wp.launch(kernel, len(inputs[0]), arrays(inputs), arrays(outputs), device="cpu", **adjoint)


class WarpCartPole(CartPoleSwingUp):
    """:class:`CartPoleSwingUp` with its step in one kernel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        moment = self.pole_mass * self.pole_length / 2
        h_cart = self.cart_mass + self.pole_mass + self.armature
        h_pole = self.pole_inertia + moment * self.pole_length / 2 + self.armature
        damping = (self.cart_damping, self.pole_damping)
        row = (self.dt / self.substeps, self.gravity, moment, h_cart, h_pole, *damping, self.rail, self.rail_stiffness)
        self.constants = th.tensor([*row, self.max_force], dtype=self.torch_dtype)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        following, reward = KernelStep.apply(state, action, self.constants)
        return following, reward, th.zeros(len(state), dtype=th.bool)


def make(engine: str, n_envs: int, dtype: str = "float32") -> DifferentiableVecEnv:
    """:return: environments without a time limit"""
    if engine == "jax":
        from sb3_gippo import JaxVecEnv

        return JaxVecEnv(jax_cart_pole(dtype), n_envs)
    return DifferentiableVecEnv(BatchedEnv({"torch": CartPoleSwingUp, "warp": WarpCartPole}[engine], n_envs, dtype=dtype))


def window(env: DifferentiableVecEnv, differentiable: bool, dtype: Any, steps: int = WINDOW) -> tuple[Any, ...]:
    """
    Steps from always the same states with always the same actions, and the backward sweep through them.

    :return: states (steps, N, 4), rewards (steps, N), the derivative of all rewards by the actions (steps, N, 1) or ``None``
    """
    env.env.set_differentiable(differentiable)
    env.env.set_state(starts(env.num_envs).astype(dtype))
    rng = np.random.default_rng(1)
    states, rewards, gradients = [], [], []
    for _ in range(steps):
        action = rng.uniform(-1, 1, (env.num_envs, 1)).astype(np.float32)  # numbers that both types have
        rewards.append(env.step(action.astype(dtype))[1])
        gradients.append(env.step_gradient)
        if differentiable:
            states.append(gradients[-1].next_state)  # type: ignore[union-attr]
    if not differentiable:
        return np.array(states), np.array(rewards), None
    state_bar, pulled = None, []
    number = getattr(th, np.dtype(dtype).name)
    nothing, one = th.zeros(env.num_envs, 5, dtype=number), th.ones(env.num_envs, dtype=number)
    for gradient in reversed(gradients):
        state_bar, action_bar = gradient.vjp(state_bar, nothing, one)  # type: ignore[union-attr]
        pulled.append(action_bar.numpy())
    return np.array(states), np.array(rewards), np.array(pulled[::-1])


def starts(n_envs: int) -> np.ndarray:
    """:return: (N, 4) of float32"""
    return CartPoleSwingUp().initial_state(n_envs, th.Generator().manual_seed(0)).numpy()


def deviations(engine: str, dtype: str, n_envs: int = 16) -> list[float]:
    """:return: of states, rewards and gradients, the largest difference to torch in float64, relative to the largest number"""
    found, expected = (
        window(prepared(name, n_envs, kind), True, kind) for name, kind in ((engine, dtype), ("torch", "float64"))
    )
    return [float(np.abs(one - other).max() / np.abs(other).max()) for one, other in zip(found, expected)]


def prepared(engine: str, n_envs: int, dtype: str) -> DifferentiableVecEnv:
    """:return: reset"""
    env = make(engine, n_envs, dtype)
    env.seed(0)
    env.reset()
    return env


def seconds(env: DifferentiableVecEnv, differentiable: bool, steps: int = WINDOW) -> float:
    """:return: processor time of one window"""
    start = time.process_time()
    window(env, differentiable, "float32", steps)
    return time.process_time() - start


def measure(engine: str, sizes: list[int], windows: int) -> list[dict[str, Any]]:
    """:return: rows of the table"""
    rows: list[dict[str, Any]] = []
    for n_envs in sizes:
        env = prepared(engine, n_envs, "float32")
        for what, differentiable in (("forward", False), ("gradient", True)):
            first = seconds(env, differentiable, 1)
            spent = [seconds(env, differentiable) for _ in range(windows)]
            median, best = (round(WINDOW * n_envs / value) for value in (np.median(spent), min(spent)))
            row = {"engine": engine, "n_envs": n_envs, "what": what, "median": median, "best": best}
            rows.append({**row, "first_s": round(first, 2)})
            print(f"{engine}, {n_envs} environments: {median:,} {what} steps/s (best window {best:,}),", end=" ")
            print(f"{first:.2f} s for the first", flush=True)
    # Last, or nothing would be left to compile.
    deviation = f"{max(deviations(engine, 'float32')):.1e}"
    print(f"{engine} deviates by {deviation} within {WINDOW} steps", flush=True)
    return [{**row, "deviation": deviation} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--n-envs", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # one core for all: JAX would take every one
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for engine in args.engines for row in measure(engine, args.n_envs, args.windows)]
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
