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
    Spheres and capsules are drawn as they are, other geoms as the sphere about their middle. The camera follows; the ground
    has a mark every metre.

    :param model: MuJoCo's
    :param position: qpos (nq,)
    :return: (height, width, 3) of unsigned bytes
    """
    mujoco = import_mujoco()
    data = mujoco.MjData(model)
    data.qpos[:] = position
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    ground, seen = 0.0, []
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
            ground = float(data.geom_xpos[geom, 2])
        elif model.geom_bodyid[geom]:
            seen.append(geom)
    middle = float(data.subtree_com[1, 0])
    scale = height / max(2.2, 1.3 * float(data.geom_xpos[seen, 2].max() - ground))
    canvas = Canvas(width, height, center=(middle, ground + 0.42 * height / scale), scale=scale)
    half = width / scale
    canvas.polygon(
        [(middle - half, ground), (middle + half, ground), (middle + half, ground - half), (middle - half, ground - half)],
        GROUND,
    )
    for metre in range(int(middle - half), int(middle + half) + 1):
        canvas.line((float(metre), ground - 0.02), (float(metre), ground - 0.08), MARK, 0.02)
    depth = data.geom_xpos[:, 1] - data.geom_xpos[seen, 1].min()
    shade = 1 - SHADE * depth / max(0.5, depth[seen].max())
    for geom in sorted(seen, key=lambda geom: -depth[geom]):
        x, _, z = data.geom_xpos[geom]
        red, green, blue = (round(255 * float(part * shade[geom])) for part in model.geom_rgba[geom, :3])
        color = red, green, blue
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            radius, reach = model.geom_size[geom, 0], model.geom_size[geom, 1] * data.geom_xmat[geom].reshape(3, 3)[:, 2]
            canvas.line((x - reach[0], z - reach[2]), (x + reach[0], z + reach[2]), color, 2 * radius)
        else:
            canvas.circle((x, z), float(model.geom_rbound[geom]), color)
    return canvas.array()
