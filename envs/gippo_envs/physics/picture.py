"""A robot from the side, drawn after the places of its geoms."""

from __future__ import annotations

from typing import Any

import numpy as np

from gippo_envs.physics.mjcf import import_mujoco
from gippo_envs.rendering import Canvas, Color

GROUND: Color = (225, 225, 220)
MARK: Color = (190, 190, 185)
SHADE = 0.35
"""by how much the farthest geom is darker than the nearest, of a robot 0.5 m deep or more"""


def draw(model: Any, position: np.ndarray, width: int = 480, height: int = 360) -> np.ndarray:
    """
    Look along y at the x-z plane through the robot, in the file's colors; what is further away is drawn first and darker.
    Spheres and capsules are drawn as they are, other geoms as the sphere about their middle. The camera follows, in a distance
    that fits the robot; the ground has a mark every metre.

    :param model: MuJoCo's
    :param position: qpos (nq,)
    :return: (height, width, 3) of unsigned bytes
    """
    mujoco = import_mujoco()
    data, still = _placed(mujoco, model, position), _placed(mujoco, model, model.qpos0)
    planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    robot = (model.geom_bodyid > 0) & ~planes
    # The distance fits the model's own pose, that it stays the same.
    around = model.geom_rbound[robot, None]
    low, high = (still.geom_xpos[robot] - around).min(0), (still.geom_xpos[robot] + around).max(0)
    tall = float(1.5 * max(high[2] - low[2], 0.6 * (high[0] - low[0])))
    risen = float(data.xpos[1, 2] - still.xpos[1, 2])
    x, z = float(data.subtree_com[1, 0]), float(low[2] + high[2]) / 2 + risen - 0.15 * tall
    ground = float(data.geom_xpos[planes, 2][0]) if planes.any() else z - tall
    canvas = Canvas(width, height, center=(x, max(z, ground + 0.42 * tall)), scale=height / tall)
    left, right = x - tall * width / height, x + tall * width / height
    canvas.polygon([(left, ground), (right, ground), (right, ground - tall), (left, ground - tall)], GROUND)
    for metre in range(int(left), int(right) + 1):
        canvas.line((float(metre), ground - 0.02), (float(metre), ground - 0.08), MARK, 0.02)
    depth = data.geom_xpos[:, 1] - data.geom_xpos[robot, 1].min()
    shade = 1 - SHADE * np.clip(depth / max(0.5, depth[robot].max()), 0, 1)
    for geom in sorted(np.flatnonzero(~planes), key=lambda geom: (robot[geom], -depth[geom])):
        x, _, z = data.geom_xpos[geom]
        red, green, blue = (round(255 * float(part * shade[geom])) for part in model.geom_rgba[geom, :3])
        color = red, green, blue
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            radius, reach = model.geom_size[geom, 0], model.geom_size[geom, 1] * data.geom_xmat[geom].reshape(3, 3)[:, 2]
            canvas.line((x - reach[0], z - reach[2]), (x + reach[0], z + reach[2]), color, 2 * radius)
        else:
            canvas.circle((x, z), float(model.geom_rbound[geom]), color)
    return canvas.array()


def _placed(mujoco: Any, model: Any, position: np.ndarray) -> Any:
    """:return: MuJoCo's data at this qpos, with the places of bodies and geoms"""
    data = mujoco.MjData(model)
    data.qpos[:] = position
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data
