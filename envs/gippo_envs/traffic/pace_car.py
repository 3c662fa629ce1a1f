"""A pace car on a straight road, which holds the traffic behind it at a speed by standing in its way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.core import FunctionalEnv
from gippo_envs.traffic.idm import IDM, next_speed
from gippo_envs.traffic.picture import picture

RANDOMIZED = ("max_acceleration", "comfortable_deceleration", "desired_speed", "min_gap", "time_headway")
"""the IDM constants that ``randomize`` draws, in the order in which the state holds them"""


@dataclass
class PaceCar(FunctionalEnv):
    """
    Steer a car ahead of traffic such that all of it drives at ``target_speed`` ("single pace car" of the GI-PPO paper).

    The road has parallel lanes along +x, lane i centred on y = i · ``lane_width``. The N other vehicles keep to their lanes
    and follow whoever is ahead in the same lane, by the Intelligent Driver Model; the pace car is a kinematic bicycle.

    State [x, y, ψ, v of the pace car, s (N), v (N) of the others], lane by lane, in every lane from the rearmost vehicle to
    the foremost: they never overtake each other, and a state must keep to this order. Lanes follow from the state: the pace
    car is in lane i while |y - i · lane_width| < lane_width / 2, hence exactly on a border in none.

    Observation [x_k - x], [y_k - y], [vx_k], [vy_k], k over the pace car and then the others. Action [steering, acceleration]
    in [-1, 1], times ``max_steering`` and ``max_acceleration``. The reward 1 - min(mean_k |v_k - target| / target, 1), k over
    the others, is that of the state after the step; ``failure_reward`` in a step that terminates the episode: by a collision,
    out of lane, too far ahead of everybody, or behind anybody.

    In a step everybody acts on the state before it: a change of the pace car's speed or lane reaches the others' speeds in the
    step after, and the reward with them.

    Gradients: a vehicle that follows the pace car reacts to its x and v. By nature 0 are the derivatives of the others by y
    and ψ (the choice of lane is discrete), of the failure reward, of a reward clipped at 0, of the speed of a vehicle
    stopped at 0, and of gaps and desired gaps where they are clipped.

    :param lanes: number of lanes
    :param vehicles: N, spread evenly over the lanes, what remains over the first ones
    :param dt: seconds per step
    :param lane_width: m
    :param free_gap: ahead of a vehicle without a leader, m; longer than anybody drives in an episode
    :param length: of every vehicle, m
    :param idm: the drivers' constants, numbers
    :param spacing: between the others' centres at the start, m; they stand
    :param start_gap: from the foremost place of the pace car's lane to the pace car at the start, m; it stands in the middle
        of a random lane, or of ``reset(options={"lane": i})``
    :param target_speed: m/s
    :param max_steering: rad
    :param max_acceleration: of the pace car, m/s²
    :param max_speed: of the pace car, m/s: beyond it acceleration is bounded from below by ``max_speed`` - v
        (in reverse: from above by -``max_speed`` - v), as the paper's code has it; this does not limit the speed
    :param collision_distance: terminates if a centre comes closer, m
    :param max_distance: terminates if the nearest centre is farther, m
    :param failure_reward: of a step that terminates
    :param randomize: draw for every episode how many vehicles are in each lane, from one to as many as it has places (the
        foremost places stay empty), and every driver's constants. The state then ends with the constants, N of each of
        ``RANDOMIZED``; an empty place has s = 2 · ``free_gap`` and zeros in the observation.
    :param spread: with ``randomize`` constants are uniform in [1 - spread, 1 + spread] times those of ``idm``
    :param lane_softness: τ in m. With τ > 0 a follower's next speed is the mean of those with the pace car in its lane and
        not, weighted by the smooth membership m_i = σ((r + w/2) / τ) - σ((r - w/2) / τ), r = y - i · w, w = ``lane_width``,
        which gives y a gradient: the paper's membership averaged over logistic noise of scale τ on y. Going out of lane
        remains discrete.
    :param dtype: ``"float32"`` or ``"float64"``
    :param device: of torch
    """

    lanes: int = 1
    vehicles: int = 1
    dt: float = 0.03
    lane_width: float = 4.0
    free_gap: float = 1e6
    length: float = 5.0
    idm: IDM = field(default_factory=IDM)
    spacing: float = 10.0
    start_gap: float = 50.0
    target_speed: float = 10.0
    max_steering: float = math.radians(20)
    max_acceleration: float = 8.0
    max_speed: float = 40.0
    collision_distance: float = 2.5
    max_distance: float = 100.0
    failure_reward: float = -1.0
    randomize: bool = False
    spread: float = 0.2
    lane_softness: float = 0.0
    dtype: str = "float32"
    device: str = "cpu"

    render_fps: ClassVar[int] = 33

    def __post_init__(self) -> None:
        self._check()
        n, device = self.vehicles, self.torch_device
        self.state_size = 4 + 2 * n + (len(RANDOMIZED) * n if self.randomize else 0)
        self.observation_space = self.box(-np.inf, np.inf, 4 * (n + 1))
        self.action_space = self.box(-1.0, 1.0, 2)
        places = th.tensor([n // self.lanes + (lane < n % self.lanes) for lane in range(self.lanes)], device=device)
        self._places = places
        self._lane = th.arange(self.lanes, device=device).repeat_interleave(places, output_size=n)
        self._place = th.arange(n, device=device) - (places.cumsum(0) - places)[self._lane]
        self._centers = self._tensor(self.lane_width * th.arange(self.lanes, device=device))
        self._y = self._centers[self._lane]
        self._starts = th.zeros(self.lanes, 4 + 2 * n, dtype=self.torch_dtype, device=device)
        self._starts[:, 0] = self.spacing * (places - 1).clamp(min=0) + self.start_gap
        self._starts[:, 1] = self._centers
        self._starts[:, 4 : 4 + n] = self.spacing * self._place
        # The foremost vehicle of a lane follows itself, far ahead: a free road.
        foremost = self._place == places[self._lane] - 1
        self._ahead = th.arange(n, device=device) + (~foremost).long()
        self._free = self._tensor(self.free_gap + self.length) * foremost
        # Constants as tensors of the right type: a Python number costs a conversion, as long as the operation itself.
        self._driver = self._drivers(self._tensor(getattr(self.idm, name)) for name in RANDOMIZED)
        self._controls = self._tensor([self.max_steering, self.max_acceleration])
        self._target, self._share = self._tensor(self.target_speed), self._tensor(1 / (self.target_speed * n))
        self._one, self._half, self._half_width = self._tensor(1.0), self._tensor(0.5), self._tensor(self.lane_width / 2)
        self._length, self._failure = self._tensor(self.length), self._tensor(self.failure_reward)
        self._collision, self._far = self._tensor(self.collision_distance**2), self._tensor(self.max_distance**2)

    def _tensor(self, value: Any) -> th.Tensor:
        return th.as_tensor(value, dtype=self.torch_dtype, device=self.torch_device)

    def _drivers(self, constants: Iterable[th.Tensor]) -> IDM:
        """:return: ``idm`` with those of ``RANDOMIZED`` replaced"""
        values: dict[str, Any] = dict(zip(RANDOMIZED, constants))
        return replace(self.idm, **values)

    def _check(self) -> None:
        """:raises ValueError: for constants that make no road, or under which the order of the vehicles might change"""
        if self.lanes < 1 or self.vehicles < 1:
            raise ValueError(f"lanes and vehicles must be at least 1, not {self.lanes} and {self.vehicles}.")
        for name in ("dt", "lane_width", "length", "target_speed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread must lie in [0, 1), not {self.spread}: the drivers' constants must stay positive.")
        if not self.lane_softness >= 0:
            raise ValueError(f"lane_softness must be 0 (discrete lanes) or positive, in metres, not {self.lane_softness}.")
        # A leader is the next vehicle in the lane. This order lasts if everybody stops in time, which is in the step after
        # the gap has closed: nobody may drive past a centre within two steps.
        stride = self.dt * (self.idm.desired_speed + self.dt * self.idm.max_acceleration)
        stride = float(stride) * (1 + self.spread if self.randomize else 1)
        if 2 * stride >= min(self.length, self.collision_distance):
            raise ValueError(
                f"With dt={self.dt} a vehicle drives up to {stride:.2f} m in a step and might jump over another one: that "
                f"must be less than half of length ({self.length}) and of collision_distance ({self.collision_distance})."
            )

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        """
        :raises ValueError: if ``options["lane"]`` is not one of the lanes
        """
        lane = (options or {}).get("lane")
        if lane is None:
            lanes = th.randint(self.lanes, (n,), generator=generator, device=self.torch_device)
        elif lane in range(self.lanes):
            lanes = th.full((n,), int(lane), device=self.torch_device)
        else:
            raise ValueError(f'options["lane"] must be an integer from 0 to {self.lanes - 1}, not {lane!r}.')
        start = self._starts[lanes]
        if not self.randomize:
            return start
        counts = 1 + (th.rand(n, self.lanes, generator=generator, device=self.torch_device) * self._places).long()
        pace, s, rest = start.split([4, self.vehicles, self.vehicles], dim=1)
        s = s.where(self._place < counts[:, self._lane], 2 * self.free_gap)
        shape = n, len(RANDOMIZED), self.vehicles
        uniform = th.rand(shape, generator=generator, dtype=self.torch_dtype, device=self.torch_device)
        constants = self._tensor([getattr(self.idm, name) for name in RANDOMIZED])[:, None]
        return th.cat([pace, s, rest, (constants * (1 + self.spread * (2 * uniform - 1))).flatten(1)], dim=1)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        x, y, heading, speed, s, speeds, *constants = self._split(state)
        next_pace = self._drive(x, y, heading, speed, action)
        next_s = th.add(s, speeds, alpha=self.dt)
        next_speeds = self._follow(x, y, speed, s, speeds, constants)
        error = (next_speeds - self._target).abs()
        if not self.randomize:
            total = error.sum(1)
        else:
            present = self._present(s)
            next_s, next_speeds = next_s.where(present, s), next_speeds.where(present, speeds)
            total = self.vehicles * (error * present).sum(1) / present.sum(1)
        reward = th.relu(self._one - self._share * total)
        with th.no_grad():
            terminated = self._failed(next_pace[0], next_pace[1], next_s)
        next_state = th.cat([*next_pace, next_s, next_speeds, *constants], dim=1)
        return next_state, th.where(terminated, self._failure, reward), terminated

    def observe(self, state: th.Tensor) -> th.Tensor:
        x, y, heading, speed, s, speeds, *_ = self._split(state)
        own, zeros = th.zeros_like(x), th.zeros_like(s)
        away, aside = s - x, self._y - y
        if self.randomize:
            present = self._present(s)
            away, aside, speeds = (part.where(present, 0.0) for part in (away, aside, speeds))
        return th.cat([own, away, own, aside, speed * heading.cos(), speeds, speed * heading.sin(), zeros], dim=1)

    def _split(self, state: th.Tensor) -> tuple[th.Tensor, ...]:
        """:return: x, y, ψ, v (n, 1) each, s, v of the others (n, N) each, with ``randomize`` the constants (n, N) each"""
        return state.split_with_sizes([1, 1, 1, 1] + [self.vehicles] * ((self.state_size - 4) // self.vehicles), dim=1)

    def _present(self, s: th.Tensor) -> th.Tensor:
        """:return: which places are taken, (n, N)"""
        return s.detach() < self.free_gap

    def _drive(
        self, x: th.Tensor, y: th.Tensor, heading: th.Tensor, speed: th.Tensor, action: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        """One explicit Euler step of the kinematic bicycle, its centre halfway between the axles: x, y, ψ, v, (n, 1) each."""
        steering, push = (self._controls * action.clamp(-1.0, 1.0)).split_with_sizes([1, 1], dim=1)
        slip = (self._half * steering.tan()).atan()
        bound = speed.clamp(-self.max_speed, self.max_speed) - speed
        push = th.where(push * bound > bound.square(), bound, push)
        course = heading + slip
        return (
            th.addcmul(x, speed, course.cos(), value=self.dt),
            th.addcmul(y, speed, course.sin(), value=self.dt),
            th.addcmul(heading, speed, slip.sin(), value=self.dt / (self.length / 2)),
            th.add(speed, push, alpha=self.dt),
        )

    def _follow(
        self, x: th.Tensor, y: th.Tensor, speed: th.Tensor, s: th.Tensor, speeds: th.Tensor, constants: list[th.Tensor]
    ) -> th.Tensor:
        """The others' next speeds, (n, N): everybody follows the vehicle ahead, or the pace car if it is in between."""
        ahead, ahead_speed = s.index_select(1, self._ahead) + self._free, speeds.index_select(1, self._ahead)
        # An empty place ahead is far enough away to be a free road as well.
        driver = self._drivers(constants) if self.randomize else self._driver
        offset = y - self._y
        blocked = (x >= s) & (x <= ahead)
        if self.lane_softness == 0:
            blocked = blocked & (offset.abs() < self._half_width)
        leader, leader_speed = th.where(blocked, x, ahead), th.where(blocked, speed, ahead_speed)
        following = next_speed(driver, self.dt, speeds, leader - s - self._length, speeds - leader_speed)
        if self.lane_softness == 0:
            return following
        without = next_speed(driver, self.dt, speeds, ahead - s - self._length, speeds - ahead_speed)
        upper, lower = ((offset + sign * self._half_width) / self.lane_softness for sign in (1, -1))
        # Speeds are averaged rather than accelerations, which know no bound: a trace of membership has a trace of effect.
        return without + (upper.sigmoid() - lower.sigmoid()) * (following - without)

    def _failed(self, x: th.Tensor, y: th.Tensor, s: th.Tensor) -> th.Tensor:
        """:return: whether collision, out of lane, too far or behind has come true, (n,)"""
        aside = y - self._y
        nearest = th.addcmul((x - s).square(), aside, aside).amin(1, keepdim=True)
        collision, far = nearest < self._collision, nearest > self._far
        if self.randomize:  # empty places are ahead of everybody
            s = s.where(self._present(s), -self.free_gap)
        behind = s.amax(1, keepdim=True) > x
        # Lanes end at 0 and 10⁶ m as well, but there the pace car is behind somebody, or out of reach.
        out = (y - self._centers).abs().amin(1, keepdim=True) >= self._half_width
        return (collision | far | behind | out).squeeze(1)

    def render(self, state: th.Tensor, action: th.Tensor | None = None) -> np.ndarray:
        x, y, heading, speed = state[:4].tolist()
        s, speeds = (part[0].tolist() for part in self._split(state[None])[4:6])
        vehicles = [*zip(s, self._y.tolist(), speeds), (x, y, speed)]
        return picture(vehicles, heading, self.length, self.lanes, self.lane_width, self.target_speed)
