"""
The mechanics of a tree of links, as formulas on numbers of any kind: floats, torch tensors, :class:`~.symbols.Symbol`.

All vectors have the axes of the world. Motions are pairs (angular velocity, velocity of the point of the body at P), forces
pairs (moment about P, force), after R. Featherstone, *Rigid Body Dynamics Algorithms* (2008). P is where the tree's first
joint after its leading slides is, so that numbers stay small wherever the robot is. With the joints' motions S, the equations
are

    M(q) a + Σ Sᵀ (I ā + v ×* I v - contact) = forces of the joints,

where ā are the accelerations that remain with a = 0, gravity included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gippo_envs.physics.symbols import Scalar
from gippo_envs.physics.tree import Link, Tree

Vector = list[Scalar]
Matrix = list[Vector]
Motion = tuple[Vector, Vector]


class Constants(NamedTuple):
    """What a robot's world is like; numbers that can be changed without compiling anew."""

    h: Scalar
    """seconds per substep"""
    gravity: Scalar
    """m/s², downwards"""
    contact_stiffness: Scalar
    """N/m of depth"""
    contact_damping: Scalar
    """N s/m of approach, per metre of depth"""
    friction: Scalar
    """Coulomb's coefficient"""
    slip_damping: Scalar
    """N s/m: what friction is per speed before it slips. Smaller is smoother."""
    limit_stiffness: Scalar
    """N/m or N m/rad beyond a joint's limit"""
    ground: Scalar
    """its height, m"""


def relu(x: Scalar) -> Scalar:
    return max(x, 0.0) if isinstance(x, float) else x.relu()


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b)]


def scale(a: Vector, factor: Scalar) -> Vector:
    return [x * factor for x in a]


def dot(a: Vector, b: Vector) -> Scalar:
    return sum((x * y for x, y in zip(a, b)), 0.0)


def cross(a: Vector, b: Vector) -> Vector:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def times(matrix: Sequence[Vector], vector: Sequence[Scalar]) -> Vector:
    return [dot(row, list(vector)) for row in matrix]


def product(a: Sequence[Sequence[Scalar]], b: Sequence[Sequence[Scalar]]) -> Matrix:
    return [[dot(list(row), [other[j] for other in b]) for j in range(3)] for row in a]


def unit(quaternion: Sequence[Scalar]) -> Vector:
    """:return: the quaternion at length 1"""
    parts = list(quaternion)
    return scale(parts, dot(parts, parts).sqrt().reciprocal())


def rotation(w: Scalar, x: Scalar, y: Scalar, z: Scalar) -> Matrix:
    """:return: the matrix of a unit quaternion"""
    return [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]


@dataclass
class Moving:
    """A link in motion."""

    link: Link
    place: Vector
    """of its frame, from P"""
    shift: Vector
    """P"""
    axes: Matrix
    """rotation from its frame to the world's"""
    joint: list[Motion]
    """S: the motions of its degrees of freedom"""
    velocity: Motion
    drift: Motion
    """acceleration that remains with a = 0, gravity included"""
    moment: Vector
    """mass times centre of mass, from P"""
    inertia: Matrix
    """about P"""


def move(tree: Tree, q: Sequence[Scalar], v: Sequence[Scalar], constants: Constants) -> list[Moving]:
    """
    Place all links, from the root to the tips.

    :param q: positions (nq,), ball joints as unit quaternions
    :param v: velocities (nv,)
    """
    moving: list[Moving] = []
    still: Motion = ([0.0] * 3, [0.0] * 3)
    identity: Matrix = [[float(i == j) for j in range(3)] for i in range(3)]
    for link in tree.links:
        above = moving[link.parent] if link.parent >= 0 else None
        if above is None:
            place, shift, axes = [0.0] * 3, list(link.offset), product(identity, link.rotation)
            velocity, drift = still, ([0.0] * 3, [0.0, 0.0, constants.gravity])
        else:
            step = times(above.axes, link.offset)
            axes = product(above.axes, link.rotation)
            velocity, drift = above.velocity, above.drift
            if above.link.leads:
                place, shift = [0.0] * 3, add(above.shift, step)
            else:
                place, shift = add(above.place, step), above.shift
        joint: list[Motion]
        if link.kind == "slide":
            direction = times(axes, link.axis)
            way = scale(direction, q[link.q] - link.zero)
            place, shift = (place, add(shift, way)) if link.leads else (add(place, way), shift)
            joint = [([0.0] * 3, direction)]
        elif link.kind == "hinge":
            angle = q[link.q] - link.zero
            c, s = angle.cos(), angle.sin()
            axes = [[row[0] * c + row[1] * s, row[1] * c - row[0] * s, row[2]] for row in axes]
            turn = [row[2] for row in axes]
            joint = [(turn, cross(place, turn))]
        else:
            axes = product(axes, rotation(*unit(q[link.q : link.q + 4])))
            joint = [(turn, cross(place, turn)) for turn in ([row[k] for row in axes] for k in range(3))]
        own = still
        for motion, speed in zip(joint, v[link.v : link.v + len(joint)]):
            own = add(own[0], scale(motion[0], speed)), add(own[1], scale(motion[1], speed))
        # The change of S: its axes are carried along by what is above.
        omega, linear = velocity
        drift = (
            add(drift[0], cross(omega, own[0])),
            add(drift[1], add(cross(omega, own[1]), cross(linear, own[0]))),
        )
        velocity = add(omega, own[0]), add(linear, own[1])
        center = add(place, times(axes, link.center))
        moving.append(
            Moving(link, place, shift, axes, joint, velocity, drift, scale(center, link.mass), _inertia(link, axes, center))
        )
    return moving


def _inertia(link: Link, axes: Matrix, center: Vector) -> Matrix:
    """About P: of the mass at its centre, and about the centre, where two of three moments suffice to turn."""
    least = min(range(3), key=lambda k: sum(link.moments[k] != other for other in link.moments))
    square = dot(center, center)
    out = [[-(link.mass * (center[i] * center[j])) for j in range(3)] for i in range(3)]
    for i in range(3):
        out[i][i] = out[i][i] + link.mass * square + link.moments[least]
    for k in range(3):
        if link.moments[k] != link.moments[least]:
            axis = times(axes, [row[k] for row in link.principal])
            part = scale(axis, link.moments[k] - link.moments[least])
            out = [[out[i][j] + part[i] * axis[j] for j in range(3)] for i in range(3)]
    return out


def momentum(body: Moving, motion: Motion) -> Motion:
    """:return: inertia times motion: moment about P and force, or angular momentum and momentum"""
    omega, linear = motion
    return (
        add(times(body.inertia, omega), cross(body.moment, linear)),
        add(scale(linear, body.link.mass), cross(omega, body.moment)),
    )


def contact(body: Moving, constants: Constants) -> Motion:
    """
    The ground's push on a link, at the lowest points of spheres and of the ends of capsules, d deep:

        normal N = stiffness d + damping d max(-u_z, 0),   friction = - s u_t μN / sqrt((μN)² + s² u_t²),

    with s the slip damping: viscous where slow, Coulomb's where fast, smooth in between, and continuous at touch-down.
    """
    moment, force = [0.0] * 3, [0.0] * 3
    for center, radius in body.link.points:
        x, y, z = add(body.place, times(body.axes, center))
        point = [x, y, z - radius]
        depth = relu(constants.ground - (body.shift[2] + point[2]))
        ux, uy, uz = add(body.velocity[1], cross(body.velocity[0], point))
        normal = depth * (constants.contact_stiffness + constants.contact_damping * relu(-uz))
        hold = constants.friction * normal
        slip = constants.slip_damping * constants.slip_damping * (ux * ux + uy * uy)
        grip = constants.slip_damping * hold * (hold * hold + slip + 1e-12).sqrt().reciprocal()
        push = [-(grip * ux), -(grip * uy), normal]
        moment, force = add(moment, cross(point, push)), add(force, push)
    return moment, force


def wrench(body: Moving, acceleration: Motion, constants: Constants) -> Motion:
    """:return: what the joints have to push a link with for an acceleration, after the ground has"""
    inertial = momentum(body, acceleration)
    (omega, linear), (angular_momentum, linear_momentum) = body.velocity, momentum(body, body.velocity)
    ground = contact(body, constants)
    moment = add(cross(omega, angular_momentum), cross(linear, linear_momentum))
    return (
        add(add(inertial[0], moment), scale(ground[0], -1.0)),
        add(add(inertial[1], cross(omega, linear_momentum)), scale(ground[1], -1.0)),
    )


def joint_forces(
    tree: Tree, q: Sequence[Scalar], v: Sequence[Scalar], action: Sequence[Scalar], constants: Constants
) -> list[Scalar]:
    """:return: of motors, springs, dampers and limits (nv,)"""
    forces: list[Scalar] = [0.0] * tree.nv
    for link in tree.links:
        for k in range(link.v, link.v + link.dofs):
            forces[k] = -(v[k] * tree.damping[k])
        if link.kind != "ball":
            position = q[link.q]
            forces[link.v] = forces[link.v] + (link.spring - position) * link.stiffness
            if link.limits is not None:
                low, high = link.limits
                beyond = relu(low - position) - relu(position - high)
                forces[link.v] = forces[link.v] + constants.limit_stiffness * beyond
    for motor, push in zip(tree.motors, action):
        forces[motor.v] = forces[motor.v] + push * motor.gear
    return forces


class MassMatrix:
    """
    M(q), taken apart link by link from the tips to the root (the articulated-body algorithm): nothing of size nv² is made.

    :param moving: the links
    """

    def __init__(self, tree: Tree, moving: list[Moving]):
        self.tree, self.moving = tree, moving
        articulated: list[Any] = [_spatial(body) for body in moving]
        self.pull: dict[int, Vector] = {}
        self.share: dict[int, Scalar] = {}
        for index in range(len(moving) - 1, -1, -1):
            body, inertia = moving[index], articulated[index]
            for k in range(body.link.v + body.link.dofs - 1, body.link.v - 1, -1):
                motion = _flat(body.joint[k - body.link.v])
                pull = [dot(row, motion) for row in inertia]
                share = (dot(motion, pull) + tree.armature[k]).reciprocal()
                part = scale(pull, share)
                inertia = _symmetric(lambda i, j, a=inertia, b=pull, c=part: a[i][j] - b[i] * c[j])
                self.pull[k], self.share[k] = pull, share
            if body.link.parent >= 0:
                above = articulated[body.link.parent]
                articulated[body.link.parent] = _symmetric(lambda i, j, a=above, b=inertia: a[i][j] + b[i][j])

    def solve(self, forces: Sequence[Scalar], wrenches: Sequence[Motion] | None = None) -> list[Scalar]:
        """:return: M⁻¹ (forces - Σ Sᵀ wrenches), (nv,)"""
        loads = [[0.0] * 6 for _ in self.moving] if wrenches is None else [_flat(wrench) for wrench in wrenches]
        rest: list[Scalar] = [0.0] * self.tree.nv
        for index in range(len(self.moving) - 1, -1, -1):
            body = self.moving[index]
            for k in range(body.link.v + body.link.dofs - 1, body.link.v - 1, -1):
                rest[k] = (forces[k] - dot(_flat(body.joint[k - body.link.v]), loads[index])) * self.share[k]
                loads[index] = add(loads[index], scale(self.pull[k], rest[k]))
            if body.link.parent >= 0:
                loads[body.link.parent] = add(loads[body.link.parent], loads[index])
        solution: list[Scalar] = [0.0] * self.tree.nv
        motions: list[Vector] = []
        for body in self.moving:
            motion = motions[body.link.parent] if body.link.parent >= 0 else [0.0] * 6
            for k in range(body.link.v, body.link.v + body.link.dofs):
                solution[k] = rest[k] - dot(self.pull[k], motion) * self.share[k]
                motion = add(motion, scale(_flat(body.joint[k - body.link.v]), solution[k]))
            motions.append(motion)
        return solution


def _flat(motion: Motion) -> Vector:
    return [*motion[0], *motion[1]]


def _symmetric(entry: Any) -> Matrix:
    rows: Matrix = [[0.0] * 6 for _ in range(6)]
    for i in range(6):
        for j in range(i, 6):
            rows[i][j] = rows[j][i] = entry(i, j)
    return rows


def _spatial(body: Moving) -> Matrix:
    x, y, z = body.moment
    mass = body.link.mass
    corner = [[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]
    top = [[*body.inertia[i], *corner[i]] for i in range(3)]
    return [*top, *([*(corner[j][i] for j in range(3)), *(mass * float(i == j) for j in range(3))] for i in range(3))]


def acceleration(
    tree: Tree, q: Sequence[Scalar], v: Sequence[Scalar], action: Sequence[Scalar], constants: Constants
) -> list[Scalar]:
    """:return: a (nv,)"""
    moving = move(tree, q, v, constants)
    wrenches = [wrench(body, body.drift, constants) for body in moving]
    return MassMatrix(tree, moving).solve(joint_forces(tree, q, v, action, constants), wrenches)


def residual_power(
    tree: Tree,
    moving: list[Moving],
    q: Sequence[Scalar],
    v: Sequence[Scalar],
    a: Sequence[Scalar],
    action: Sequence[Scalar],
    w: Sequence[Scalar],
    constants: Constants,
) -> Scalar:
    """
    What the equations of motion miss, on velocities w: w · (M a + bias - forces), 0 at the true a. Its derivatives by q, v and
    action, at a fixed a and with w = M⁻¹ y, are minus those of y · a(q, v, action): nothing is differentiated through M⁻¹.
    """
    total: Scalar = -dot(list(w), joint_forces(tree, q, v, action, constants))
    motions: list[tuple[Motion, Motion]] = []
    for body in moving:
        if body.link.parent >= 0:
            change, virtual = motions[body.link.parent]
        else:
            change = virtual = ([0.0] * 3, [0.0] * 3)
        for k, motion in enumerate(body.joint, body.link.v):
            change = add(change[0], scale(motion[0], a[k])), add(change[1], scale(motion[1], a[k]))
            virtual = add(virtual[0], scale(motion[0], w[k])), add(virtual[1], scale(motion[1], w[k]))
            total = total + w[k] * a[k] * tree.armature[k]
        motions.append((change, virtual))
        moment, force = wrench(body, (add(body.drift[0], change[0]), add(body.drift[1], change[1])), constants)
        total = total + dot(virtual[0], moment) + dot(virtual[1], force)
    return total


def advance(tree: Tree, q: Sequence[Scalar], v: Sequence[Scalar], h: Scalar) -> list[Scalar]:
    """
    Positions after h at constant velocities (nq,); quaternions q ∘ exp(h ω / 2), with as many terms of the series as float64
    shows up to an angle h |ω| of 1.
    """
    out = list(q)
    for link in tree.links:
        if link.kind != "ball":
            out[link.q] = q[link.q] + h * v[link.v]
            continue
        w, x, y, z = unit(q[link.q : link.q + 4])
        half = scale(list(v[link.v : link.v + 3]), 0.5 * h)
        square = dot(half, half)
        sine = cosine = 1.0
        for n in range(14, 0, -2):
            sine = 1.0 - square * sine * (1 / (n * (n + 1)))
            cosine = 1.0 - square * cosine * (1 / (n * (n - 1)))
        a, b, c = scale(half, sine)
        out[link.q : link.q + 4] = [
            w * cosine - x * a - y * b - z * c,
            x * cosine + w * a + y * c - z * b,
            y * cosine + w * b + z * a - x * c,
            z * cosine + w * c + x * b - y * a,
        ]
    return out
