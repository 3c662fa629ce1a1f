"""Robots from MJCF files, read and compiled by MuJoCo itself."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from gippo_envs.physics.dynamics import rotation
from gippo_envs.physics.tree import Link, Motor, Tree


def import_mujoco() -> Any:
    """
    :return: the module
    :raises DependencyNotInstalled: without it
    """
    try:
        import mujoco
    except ImportError as error:
        raise DependencyNotInstalled('Robots are read by MuJoCo: pip install "sb3-gippo[physics]"') from error
    return mujoco


def model_path(file: str) -> str:
    """
    :param file: a path, or the name of a model that comes with Gymnasium (``"ant.xml"``)
    :return: where it is
    :raises ValueError: if there is no such file
    """
    import gymnasium

    for path in (Path(file), Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / file):
        if path.is_file():
            return str(path)
    raise ValueError(f"There is no model {file!r}: give the path of an MJCF file, or the name of one of Gymnasium's.")


def load(file: str) -> Any:
    """
    :param file: as :func:`model_path` takes it
    :return: MuJoCo's compiled model, an ``MjModel``
    """
    mujoco = import_mujoco()
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # it would print, and write a file where the user happens to be
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes in Gymnasium's files that MuJoCo will give up some day
            return mujoco.MjModel.from_xml_path(model_path(file))
    finally:
        mujoco.set_mju_user_warning(handler)


def scale_mass(model: Any, mass: float) -> None:
    """
    Change the masses and inertias of all bodies by one factor.

    :param model: an ``mujoco.MjModel``
    :param mass: of the whole robot, kg
    """
    factor = mass / model.body_mass.sum()
    model.body_mass *= factor
    model.body_inertia *= factor


def refresh(model: Any) -> None:
    """Let a changed model's derived numbers follow, such as the masses of subtrees."""
    mujoco = import_mujoco()
    mujoco.mj_setConst(model, mujoco.MjData(model))


def tree(model: Any) -> Tree:
    """
    :param model: an ``mujoco.MjModel``
    :return: the robot in it
    :raises ValueError: if the model has what the engine does not carry
    """
    mujoco = import_mujoco()
    _refuse_what_is_not_carried(mujoco, model)
    ground = _ground(mujoco, model)
    links: list[Link] = []
    # by body: the link it is rigidly on, and its frame there
    seat: list[tuple[int, np.ndarray, np.ndarray]] = [(-1, np.zeros(3), np.eye(3))]
    masses: dict[int, list[tuple[float, np.ndarray, np.ndarray]]] = {}
    points: dict[int, dict[tuple[tuple[float, ...], float], None]] = {}
    for body in range(1, model.nbody):
        link, origin, axes = seat[model.body_parentid[body]]
        origin = origin + axes @ model.body_pos[body]
        axes = axes @ _matrix(model.body_quat[body])
        for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
            added, origin, axes = _joint(mujoco, model, joint, links, link, origin, axes)
            links += added
            link = len(links) - 1
        seat.append((link, origin, axes))
        if link >= 0 and model.body_mass[body] > 0:
            turned = axes @ _matrix(model.body_iquat[body])
            inertia = turned @ np.diag(model.body_inertia[body]) @ turned.T
            masses.setdefault(link, []).append((model.body_mass[body], origin + axes @ model.body_ipos[body], inertia))
        for center, radius in _points(mujoco, model, body) if ground is not None and link >= 0 else []:
            place = tuple(_tidy(origin + axes @ center).tolist())
            points.setdefault(link, {})[(place, float(radius))] = None
    solid = [_with_body(link, masses.get(index, []), list(points.get(index, {}))) for index, link in enumerate(links)]
    return Tree(
        name=_name(model),
        links=tuple(solid),
        damping=tuple(model.dof_damping.ravel().tolist()),
        armature=tuple(model.dof_armature.tolist()),
        motors=tuple(_motor(mujoco, model, motor) for motor in range(model.nu)),
        start=tuple(model.qpos0.tolist()),
        ground=ground or 0.0,
    )


def _name(model: Any) -> str:
    name: str = model.names[: model.names.find(b"\0")].decode()
    return name or "the model"


def _joint(
    mujoco: Any, model: Any, joint: int, links: list[Link], parent: int, origin: np.ndarray, axes: np.ndarray
) -> tuple[list[Link], np.ndarray, np.ndarray]:
    """The joint's links, and the frame of its body on the last of them."""
    kind, q, v = model.jnt_type[joint], int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
    leads = parent < 0 or links[parent].leads
    eye = _frame(np.eye(3))
    if kind == mujoco.mjtJoint.mjJNT_FREE:
        slides = [
            Link(
                "slide", len(links) + k - 1 if k else -1, (0.0, 0.0, 0.0), eye, q + k, v + k, _triple(np.eye(3)[k]), leads=True
            )
            for k in range(3)
        ]
        ball = Link("ball", len(links) + 2, (0.0, 0.0, 0.0), eye, q + 3, v + 3)
        return [*slides, ball], np.zeros(3), np.eye(3)
    anchor = origin + axes @ model.jnt_pos[joint]
    limits = tuple(map(float, model.jnt_range[joint])) if model.jnt_limited[joint] else None
    if kind == mujoco.mjtJoint.mjJNT_BALL:
        link = Link("ball", parent, _triple(anchor), _frame(axes), q, v)
        return [link], -model.jnt_pos[joint], np.eye(3)
    direction = axes @ model.jnt_axis[joint]
    slides_ = kind == mujoco.mjtJoint.mjJNT_SLIDE
    basis = np.eye(3) if slides_ else _basis(direction)
    link = Link(
        "slide" if slides_ else "hinge",
        parent,
        _triple(np.zeros(3) if slides_ and parent >= 0 else anchor),
        _frame(basis),
        q,
        v,
        axis=_triple(direction) if slides_ else (0.0, 0.0, 1.0),
        zero=float(model.qpos0[q]),
        leads=bool(slides_ and leads),
        stiffness=float(np.ravel(model.jnt_stiffness[joint])[0]),
        spring=float(model.qpos_spring[q]),
        limits=limits,  # type: ignore[arg-type]
    )
    at = np.asarray(link.offset)
    return [link], _tidy(basis.T @ (origin - at)), _tidy(basis.T @ axes)


def _with_body(
    link: Link, masses: list[tuple[float, np.ndarray, np.ndarray]], points: list[tuple[tuple[float, ...], float]]
) -> Link:
    """The link with all that is rigidly on it, as one body."""
    link = replace(link, points=tuple(points))  # type: ignore[arg-type]
    mass = float(sum(part for part, _, _ in masses))
    if not mass:
        return link
    center = sum(part * place for part, place, _ in masses) / mass
    inertia = np.zeros((3, 3))
    for part, place, own in masses:
        arm = place - center
        inertia += own + part * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    moments, principal = _principal(inertia)
    return replace(link, mass=mass, center=_triple(center), moments=_triple(moments), principal=_frame(principal))


def _principal(inertia: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal moments and axes; moments that differ by rounding are made equal, axes are the frame's where they can be."""
    if np.abs(inertia - np.diag(np.diag(inertia))).max() <= 1e-14 * np.abs(inertia).max():
        moments, axes = np.diag(inertia).copy(), np.eye(3)
    else:
        moments, axes = np.linalg.eigh(inertia)
    for k in range(1, 3):
        for other in range(k):
            if abs(moments[k] - moments[other]) <= 1e-13 * moments.max():
                moments[k] = moments[other]
    return moments, axes


def _motor(mujoco: Any, model: Any, motor: int) -> Motor:
    joint = model.actuator_trnid[motor, 0]
    reach = model.actuator_ctrlrange[motor, 1] if model.actuator_ctrllimited[motor] else 1.0
    gain = model.actuator_gainprm[motor, 0]
    return Motor(int(model.jnt_dofadr[joint]), float(model.actuator_gear[motor, 0] * gain * reach))


def _points(mujoco: Any, model: Any, body: int) -> list[tuple[np.ndarray, float]]:
    """Centres and radii of the spheres that may touch the ground, in the body's frame."""
    found = []
    for geom in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]):
        if not _touches(mujoco, model, geom):
            continue
        place, radius = model.geom_pos[geom], float(model.geom_size[geom, 0])
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE:
            found.append((place, radius))
        else:
            reach = _matrix(model.geom_quat[geom])[:, 2] * model.geom_size[geom, 1]
            found += [(place + reach, radius), (place - reach, radius)]
    return found


def _planes(mujoco: Any, model: Any) -> list[int]:
    return [geom for geom in range(model.ngeom) if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE]


def _touches(mujoco: Any, model: Any, geom: int) -> bool:
    """Whether MuJoCo would let it collide with a plane."""
    return any(
        model.geom_contype[geom] & model.geom_conaffinity[plane] or model.geom_contype[plane] & model.geom_conaffinity[geom]
        for plane in _planes(mujoco, model)
    )


def _ground(mujoco: Any, model: Any) -> float | None:
    heights = {float(model.geom_pos[plane, 2]) for plane in _planes(mujoco, model)}
    return heights.pop() if heights else None


def _refuse_what_is_not_carried(mujoco: Any, model: Any) -> None:
    def name(kind: str, index: int) -> str:
        found = mujoco.mj_id2name(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), index)
        return f"{kind} {found!r}" if found else f"{kind} number {index}"

    def refuse(what: str, fix: str) -> None:
        raise ValueError(f"The physics engine does not carry {what} ({_name(model)}): {fix}.")

    if model.neq:
        refuse(f"equality constraints ({name('equality', 0)})", "remove <equality> from the file")
    for tendon in range(model.ntendon):
        acts = (model.tendon_stiffness, model.tendon_damping, model.tendon_frictionloss, model.tendon_limited)
        if any(np.any(field[tendon]) for field in acts):
            refuse(f"tendons that act ({name('tendon', tendon)})", "remove it, or its stiffness, damping, friction and limits")
    if model.opt.density or model.opt.viscosity:
        refuse("fluids", "set density and viscosity of <option> to 0")
    if model.nflex or model.nskin:
        refuse("flexible bodies", "remove <flex>, <flexcomp> and <skin>")
    for body in range(1, model.nbody):
        if model.body_mocapid[body] >= 0:
            refuse(f"bodies that are moved from outside ({name('body', body)})", 'remove mocap="true"')
        if model.body_gravcomp[body]:
            refuse(f"bodies without weight ({name('body', body)})", "remove gravcomp")
    _refuse_joints(mujoco, model, name, refuse)
    _refuse_geoms(mujoco, model, name, refuse)
    _refuse_actuators(mujoco, model, name, refuse)


def _refuse_joints(mujoco: Any, model: Any, name: Any, refuse: Any) -> None:
    if np.any(model.dof_frictionloss):
        joint = int(model.dof_jntid[np.flatnonzero(model.dof_frictionloss)[0]])
        refuse(f"dry friction in joints ({name('joint', joint)})", "use damping in place of frictionloss")
    for field, what in (("dof_dampingpoly", "damping"), ("jnt_stiffnesspoly", "stiffness")):
        if np.any(getattr(model, field, 0)):
            refuse(f"{what} that is not proportional", f"give one number as {what}")
    for joint in range(model.njnt):
        free = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
        ball = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_BALL
        if (free or ball) and (np.any(model.jnt_stiffness[joint]) or model.jnt_limited[joint]):
            refuse(f"springs and limits of ball and free joints ({name('joint', joint)})", "use three hinges, or remove them")


def _refuse_geoms(mujoco: Any, model: Any, name: Any, refuse: Any) -> None:
    planes = _planes(mujoco, model)
    for plane in planes:
        if model.geom_bodyid[plane] or abs(_matrix(model.geom_quat[plane])[2, 2] - 1) > 1e-9:
            refuse(f"ground that is tilted or moves ({name('geom', plane)})", "use one horizontal plane of the world")
    if len({float(model.geom_pos[plane, 2]) for plane in planes}) > 1:
        refuse(f"ground of several heights ({name('geom', planes[1])})", "use one horizontal plane")
    for geom in range(model.ngeom):
        kind = mujoco.mjtGeom(model.geom_type[geom])
        round_ = kind in (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE)
        if model.geom_bodyid[geom] and not round_ and _touches(mujoco, model, geom):
            shape = kind.name.removeprefix("mjGEOM_").lower()
            refuse(
                f"contact of a {shape} with the ground ({name('geom', geom)})",
                "use spheres and capsules, or contype and conaffinity 0 where it need not touch",
            )
    if model.nhfield and any(model.geom_type == mujoco.mjtGeom.mjGEOM_HFIELD):
        refuse("height fields", "use a horizontal plane")


def _refuse_actuators(mujoco: Any, model: Any, name: Any, refuse: Any) -> None:
    for motor in range(model.nu):
        joint = model.actuator_trnid[motor, 0]
        on_joint = model.actuator_trntype[motor] == mujoco.mjtTrn.mjTRN_JOINT
        if not on_joint or mujoco.mjtJoint(model.jnt_type[joint]) not in (
            mujoco.mjtJoint.mjJNT_SLIDE,
            mujoco.mjtJoint.mjJNT_HINGE,
        ):
            refuse(f"actuators that pull at anything but a slide or a hinge ({name('actuator', motor)})", "use joint=...")
        plain = (
            model.actuator_dyntype[motor] == mujoco.mjtDyn.mjDYN_NONE
            and model.actuator_gaintype[motor] == mujoco.mjtGain.mjGAIN_FIXED
            and model.actuator_biastype[motor] == mujoco.mjtBias.mjBIAS_NONE
        )
        if not plain:
            refuse(f"actuators other than motors ({name('actuator', motor)})", "use <motor>")
        limits = ("actuator_forcelimited", "actuator_damping", "actuator_armature")
        if any(np.any(getattr(model, limit, [0] * model.nu)[motor]) for limit in limits) or _limited(model, joint):
            refuse(f"motors with force limits, damping or armature ({name('actuator', motor)})", "put them on the joint")
        low, high = model.actuator_ctrlrange[motor]
        if model.actuator_ctrllimited[motor] and abs(low + high) > 1e-9 * abs(high):
            refuse(f"motors stronger one way than the other ({name('actuator', motor)})", 'use ctrlrange="-1 1" and gear')


def _limited(model: Any, joint: int) -> bool:
    return bool(getattr(model, "jnt_actfrclimited", np.zeros(model.njnt))[joint])


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    return _tidy(np.array(rotation(*(quaternion / np.linalg.norm(quaternion)))))


def _basis(axis: np.ndarray) -> np.ndarray:
    """:return: a rotation whose third column is the axis, with as many zeros as can be"""
    first = np.zeros(3)
    first[(int(np.argmax(np.abs(axis))) + 1) % 3] = 1.0
    if 1 - np.abs(axis).max() > 1e-12 and np.abs(axis).min() < 1e-12:
        first = np.eye(3)[int(np.argmin(np.abs(axis)))]
    first = first - axis * (axis @ first)
    first /= np.linalg.norm(first)
    return _tidy(np.stack([first, np.cross(axis, first), axis], axis=1))


def _tidy(numbers: np.ndarray) -> np.ndarray:
    """Rounding errors next to 0 and ±1 are taken away: products with such entries are then left out of the formulas."""
    whole = np.round(numbers)
    return np.where(np.abs(numbers - whole) < 1e-14, whole, numbers)


def _triple(numbers: Any) -> tuple[float, float, float]:
    x, y, z = _tidy(np.asarray(numbers, dtype=float)).tolist()
    return x, y, z


def _frame(matrix: np.ndarray) -> Any:
    return tuple(_triple(row) for row in matrix)
