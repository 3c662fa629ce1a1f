"""
A robot's steps and their derivatives as machine code: one Warp kernel for all substeps of a step, one for its adjoint.

Both are the equations of :mod:`~gippo_envs.physics.dynamics`, written down once for the robot as straight-line code.
Warp compiles
it for the CPU or the GPU and keeps the result on the disk.
"""

import os
import time
from functools import cache
from typing import Any

import torch as th
from gymnasium.error import DependencyNotInstalled

from gippo_envs.physics import dynamics
from gippo_envs.physics.dynamics import Constants
from gippo_envs.physics.symbols import Tape
from gippo_envs.physics.tree import Tree

OPTIONS = {
    "cpu_compiler_flags": "-march=native -fno-slp-vectorize -ffp-contract=fast",
    "enable_backward": False,
}
"""of Warp. Straight-line code gains a third from fused products and sums, and loses by attempts to find vectors in it."""
LOOP = """
typedef {real} T;
for (int k = {first}) {{
    const T* x = states.data + i + k * {nx} * n;
    {arrays}
{body}
}}
"""


def _import_warp() -> Any:
    try:
        import warp
    except ImportError as error:
        raise DependencyNotInstalled('Robots are simulated by Warp: pip install "sb3-gippo[physics]"') from error
    warp.config.log_level = warp.LOG_ERROR  # without a GPU it warns of that
    warp.init()
    return warp


class _Inputs:
    """The numbers that a substep starts from, as symbols."""

    def __init__(self, tree: Tree) -> None:
        self.tape = tape = Tape()
        self.q = [tape.input(f"x[{k} * n]") for k in range(tree.nq)]
        self.v = [tape.input(f"x[{tree.nq + k} * n]") for k in range(tree.nv)]
        self.action = [tape.input(f"u[{k} * n]") for k in range(len(tree.motors))]
        self.constants = Constants(*(tape.input(f"c[{k}]") for k in range(len(Constants._fields))))


def _step_code(tree: Tree, real: str) -> str:
    """C of all substeps: fills the rows of ``states`` and ``accelerations``, or overwrites the first where nothing is kept."""
    given = _Inputs(tree)
    q, v, h = given.q, given.v, given.constants.h
    a = dynamics.acceleration(tree, q, v, given.action, given.constants)
    new_v = [speed + h * change for speed, change in zip(v, a)]
    new_q = dynamics.advance(tree, q, new_v, h)
    outputs = [(f"y[{k} * n]", value) for k, value in enumerate([*new_q, *new_v])]
    outputs += [(f"b[{k} * n]", value) for k, value in enumerate(a)]
    nx = tree.nq + tree.nv
    arrays = f"""const T* u = actions.data + i; const T* c = constants.data;
    T* y = states.data + i + (k + 1) * {nx} * n; T* b = accelerations.data + i + k * {tree.nv} * n;"""
    return LOOP.format(real=real, first="0; k < substeps; ++k", nx=nx, arrays=arrays, body=given.tape.code(outputs))


def _adjoint_code(tree: Tree, real: str) -> str:
    """
    C of the sweep from the last substep to the first: ``adj_state`` goes from the derivatives by the state after the
    step to those
    by the state before it, ``adj_action`` gathers those by the action.
    """
    given = _Inputs(tree)
    tape, q, v, constants = given.tape, given.q, given.v, given.constants
    a = [tape.input(f"b[{k} * n]") for k in range(tree.nv)]
    adj_q = [tape.input(f"d[{k} * n]") for k in range(tree.nq)]
    adj_v = [tape.input(f"d[{tree.nq + k} * n]") for k in range(tree.nv)]
    new_v = [speed + constants.h * change for speed, change in zip(v, a)]
    new_q = dynamics.advance(tree, q, new_v, constants.h)
    by_advance = tape.gradient(dynamics.dot(adj_q, new_q), [*q, *new_v])
    by_q, adj_v = by_advance[: tree.nq], dynamics.add(adj_v, by_advance[tree.nq :])
    moving = dynamics.move(tree, q, v, constants)
    w = [x.detach() for x in dynamics.MassMatrix(tree, moving).solve(dynamics.scale(adj_v, constants.h))]
    missed = dynamics.residual_power(tree, moving, q, v, a, given.action, w, constants)
    slopes = tape.gradient(missed, [*q, *v, *given.action])
    outputs = [(f"d[{k} * n]", x - y) for k, (x, y) in enumerate(zip([*by_q, *adj_v], slopes))]
    outputs += [(f"g[{k} * n]", tape.input(f"g[{k} * n]") - slope) for k, slope in enumerate(slopes[tree.nq + tree.nv :])]
    arrays = f"""const T* u = actions.data + i; const T* c = constants.data;
    const T* b = accelerations.data + i + k * {tree.nv} * n; T* d = adj_state.data + i; T* g = adj_action.data + i;"""
    first, nx = "substeps - 1; k >= 0; --k", tree.nq + tree.nv
    return LOOP.format(real=real, first=first, nx=nx, arrays=arrays, body=tape.code(outputs))


class Kernels:
    """
    The two kernels of a robot.

    :param tree: the robot
    :param dtype: of all numbers, float32 or float64
    :param device: of torch
    :raises DependencyNotInstalled: without Warp
    """

    def __init__(self, tree: Tree, dtype: th.dtype, device: th.device):
        self.warp = wp = _import_warp()
        self.tree = tree
        self.device = wp.device_from_torch(device)
        real = {th.float32: wp.float32, th.float64: wp.float64}[dtype]
        numbers = wp.array(dtype=real)
        name = {th.float32: "float", th.float64: "double"}[dtype]

        @wp.func_native(_step_code(tree, name))
        def substeps_of_a_step(
            states: numbers, accelerations: numbers, actions: numbers, constants: numbers, i: int, n: int, substeps: int
        ): ...

        @wp.kernel(module="unique", module_options=OPTIONS)
        def step(states: numbers, accelerations: numbers, actions: numbers, constants: numbers, n: int, substeps: int):
            substeps_of_a_step(states, accelerations, actions, constants, wp.tid(), n, substeps)

        @wp.func_native(_adjoint_code(tree, name))
        def substeps_of_its_adjoint(
            states: numbers,
            accelerations: numbers,
            actions: numbers,
            constants: numbers,
            adj_state: numbers,
            adj_action: numbers,
            i: int,
            n: int,
            substeps: int,
        ): ...

        @wp.kernel(module="unique", module_options=OPTIONS)
        def adjoint(
            states: numbers,
            accelerations: numbers,
            actions: numbers,
            constants: numbers,
            adj_state: numbers,
            adj_action: numbers,
            n: int,
            substeps: int,
        ):
            substeps_of_its_adjoint(states, accelerations, actions, constants, adj_state, adj_action, wp.tid(), n, substeps)

        self.step, self.adjoint = step, adjoint

        self._compile()

    def _compile(self) -> None:
        """Both kernels at once, that nobody waits in the middle of training, with a word where that takes long."""
        start = time.perf_counter()
        missing = [kernel for kernel in (self.step, self.adjoint) if not self._is_cached(kernel)]
        if missing:
            print(f"Compiling the physics of {self.tree.name} for {self.device} (once, it is kept) ...", end=" ", flush=True)
        for kernel in (self.step, self.adjoint):
            kernel.module.load(self.device)
        if missing:
            print(f"{time.perf_counter() - start:.0f} s")

    def _is_cached(self, kernel: Any) -> bool:
        folder = kernel.module.get_module_identifier()
        return os.path.isdir(os.path.join(self.warp.config.kernel_cache_dir, folder))

    def launch(self, kernel: Any, n: int, *arguments: Any) -> None:
        wp = self.warp
        inputs = [wp.from_torch(x.detach().view(-1), return_ctype=True) if isinstance(x, th.Tensor) else x for x in arguments]
        wp.launch(kernel, n, inputs=inputs, device=self.device)


@cache
def kernels(tree: Tree, dtype: th.dtype, device: th.device) -> Kernels:
    """:return: the robot's, made at the first call"""
    return Kernels(tree, dtype, device)


class Step(th.autograd.Function):
    """One step of n robots: (nq + nv, n), (actions, n) -> (nq + nv, n)."""

    @staticmethod
    def forward(
        ctx: Any, state: th.Tensor, action: th.Tensor, constants: th.Tensor, kernels: Kernels, substeps: int
    ) -> th.Tensor:
        n, nv = state.shape[1], kernels.tree.nv
        states = state.new_empty(substeps + 1, *state.shape)
        states[0] = state
        accelerations = state.new_empty(substeps, nv, n)
        kernels.launch(kernels.step, n, states, accelerations, action, constants, n, substeps)
        ctx.saved = states, accelerations, action, constants
        ctx.kernels = kernels
        return states[-1]

    @staticmethod
    def backward(ctx: Any, adj: th.Tensor) -> Any:
        states, accelerations, action, constants = ctx.saved
        n = adj.shape[1]
        adj_state, adj_action = adj.clone(memory_format=th.contiguous_format), th.zeros_like(action)
        ctx.kernels.launch(
            ctx.kernels.adjoint, n, states, accelerations, action, constants, adj_state, adj_action, n, len(accelerations)
        )
        return adj_state, adj_action, None, None, None
