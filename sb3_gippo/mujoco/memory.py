"""What a step of MuJoCo depends on besides the differentiable state, for the states that were read."""

from __future__ import annotations

import mujoco
import numpy as np

from sb3_gippo.mujoco.coordinates import Coordinates

CAPACITY = 4096
"""number of states that are remembered, the last ones"""


class Memory:
    """
    Remembers how far the bodies were behind the joints in a state, and the solver's warm start: with Runge-Kutta the former is
    no function of the state, and after a reset it is another than after a step.

    :param coordinates: of the model
    """

    def __init__(self, coordinates: Coordinates):
        self.coordinates = coordinates
        self.count = 0
        self.scratch: mujoco.MjData | None = None

    def remember(self, state: np.ndarray, data: mujoco.MjData) -> None:
        """
        :param state: x (n,)
        :param data: the simulation in that state
        """
        model = self.coordinates.model
        if self.scratch is None:
            self.scratch = mujoco.MjData(model)
            self.states = np.empty((CAPACITY, self.coordinates.size))
            self.lags = np.empty(CAPACITY)
            self.offsets, self.warmstarts = np.empty((2, CAPACITY, model.nv))
        mujoco.mj_copyData(self.scratch, model, data)
        lag = self.coordinates.lag(data, self.scratch)
        row = self.count % CAPACITY
        self.states[row], self.lags[row], self.warmstarts[row] = state, lag, data.qacc_warmstart
        self.offsets[row] = self.coordinates.behind(data, self.scratch) + lag * data.qvel
        self.count += 1

    def nearest(self, state: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """
        :param state: x (n,)
        :return: lag, offset (nv,) and warm start (nv,) in the nearest state that is remembered; zeros where none is
        """
        if self.count == 0:
            zeros = np.zeros(self.coordinates.model.nv)
            return 0.0, zeros, zeros
        known = self.states[: min(self.count, CAPACITY)]
        row = int(np.square(known - state).sum(axis=1).argmin())
        return float(self.lags[row]), self.offsets[row], self.warmstarts[row]
