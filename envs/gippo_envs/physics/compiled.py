"""
A robot's steps and their derivatives as machine code: one Warp kernel for all substeps of a step, one for its adjoint.

Both are the equations of :mod:`~gippo_envs.physics.dynamics`, written down once for the robot as straight-line code. Warp
compiles it for the CPU or the GPU and keeps the result on the disk.
"""

import os
import time
from functools import cache
from typing import Any

import torch as th
from gymnasium.error import DependencyNotInstalled
from torch.autograd.function import once_differentiable

from gippo_envs.physics import dynamics
from gippo_envs.physics.dynamics import Constants
from gippo_envs.physics.symbols import Tape
from gippo_envs.physics.tree import Tree

OPTIONS = {
    "cpu_compiler_flags": "-march=native -fno-slp-vectorize -ffp-contract=fast",
    "enable_backward": False,
}
"""of Warp. Straight-line code gains a third from fused products and sums, and loses by attempts to find vectors in it."""
LANES = {th.float32: 8, th.float64: 4}
"""robots that a CPU computes side by side, in one register of 256 bits"""
CPU_NUMBERS = """typedef {real} T __attribute__((ext_vector_type({lanes})));
auto sine = [](T x) {{ for (int j = 0; j < {lanes}; ++j) x[j] = wp::sin(x[j]); return x; }};
auto cosine = [](T x) {{ for (int j = 0; j < {lanes}; ++j) x[j] = wp::cos(x[j]); return x; }};
auto root = [](T x) {{ return __builtin_elementwise_sqrt(x); }};"""
GPU_NUMBERS = """typedef {real} T;
auto sine = [](T x) {{ return wp::sin(x); }};
auto cosine = [](T x) {{ return wp::cos(x); }};
auto root = [](T x) {{ return wp::sqrt(x); }};"""
LOOP = """
{numbers}
for (int k = {first}) {{
    const T* x = (const T*)states.data + i + {row} * {nx} * n;
    {arrays}
{body}
}}
"""


def _import_warp() -> Any:
    try:
        import warp
    except ImportError as error:
        raise DependencyNotInstalled('Robots are simulated by Warp: pip install "sb3-gippo[physics]"') from error
    warp.config.log_level = warp.LOG_ERROR  # no greeting; a missing GPU is told by its C library, whatever is set here
    warp.init()
    return warp


class _Inputs:
    """The numbers that a substep starts from, as symbols."""

    def __init__(self, tree: Tree) -> None:
        self.tape = tape = Tape()
        self.q = [tape.input(f"x[{k} * n]") for k in range(tree.nq)]
        self.v = [tape.input(f"x[{tree.nq + k} * n]") for k in range(tree.nv)]
        self.action = [tape.input(f"u[{k} * n]") for k in range(len(tree.motors))]
        self.constants = Constants(*(tape.input(f"T(c[{k}])") for k in range(len(Constants._fields))))


def _step_code(tree: Tree, numbers: str) -> str:
    """
    C of all substeps: fills the rows of ``states`` and ``accelerations`` where ``kept`` is 1, and overwrites the first again
    and again where it is 0.
    """
    given = _Inputs(tree)
    q, v, h = given.q, given.v, given.constants.h
    a = dynamics.acceleration(tree, q, v, given.action, given.constants)
    new_v = [speed + h * change for speed, change in zip(v, a)]
    new_q = dynamics.advance(tree, q, new_v, h)
    outputs = [(f"y[{k} * n]", value) for k, value in enumerate([*new_q, *new_v])]
    outputs += [(f"b[{k} * n]", value) for k, value in enumerate(a)]
    nx = tree.nq + tree.nv
    arrays = f"""const T* u = (const T*)actions.data + i; const auto* c = constants.data;
    T* y = (T*)states.data + i + (k + 1) * kept * {nx} * n; T* b = (T*)accelerations.data + i + k * kept * {tree.nv} * n;"""
    first, body = "0; k < substeps; ++k", given.tape.code(outputs)
    return LOOP.format(numbers=numbers, first=first, row="k * kept", nx=nx, arrays=arrays, body=body)


def _adjoint_code(tree: Tree, numbers: str) -> str:
    """
    C of the sweep from the last substep to the first: ``adj_state`` goes from the derivatives by the state after the step to
    those by the state before it, ``adj_action`` gathers those by the action.
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
    arrays = f"""const T* u = (const T*)actions.data + i; const auto* c = constants.data;
    const T* b = (const T*)accelerations.data + i + k * {tree.nv} * n;
    T* d = (T*)adj_state.data + i; T* g = (T*)adj_action.data + i;"""
    first, nx = "substeps - 1; k >= 0; --k", tree.nq + tree.nv
    return LOOP.format(numbers=numbers, first=first, row="k", nx=nx, arrays=arrays, body=tape.code(outputs))


class Kernels:
    """
    The two kernels of a robot.

    :param tree: the robot
    :param dtype: of all numbers, float32 or float64
    :param device: of torch
    :raises DependencyNotInstalled: without Warp
    :ivar lanes: number of robots that one thread of the kernels computes, side by side
    """

    def __init__(self, tree: Tree, dtype: th.dtype, device: th.device):
        self.warp = wp = _import_warp()
        self.tree = tree
        self.device = wp.device_from_torch(device)
        self._block = 64 if self.device.is_cuda else 1  # threads; compiled code is kept by it
        real = {th.float32: wp.float32, th.float64: wp.float64}[dtype]
        numbers = wp.array(dtype=real)
        name = {th.float32: "float", th.float64: "double"}[dtype]
        self.lanes = 1 if self.device.is_cuda else LANES[dtype]
        numbers_code = (GPU_NUMBERS if self.device.is_cuda else CPU_NUMBERS).format(real=name, lanes=self.lanes)

        def typed(function: Any) -> Any:
            """Its arguments' types, for Warp: i, n, substeps and kept are whole numbers, the others arrays."""
            arguments = [argument for argument in function.__annotations__ if argument != "return"]
            whole = ("i", "n", "substeps", "kept")
            function.__annotations__ = {argument: int if argument in whole else numbers for argument in arguments}
            return function

        @wp.func_native(_step_code(tree, numbers_code))
        @typed
        def substeps_of_a_step(
            states: Any, accelerations: Any, actions: Any, constants: Any, i: Any, n: Any, substeps: Any, kept: Any
        ) -> None: ...

        @wp.kernel(module="unique", module_options=OPTIONS)
        @typed
        def step(states: Any, accelerations: Any, actions: Any, constants: Any, n: Any, substeps: Any, kept: Any) -> None:
            substeps_of_a_step(states, accelerations, actions, constants, wp.tid(), n, substeps, kept)

        @wp.func_native(_adjoint_code(tree, numbers_code))
        @typed
        def substeps_of_its_adjoint(
            states: Any,
            accelerations: Any,
            actions: Any,
            constants: Any,
            adj_state: Any,
            adj_action: Any,
            i: Any,
            n: Any,
            substeps: Any,
        ) -> None: ...

        @wp.kernel(module="unique", module_options=OPTIONS)
        @typed
        def adjoint(
            states: Any,
            accelerations: Any,
            actions: Any,
            constants: Any,
            adj_state: Any,
            adj_action: Any,
            n: Any,
            substeps: Any,
        ) -> None:
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
            kernel.module.load(self.device, self._block)
        if missing:
            print(f"{time.perf_counter() - start:.0f} s")

    def _is_cached(self, kernel: Any) -> bool:
        folder = kernel.module.get_module_identifier(self._block)
        return os.path.isdir(os.path.join(self.warp.config.kernel_cache_dir, folder))

    def pad(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: a column for every robot, (rows, n)
        :return: a copy (rows, N), N the next multiple of :attr:`lanes`, with the last column repeated
        """
        n = x.shape[1]
        padded = x.new_empty(len(x), -(-n // self.lanes) * self.lanes)
        padded[:, :n] = x
        if padded.shape[1] > n:
            padded[:, n:] = x[:, -1:]
        return padded

    def launch(self, kernel: Any, size: int, *arguments: Any) -> None:
        """
        :param kernel: :attr:`step` or :attr:`adjoint`
        :param size: N, number of columns
        :param arguments: contiguous tensors, and numbers behind n
        """
        wp, n = self.warp, size // self.lanes
        tensors = [x for x in arguments if isinstance(x, th.Tensor)]
        inputs = [wp.from_torch(x.detach().view(-1), return_ctype=True) for x in tensors]
        inputs += [n, *arguments[len(tensors) :]]
        stream = wp.stream_from_torch() if self.device.is_cuda else None  # torch's, that neither overtakes the other
        wp.launch(kernel, n, inputs=inputs, device=self.device, stream=stream, block_dim=self._block)


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
        action = kernels.pad(action)
        nx, size, kept = len(state), action.shape[1], any(ctx.needs_input_grad)
        rows = substeps if kept else 1
        states = state.new_empty(rows + kept, nx, size)
        states[0] = kernels.pad(state)
        accelerations = state.new_empty(rows, kernels.tree.nv, size)
        kernels.launch(kernels.step, size, states, accelerations, action, constants, substeps, int(kept))
        if kept:
            ctx.saved = states, accelerations, action, constants
            ctx.kernels = kernels
        return states[-1, :, : state.shape[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adj: th.Tensor) -> Any:
        states, accelerations, action, constants = ctx.saved
        n, kernels = adj.shape[1], ctx.kernels
        adj_state, adj_action = kernels.pad(adj), th.zeros_like(action)
        given = states, accelerations, action, constants, adj_state, adj_action
        kernels.launch(kernels.adjoint, action.shape[1], *given, len(accelerations))
        return adj_state[:, :n], adj_action[:, :n], None, None, None
