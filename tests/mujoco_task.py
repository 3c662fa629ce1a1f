"""A user's MuJoCo task with everything that is awkward: see :class:`Juggler`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

XML = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <default><geom density="300" friction="0.8"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 0.1"/>
    <body name="arm" pos="0 0 0.6">
      <joint name="lift" type="slide" axis="0 0 1" damping="1" stiffness="50"/>
      <geom type="capsule" size="0.04" fromto="0 0 0 0.3 0 0"/>
      <body name="wrist" pos="0.3 0 0">
        <joint name="wrist" type="ball" damping="0.2" stiffness="2"/>
        <geom type="box" size="0.1 0.08 0.02" pos="0.1 0 0"/>
        <site name="palm" pos="0.1 0 0.02"/>
      </body>
    </body>
    <body name="stone" pos="-0.4 0 0.05">
      <freejoint/>
      <geom type="box" size="0.06 0.05 0.04"/>
    </body>
  </worldbody>
  <actuator>
    <general name="lift" joint="lift" dyntype="filter" dynprm="0.03" gainprm="30" ctrlrange="-1 1" ctrllimited="true"/>
    <motor name="turn" joint="wrist" gear="0 1 0.5" ctrlrange="-2 2" ctrllimited="true"/>
  </actuator>
  <sensor><framelinvel name="palm_velocity" objtype="site" objname="palm"/></sensor>
</mujoco>
"""


class Juggler(MujocoEnv):
    """
    Quaternions, actuators with an activation, a controller of its own in every substep, noise, memory in Python that
    changes in place, named access and views of MuJoCo's arrays kept in attributes, rewards from differences of
    positions that lag behind.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, **kwargs: Any):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "juggler.xml"
            path.write_text(XML)
            super().__init__(str(path), 4, spaces.Box(-np.inf, np.inf, (31,), np.float64), **kwargs)
        self.palm = self.data.site("palm")
        self.arm_position = self.data.xpos[1]
        self.memory: dict[str, Any] = {"steps": 0, "heights": []}

    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        for _ in range(n_frames):
            lift = ctrl[0] - 0.5 * self.data.qvel[0]
            self._step_mujoco_simulation(np.array([lift, ctrl[1]]), 1)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.palm.xpos.copy()
        self.do_simulation(action + 0.05 * self.np_random.normal(size=2), self.frame_skip)
        self.memory["steps"] += 1
        heights = self.memory["heights"]
        heights.append(float(self.arm_position[2]))
        velocity = (self.palm.xpos - before) / self.dt
        bonus = 0.1 * np.sin(0.3 * self.memory["steps"]) * heights[-1] + 0.01 * len(heights) * self.arm_position[2]
        reward = velocity @ [0.2, -0.1, 1.0] - 0.1 * np.square(action).sum() + bonus
        info = {"heights": list(heights)}
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), reward, bool(self.data.qpos[0] < -0.3), False, info

    def _get_obs(self) -> np.ndarray:
        data = self.data
        parts = [
            data.qpos,
            data.qvel,
            data.act,
            self.palm.xpos,
            data.sensordata,
            self.arm_position[2:],
            data.actuator_force[:1],
        ]
        return np.concatenate(parts)

    def reset_model(self) -> np.ndarray:
        self.memory["steps"] = 0
        self.memory["heights"].clear()
        noise = 0.05 * self.np_random.normal(size=self.model.nv)
        position = self.init_qpos.copy()
        mujoco.mj_integratePos(self.model, position, noise, 1.0)
        self.set_state(position, 0.1 * self.np_random.normal(size=self.model.nv))
        return self._get_obs()
