"""A pace car on a straight road, which holds the traffic behind it at a speed by standing in its way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch as th

from gippo_envs.core import FunctionalEnv
from gippo_envs.rendering import Canvas, Color, Point
from gippo_envs.traffic.idm import IDM, next_speed

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
    in [-1, 1], times ``max_steering`` and ``max_acceleration``. The reward 1 - min(mean_k |v_k - target| / target, 1), over the
    others, is that of the state after the step. It is ``failure_reward`` in a step that terminates the episode: by collision,
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
    :param lane_length: m; a vehicle without a leader has this gap ahead
    :param length: of every vehicle, m
    :param idm: the drivers' constants
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
        ``RANDOMIZED``; an empty place has s = 2 · ``lane_length`` and zeros in the observation.
    :param spread: with ``randomize`` constants are uniform in [1 - spread, 1 + spread] times those of ``idm``
    :param lane_softness: τ in m. With τ > 0 a follower's next speed is the mean of those with the pace car in its lane and
        not, weighted by the smooth membership m_i = σ((r + w/2) / τ) - σ((r - w/2) / τ), r = y - i · w, w = ``lane_width``,
        which gives y a gradient: the paper's membership averaged over logistic noise of scale τ on y. Going out of lane
        remains discrete.
    :param dtype: ``"float32"`` or ``"float64"``
    """

    lanes: int = 1
    vehicles: int = 1
    dt: float = 0.03
    lane_width: float = 4.0
    lane_length: float = 1e6
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

    render_fps: ClassVar[int] = 33

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.vehicles < 1:
            raise ValueError(f"lanes and vehicles must be at least 1, not {self.lanes} and {self.vehicles}.")
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread must lie in [0, 1), not {self.spread}: the drivers' constants must stay positive.")
        if self.lane_softness < 0:
            raise ValueError(f"lane_softness must be 0 (discrete lanes) or positive, in metres, not {self.lane_softness}.")
        n = self.vehicles
        self.state_size = 4 + 2 * n + (len(RANDOMIZED) * n if self.randomize else 0)
        self.observation_space = self.box(-np.inf, np.inf, 4 * (n + 1))
        self.action_space = self.box(-1.0, 1.0, 2)
        places = th.tensor([n // self.lanes + (lane < n % self.lanes) for lane in range(self.lanes)])
        self._places = places
        self._lane = th.arange(self.lanes).repeat_interleave(places)
        self._place = th.arange(n) - (places.cumsum(0) - places)[self._lane]
        self._centers = self.lane_width * th.arange(self.lanes, dtype=self.torch_dtype)
        self._y = self._centers[self._lane]
        # The foremost vehicle of a lane follows itself, a lane's length ahead: a free road.
        foremost = self._place == places[self._lane] - 1
        self._ahead = th.arange(n) + (~foremost).long()
        self._free = (self.lane_length + self.length) * foremost.to(self.torch_dtype)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        """
        :raises ValueError: if ``options["lane"]`` is not one of the lanes
        """
        lane = (options or {}).get("lane")
        if lane is None:
            lanes = th.randint(self.lanes, (n,), generator=generator)
        elif lane in range(self.lanes):
            lanes = th.full((n,), int(lane))
        else:
            raise ValueError(f'options["lane"] must be an integer from 0 to {self.lanes - 1}, not {lane!r}.')
        zeros = th.zeros(n, 1, dtype=self.torch_dtype)
        x = self.spacing * (self._places[lanes] - 1).clamp(min=0) + self.start_gap
        s = (self.spacing * self._place).to(self.torch_dtype).expand(n, -1)
        constants = []
        if self.randomize:
            counts = 1 + (th.rand(n, self.lanes, generator=generator) * self._places).long()
            s = th.where(self._place < counts[:, self._lane], s, 2 * self.lane_length)
            for name in RANDOMIZED:
                uniform = th.rand(n, self.vehicles, generator=generator, dtype=self.torch_dtype)
                constants.append(getattr(self.idm, name) * (1 + self.spread * (2 * uniform - 1)))
        pace = [x[:, None].to(s), self._centers[lanes, None], zeros, zeros]
        return th.cat([*pace, s, th.zeros_like(s), *constants], dim=1)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        pace, s, speeds, constants = self._split(state)
        next_pace = self._drive(pace, action)
        next_s = s + self.dt * speeds
        next_speeds = self._follow(pace, s, speeds, constants)
        error = (next_speeds - self.target_speed).abs()
        if constants is None:
            mean_error = error.mean(1)
        else:
            present = self._present(s)
            next_s, next_speeds = th.where(present, next_s, s), th.where(present, next_speeds, speeds)
            mean_error = (error * present).sum(1) / present.sum(1)
        reward = 1 - (mean_error / self.target_speed).clamp(max=1.0)
        terminated = self._failed(next_pace.detach(), next_s.detach())
        parts = [next_pace, next_s, next_speeds]
        next_state = th.cat(parts if constants is None else [*parts, constants], dim=1)
        return next_state, th.where(terminated, self.failure_reward, reward), terminated

    def observe(self, state: th.Tensor) -> th.Tensor:
        pace, s, speeds, constants = self._split(state)
        x, y, heading, speed = pace.split(1, dim=1)
        zeros = th.zeros_like(s)
        away, aside = s - x, self._y - y
        if constants is not None:
            present = self._present(s)
            away, aside, speeds = (part.where(present, 0.0) for part in (away, aside, speeds))
        own = zeros[:, :1]
        return th.cat([own, away, own, aside, speed * heading.cos(), speeds, speed * heading.sin(), zeros], dim=1)

    def _split(self, state: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor | None]:
        """:return: pace car (n, 4), positions (n, N), speeds (n, N) and, if random, the drivers' constants (n, 5 N)"""
        n = self.vehicles
        pace, s, speeds, constants = state.split([4, n, n, self.state_size - 4 - 2 * n], dim=1)
        return pace, s, speeds, constants if self.randomize else None

    def _present(self, s: th.Tensor) -> th.Tensor:
        """:return: which places are taken, (n, N)"""
        return s.detach() < self.lane_length

    def _drive(self, pace: th.Tensor, action: th.Tensor) -> th.Tensor:
        """One explicit Euler step of the kinematic bicycle whose centre is halfway between its axles, (n, 4)."""
        x, y, heading, speed = pace.split(1, dim=1)
        steering, push = action.clamp(-1.0, 1.0).split(1, dim=1)
        slip = ((self.max_steering * steering).tan() / 2).atan()
        push = self.max_acceleration * push
        push = th.where(speed > self.max_speed, push.maximum(self.max_speed - speed), push)
        push = th.where(speed < -self.max_speed, push.minimum(-self.max_speed - speed), push)
        travel, course = self.dt * speed, heading + slip
        turn = travel * slip.sin() / (self.length / 2)
        return th.cat([x + travel * course.cos(), y + travel * course.sin(), heading + turn, speed + self.dt * push], dim=1)

    def _follow(self, pace: th.Tensor, s: th.Tensor, speeds: th.Tensor, constants: th.Tensor | None) -> th.Tensor:
        """The others' next speeds, (n, N): everybody follows the vehicle ahead, or the pace car if it is in between."""
        x, y, _, speed = pace.split(1, dim=1)
        driver = self.idm
        if constants is None:
            ahead, ahead_speed = s[:, self._ahead] + self._free, speeds[:, self._ahead]
        else:
            driver = replace(driver, **dict(zip(RANDOMIZED, constants.split(self.vehicles, dim=1))))
            # Nobody is ahead where the place ahead is empty, either.
            itself = ~self._present(s)[:, self._ahead] | (self._free > 0)
            ahead = th.where(itself, s + self.lane_length + self.length, s[:, self._ahead])
            ahead_speed = th.where(itself, speeds, speeds[:, self._ahead])
        blocked = (x >= s) & (x <= ahead)
        if self.lane_softness == 0:
            blocked = blocked & self._in_lane(x, y, self._y)
        leader, leader_speed = th.where(blocked, x, ahead), th.where(blocked, speed, ahead_speed)
        following = next_speed(driver, self.dt, speeds, leader - s - self.length, speeds - leader_speed)
        if self.lane_softness == 0:
            return following
        without = next_speed(driver, self.dt, speeds, ahead - s - self.length, speeds - ahead_speed)
        offset, half = y - self._y, self.lane_width / 2
        membership = ((offset + half) / self.lane_softness).sigmoid() - ((offset - half) / self.lane_softness).sigmoid()
        # Speeds are averaged rather than accelerations, which know no bound: a trace of membership has a trace of effect.
        return without + membership * (following - without)

    def _in_lane(self, x: th.Tensor, y: th.Tensor, centers: th.Tensor) -> th.Tensor:
        """
        :param x: (n, 1)
        :param y: (n, 1)
        :param centers: of lanes (L,)
        :return: whether the point is in each of those lanes, (n, L)
        """
        beyond = x - x.clamp(0.0, self.lane_length)
        return (y - centers).abs() + beyond.abs() < self.lane_width / 2

    def _failed(self, pace: th.Tensor, s: th.Tensor) -> th.Tensor:
        """:return: whether collision, out of lane, too far or behind has come true, (n,)"""
        x, y = pace[:, :1], pace[:, 1:2]
        away = x - s
        nearest = (away.square() + (y - self._y).square()).amin(1)
        collision, far = nearest < self.collision_distance**2, nearest > self.max_distance**2
        # Empty places are beyond the end of every lane.
        behind = away.amin(1) < 0 if not self.randomize else ((away < 0) & self._present(s)).any(1)
        return collision | far | behind | ~self._in_lane(x, y, self._centers).any(1)

    def render(self, state: th.Tensor) -> np.ndarray:
        """The road from above around the pace car (outlined), 110 m of it; red stands, green is the target speed, blue is fast."""
        pace, s, speeds, _ = self._split(state[None])
        x, y, heading, speed = pace[0].tolist()
        scale, width = 8, 880
        middle, half_road = self.lane_width * (self.lanes - 1) / 2, self.lane_width * self.lanes / 2
        left, right = x - 80, x + 30
        canvas = Canvas(width, int(scale * (2 * half_road + 4)), ((left + right) / 2, middle), scale, (96, 140, 88))
        canvas.polygon(_rectangle((x - 25, middle), 130, 2 * half_road, 0.0), (70, 70, 74))
        for border in range(self.lanes + 1):
            at = self.lane_width * (border - 0.5)
            if border in (0, self.lanes):
                canvas.polygon(_rectangle((x - 25, at), 130, 0.2, 0.0), (235, 235, 235))
            else:
                for dash in range(math.floor(left / 10), math.ceil(right / 10)):
                    canvas.polygon(_rectangle((10.0 * dash, at), 3.0, 0.15, 0.0), (200, 200, 200))
        for position, lateral, own in zip(s[0].tolist(), self._y.tolist(), speeds[0].tolist()):
            canvas.polygon(_rectangle((position, lateral), self.length, 2.0, 0.0), self._color(own))
        canvas.polygon(_rectangle((x, y), self.length + 0.8, 2.8, heading), (255, 255, 255))
        canvas.polygon(_rectangle((x, y), self.length, 2.0, heading), self._color(speed))
        return canvas.array()

    def _color(self, speed: float) -> Color:
        stops = np.array([[214, 48, 39], [60, 186, 84], [66, 116, 220]])
        at = [0.0, self.target_speed, 2 * self.target_speed]
        red, green, blue = (int(np.interp(speed, at, stops[:, channel])) for channel in range(3))
        return red, green, blue


def _rectangle(center: Point, length: float, width: float, heading: float) -> list[Point]:
    """:return: its corners"""
    cos, sin = math.cos(heading), math.sin(heading)
    corners = ((length, width), (-length, width), (-length, -width), (length, -width))
    return [(center[0] + (a * cos - b * sin) / 2, center[1] + (a * sin + b * cos) / 2) for a, b in corners]
