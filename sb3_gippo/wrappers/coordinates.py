"""The differentiable state of a MuJoCo simulation as numbers."""

from __future__ import annotations

import mujoco
import numpy as np


class Coordinates:
    """
    x = (displacement of the positions from the model's ``qpos0`` in the tangent space, ``qvel``, ``act``), (2 nv + na,): for
    slides and hinges the plain difference, rotation vectors (of at most π) instead of quaternions.

    :param model: the model
    :ivar size: n
    """

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        self.size: int = 2 * model.nv + model.na
        self.reference = model.qpos0.copy()
        offsets = {int(mujoco.mjtJoint.mjJNT_FREE): 3, int(mujoco.mjtJoint.mjJNT_BALL): 0}
        first = [dof + offsets[kind] for kind, dof in zip(model.jnt_type, model.jnt_dofadr) if kind in offsets]
        self.rotations = np.array(first, dtype=int)[:, None] + np.arange(3)

    def read(self, data: mujoco.MjData) -> np.ndarray:
        """:return: x (n,)"""
        displacement = np.empty(self.model.nv)
        mujoco.mj_differentiatePos(self.model, displacement, 1.0, self.reference, data.qpos)
        return np.concatenate([displacement, data.qvel, data.act])

    def place(self, data: mujoco.MjData, x: np.ndarray, lag: float = 0.0) -> None:
        """
        Put data into a state, with what a task may read before it simulates: positions of bodies, sites, sensors, ...

        :param data: written to
        :param x: (n,)
        :param lag: how many seconds the positions of bodies are behind those of the joints, see :meth:`lag`
        """
        model, nv = self.model, self.model.nv
        position, warmstart = self.reference.copy(), data.qacc_warmstart.copy()
        mujoco.mj_integratePos(model, position, x[:nv], 1.0)
        data.qpos[:], data.qvel[:], data.act[:] = position, x[nv : 2 * nv], x[2 * nv :]
        if lag > 0:
            mujoco.mj_integratePos(model, data.qpos, data.qvel, -lag)
        mujoco.mj_forward(model, data)
        data.qpos[:], data.qacc_warmstart[:] = position, warmstart

    def lag(self, data: mujoco.MjData, scratch: mujoco.MjData) -> float:
        """
        After a step, MuJoCo leaves bodies where they were when its last substep began: behind the joints by ``timestep`` times
        the velocity it ended with (RK4: by next to nothing). A reset, or a task that calls ``mj_forward``, brings them up to
        date. Rewards that take differences of such positions (Ant, Humanoid) need to know.

        :param data: as it is after a step or a reset
        :param scratch: a copy of it, written to
        :return: ``timestep``, or 0
        """
        model = self.model
        if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            return 0.0

        def distance(lag: float) -> float:
            scratch.qpos[:] = data.qpos
            mujoco.mj_integratePos(model, scratch.qpos, data.qvel, -lag)
            mujoco.mj_kinematics(model, scratch)
            return float(np.abs(scratch.xpos - data.xpos).max())

        return min(0.0, float(model.opt.timestep), key=distance)

    def unwrap(self, x: np.ndarray, near: np.ndarray) -> np.ndarray:
        """
        Undo the jumps of rotation vectors at π to the opposite side.

        :param x: (copies, n)
        :param near: (n,), a state close to all of them
        :return: (copies, n)
        """
        rotation = x[:, self.rotations]
        jumped = np.linalg.norm(rotation - near[self.rotations], axis=2, keepdims=True) > np.pi
        length = np.linalg.norm(rotation, axis=2, keepdims=True).clip(min=1.0)  # a vector that jumped is about π long
        x = x.copy()
        x[:, self.rotations] = np.where(jumped, rotation * (1 - 2 * np.pi / length), rotation)
        return x
