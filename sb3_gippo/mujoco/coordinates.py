"""The differentiable state of a MuJoCo simulation as numbers."""

from __future__ import annotations

import mujoco
import numpy as np

PARTS = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL | mujoco.mjtState.mjSTATE_ACT)
"""what of MuJoCo's state is differentiated"""
NEWTON_STEPS = 4
"""bodies are a substep behind at most: Newton's method, quadratic, is at rounding by then"""


class Coordinates:
    """
    x = (displacement of the positions from the model's ``qpos0`` in the tangent space, ``qvel``, ``act``), (2 nv + na,): for
    slides and hinges the plain difference, rotation vectors (of at most π) instead of quaternions.

    :param model: the model
    :ivar size: n
    :ivar raw_size: nq + nv + na, the length of MuJoCo's own (``qpos``, ``qvel``, ``act``)
    """

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        self.size: int = 2 * model.nv + model.na
        self.raw_size: int = model.nq + model.nv + model.na
        self.reference = model.qpos0.copy()
        offsets = {int(mujoco.mjtJoint.mjJNT_FREE): 3, int(mujoco.mjtJoint.mjJNT_BALL): 0}
        first = [dof + offsets[kind] for kind, dof in zip(model.jnt_type, model.jnt_dofadr) if kind in offsets]
        self.rotations = np.array(first, dtype=int)[:, None] + np.arange(3)

    def raw(self, x: np.ndarray) -> np.ndarray:
        """
        :param x: (copies, n)
        :return: (copies, nq + nv + na)
        """
        nv = self.model.nv
        if len(self.rotations) == 0:
            return np.concatenate([self.reference + x[:, :nv], x[:, nv:]], axis=1)
        positions = np.tile(self.reference, (len(x), 1))
        for position, displacement in zip(positions, x[:, :nv]):
            mujoco.mj_integratePos(self.model, position, displacement, 1.0)
        return np.concatenate([positions, x[:, nv:]], axis=1)

    def read(self, raw: np.ndarray, near: int = 0) -> np.ndarray:
        """
        The inverse of :meth:`raw`.

        :param raw: (copies, nq + nv + na), close to one another
        :param near: the copy whose rotation vectors are at most π; those of the others do not jump to the opposite side
        :return: (copies, n)
        """
        nq, nv = self.model.nq, self.model.nv
        if len(self.rotations) == 0:
            return np.concatenate([raw[:, :nq] - self.reference, raw[:, nq:]], axis=1)
        displacements = np.empty((len(raw), nv))
        for position, displacement in zip(raw[:, :nq], displacements):
            mujoco.mj_differentiatePos(self.model, displacement, 1.0, self.reference, position)
        rotation = displacements[:, self.rotations]
        jumped = np.linalg.norm(rotation - rotation[near], axis=2, keepdims=True) > np.pi
        length = np.linalg.norm(rotation, axis=2, keepdims=True).clip(min=1.0)  # a vector that jumped is about π long
        displacements[:, self.rotations] = np.where(jumped, rotation * (1 - 2 * np.pi / length), rotation)
        return np.concatenate([displacements, raw[:, nq:]], axis=1)

    def place(self, data: mujoco.MjData, raw: np.ndarray, lag: float = 0.0, offset: np.ndarray | None = None) -> None:
        """
        Put data into a state, with what a task may read before it simulates: positions of bodies, sites, sensors, ...

        :param data: written to; its warm start stays
        :param raw: (nq + nv + na,)
        :param lag: how many seconds the bodies are behind the joints, see :meth:`lag`
        :param offset: where they are beyond that, (nv,), see :meth:`behind`; ``None`` for zero
        """
        warmstart = data.qacc_warmstart
        kept = warmstart.copy()
        mujoco.mj_setState(self.model, data, raw, PARTS)
        if lag == 0 and offset is None:
            mujoco.mj_forward(self.model, data)
        else:
            behind = -lag * data.qvel if offset is None else offset - lag * data.qvel
            mujoco.mj_integratePos(self.model, data.qpos, behind, 1.0)
            mujoco.mj_forward(self.model, data)
            mujoco.mj_setState(self.model, data, raw, PARTS)
        warmstart[:] = kept

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

    def behind(self, data: mujoco.MjData, scratch: mujoco.MjData) -> np.ndarray:
        """
        Where the bodies are as seen from the joints, whatever integrator left them there.

        :param data: as it is after a step or a reset
        :param scratch: a copy of it, written to
        :return: the displacement of ``qpos`` that moves the bodies to where they are, (nv,)
        """
        model = self.model
        behind = np.zeros(model.nv)
        jacobian = np.zeros((model.nbody, 2, 3, model.nv))
        for _ in range(NEWTON_STEPS):
            scratch.qpos[:] = data.qpos
            mujoco.mj_integratePos(model, scratch.qpos, behind, 1.0)
            mujoco.mj_kinematics(model, scratch)
            mujoco.mj_comPos(model, scratch)
            for body, (position, rotation) in enumerate(jacobian):
                mujoco.mj_jacBody(model, scratch, position, rotation, body)
            axes = (frames.xmat.reshape(-1, 3, 3).transpose(0, 2, 1) for frames in (scratch, data))
            missing = np.stack([data.xpos - scratch.xpos, np.cross(*axes).sum(axis=1) / 2], axis=1)
            behind += np.linalg.lstsq(jacobian.reshape(-1, model.nv), missing.ravel(), rcond=None)[0]
        return behind
