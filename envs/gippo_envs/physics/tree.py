"""A robot as a tree of links, with one joint each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Triple = tuple[float, float, float]
Frame = tuple[Triple, Triple, Triple]
"""rows of a rotation matrix"""


@dataclass(frozen=True)
class Link:
    """
    A joint and the body that it moves. Bodies with several joints are chains of links of which all but the last are massless;
    a free joint is three slides and a ball.

    :param kind: ``"slide"``, ``"hinge"`` about the frame's third axis, or ``"ball"``
    :param parent: index of the link it hangs on, -1 for the world
    :param offset: of its frame in the parent's, m
    :param rotation: of its frame in the parent's, at position 0
    :param axis: of a slide, in its frame
    :param q: index of its (first) position
    :param v: index of its (first) velocity
    :param zero: position in which the frames are as told above
    :param leads: whether it is a slide below which there are only such slides, which move the whole tree
    :param mass: kg
    :param center: of mass, in its frame
    :param moments: principal moments of inertia about the centre of mass, kg m²
    :param principal: their axes in its frame, as columns
    :param points: of contact: centres in its frame and radii of spheres, m
    :param stiffness: towards ``spring``, N/m or N m/rad
    :param spring: position at which it is at rest
    :param limits: lowest and highest position
    """

    kind: str
    parent: int
    offset: Triple
    rotation: Frame
    q: int
    v: int
    axis: Triple = (0.0, 0.0, 1.0)
    zero: float = 0.0
    leads: bool = False
    mass: float = 0.0
    center: Triple = (0.0, 0.0, 0.0)
    moments: Triple = (0.0, 0.0, 0.0)
    principal: Frame = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    points: tuple[tuple[Triple, float], ...] = ()
    stiffness: float = 0.0
    spring: float = 0.0
    limits: tuple[float, float] | None = None

    @property
    def dofs(self) -> int:
        """:return: its number of velocities"""
        return 3 if self.kind == "ball" else 1


@dataclass(frozen=True)
class Motor:
    """
    A force on one joint.

    :param v: index of its velocity
    :param gear: N or N m at an action of 1
    """

    v: int
    gear: float


@dataclass(frozen=True)
class Tree:
    """
    A robot.

    :param name: for messages
    :param links: parents first
    :param damping: by velocity, N s/m or N m s/rad
    :param armature: by velocity, added to the mass matrix's diagonal, kg or kg m²
    :param motors: in the order of the action
    :param start: positions in which the model is drawn (nq,)
    :param ground: height of the ground, m
    """

    name: str
    links: tuple[Link, ...]
    damping: tuple[float, ...]
    armature: tuple[float, ...]
    motors: tuple[Motor, ...]
    start: tuple[float, ...]
    ground: float = 0.0

    @cached_property
    def nq(self) -> int:
        """:return: number of positions"""
        return sum(4 if link.kind == "ball" else 1 for link in self.links)

    @cached_property
    def nv(self) -> int:
        """:return: number of velocities"""
        return sum(link.dofs for link in self.links)
