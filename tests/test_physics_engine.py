"""The physics engine against MuJoCo, against plain torch and against finite differences."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

mujoco = pytest.importorskip("mujoco", reason="robots are read by MuJoCo")
pytest.importorskip("warp", reason="robots are simulated by Warp")

from gippo_envs.physics import dynamics, mjcf  # noqa: E402
from gippo_envs.physics.compiled import Step, kernels  # noqa: E402
from gippo_envs.physics.dynamics import Constants  # noqa: E402
from gippo_envs.physics.robot import Robot  # noqa: E402
from gippo_envs.physics.symbols import Symbol, Tape  # noqa: E402
from gippo_envs.physics.tree import Tree  # noqa: E402

GYMNASIUM = ["hopper.xml", "half_cheetah.xml", "walker2d_v5.xml", "ant.xml", "humanoid.xml"]
AIR = Constants(1e-3, 9.81, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""no ground, no limits"""
ACROBAT = """
<mujoco model="acrobat">
  <option gravity="0 0 -9.81"/>
  <worldbody>
    <geom type="plane" size="9 9 .1"/>
    <body name="trunk" pos="0 0 2">
      <freejoint/>
      <geom type="capsule" size=".1" fromto="0 0 -.3 .1 0 .3"/>
      <body name="arm" pos=".1 0 .3" euler="20 0 30">
        <joint name="shoulder" type="ball" pos="0 .02 0"/>
        <geom type="capsule" size=".05" fromto="0 0 0 .3 .1 .1"/>
        <body name="hand" pos=".3 .1 .1">
          <joint name="wrist" axis="1 2 .5" pos="0 0 .01" armature=".01"/>
          <joint name="reach" type="slide" axis="1 0 1"/>
          <geom type="sphere" size=".08" pos=".1 0 0"/>
          <geom type="box" size=".03 .05 .07" pos=".2 0 0" euler="10 20 30" contype="0" conaffinity="0"/>
        </body>
      </body>
      <body name="tail" pos="0 0 -.3">
        <joint name="tail" axis="0 1 0"/>
        <geom type="capsule" size=".04" fromto="0 0 0 -.4 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="wrist" gear="3"/>
    <motor joint="tail" gear="5" ctrllimited="true" ctrlrange="-2 2"/>
  </actuator>
</mujoco>
"""


@pytest.fixture
def acrobat(tmp_path: Path) -> str:
    file = tmp_path / "acrobat.xml"
    file.write_text(ACROBAT)
    return str(file)


def in_air(model: Any, seed: int = 0, spread: float = 0.4) -> tuple[Any, np.ndarray]:
    """:return: MuJoCo's data at random positions, velocities and controls, without contact and limits; the action"""
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_LIMIT
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(model)
    data.qpos[:] += rng.normal(scale=spread, size=model.nq)
    data.qvel[:] = rng.normal(size=model.nv)
    mujoco.mj_normalizeQuat(model, data.qpos)
    action = rng.uniform(-1, 1, model.nu)
    reach = np.where(model.actuator_ctrllimited, model.actuator_ctrlrange[:, 1], 1.0)
    data.ctrl[:] = action * reach
    mujoco.mj_forward(model, data)
    return data, action


def scalars(numbers: Any) -> list[th.Tensor]:
    return list(th.as_tensor(np.array(numbers), dtype=th.float64))


def check_equations(model: Any) -> None:
    tree = mjcf.tree(model)
    for seed in range(3):
        data, action = in_air(model, seed)
        q, v, zero = scalars(data.qpos), scalars(data.qvel), [0.0] * tree.nv
        size, still, none = np.abs(data.qacc).max(), scalars(np.zeros(tree.nv)), [0.0] * model.nu

        # All columns of the mass matrix at once: w · M a for all pairs of unit vectors, where nothing moves or falls.
        unit = th.eye(tree.nv, dtype=th.float64)
        rows = [unit[k][:, None].expand(-1, tree.nv) for k in range(tree.nv)]
        columns = [unit[k][None].expand(tree.nv, -1) for k in range(tree.nv)]
        weightless = AIR._replace(gravity=0.0)
        moving = dynamics.move(tree, q, still, weightless)
        springs = dynamics.residual_power(tree, moving, q, still, zero, none, rows, weightless)
        mass = dynamics.residual_power(tree, moving, q, still, columns, none, rows, weightless) - springs
        expected = np.zeros((tree.nv, tree.nv))
        mujoco.mj_fullM(model, data, expected)
        np.testing.assert_allclose(mass, expected, rtol=0, atol=1e-9)

        moving = dynamics.move(tree, q, v, AIR)
        bias = dynamics.residual_power(tree, moving, q, v, zero, none, list(unit), AIR)
        np.testing.assert_allclose(bias, data.qfrc_bias - data.qfrc_passive, rtol=0, atol=1e-9)

        acceleration = th.stack(dynamics.acceleration(tree, q, v, list(action), AIR))
        np.testing.assert_allclose(acceleration, data.qacc, rtol=0, atol=1e-9 * max(1.0, size))


@pytest.mark.parametrize("file", GYMNASIUM)
def test_mass_matrix_bias_and_accelerations_are_mujocos(file: str) -> None:
    check_equations(mjcf.load(file))


def test_free_ball_hinge_and_slide_joints_anywhere_are_mujocos(acrobat: str) -> None:
    model = mjcf.load(acrobat)
    assert set(model.jnt_type) == {0, 1, 2, 3}
    check_equations(model)


def free_motion(file: str, substeps: int = 1, steps: int = 1000, gravity: float = 9.81) -> tuple[Any, np.ndarray]:
    """:return: the model and the states of a second in the air, (steps + 1, nq + nv)"""
    core = robot_in_air(file, gravity=gravity, dt=1 / steps, substeps=substeps)
    data, _ = in_air(core.model)
    state, states = th.as_tensor(np.concatenate([data.qpos, data.qvel]))[None], []
    action = th.zeros(1, core.action_dim, dtype=th.float64)
    for _ in range(steps):
        states.append(state)
        state, _, _ = core.step(state, action)
    return core.model, th.cat([*states, state]).numpy()


def robot_in_air(file: str, **kwargs: Any) -> Robot:
    off = {"contact_stiffness": 0.0, "contact_damping": 0.0, "friction": 0.0, "limit_stiffness": 0.0}
    return Robot(file, dtype="float64", **{**off, **kwargs})


def test_a_thousand_steps_in_the_air_are_mujocos(acrobat: str) -> None:
    core = robot_in_air(acrobat, dt=1e-3, substeps=1)
    data, action = in_air(core.model)
    core.model.opt.timestep = 1e-3
    core.model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    core.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    state = th.as_tensor(np.concatenate([data.qpos, data.qvel]))[None]
    for _ in range(1000):
        mujoco.mj_step(core.model, data)
        state, _, _ = core.step(state, th.as_tensor(action)[None])
    assert np.abs(data.qvel).max() > 5
    np.testing.assert_allclose(state[0], np.concatenate([data.qpos, data.qvel]), rtol=0, atol=1e-7)


def conserved(model: Any, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:return: by MuJoCo's own account, energy (n,) and momenta (n, 6)"""
    data = mujoco.MjData(model)
    energies, momenta = [], []
    for state in states:
        data.qpos[:], data.qvel[:] = state[: model.nq], state[model.nq :]
        mujoco.mj_forward(model, data)
        mujoco.mj_energyPos(model, data)
        mujoco.mj_energyVel(model, data)
        mujoco.mj_subtreeVel(model, data)
        energies.append(data.energy.sum())
        momenta.append([*(model.body_mass.sum() * data.subtree_linvel[0]), *data.subtree_angmom[0]])
    return np.array(energies), np.array(momenta)


def test_energy_and_momentum_are_kept_at_the_order_of_the_integrator(acrobat: str) -> None:
    drifts = []
    for substeps in (1, 4, 16):
        model, states = free_motion(acrobat, substeps, steps=200)
        energy, _ = conserved(model, states)
        _, weightless = free_motion(acrobat, substeps, steps=200, gravity=0.0)
        _, momentum = conserved(model, weightless)
        drifts.append([np.abs(energy - energy[0]).max(), *np.abs(momentum - momentum[0]).max(0)])
        assert np.ptp(9.81 * model.body_mass.sum() * states[:, 2]) > 10 * drifts[-1][0], "much is exchanged"
    ratios = np.array(drifts[:-1]) / drifts[1:]
    assert (ratios > 3).all() and (ratios < 5).all(), (drifts, "a quarter of the substep, a quarter of the drift")


def plain_step(tree: Tree, state: th.Tensor, action: th.Tensor, constants: Constants, substeps: int) -> th.Tensor:
    """The same equations on torch tensors, differentiated by autograd, the solve included."""
    q, v = list(state[: tree.nq]), list(state[tree.nq :])
    for _ in range(substeps):
        a = dynamics.acceleration(tree, q, v, list(action), constants)
        v = [speed + constants.h * change for speed, change in zip(v, a)]
        q = dynamics.advance(tree, q, v, constants.h)
    return th.stack([*q, *v])


def test_compiled_steps_and_their_gradients_are_plain_torchs(acrobat: str) -> None:
    core = Robot(acrobat, dtype="float64")
    tree, constants = core.tree, core.constants
    generator = th.Generator().manual_seed(0)
    state = core.initial_state(3, generator).T.contiguous()
    state[2] = th.tensor([0.3, 0.2, 0.1])  # deep, shallow, just above for some points
    state[tree.nq :] += 1.0
    action = th.rand(len(tree.motors), 3, generator=generator, dtype=th.float64)
    seed = th.randn(state.shape, generator=generator, dtype=th.float64)
    found = {}
    for name in ("compiled", "plain"):
        x, u = state.clone().requires_grad_(), action.clone().requires_grad_()
        if name == "plain":
            after = plain_step(tree, x, u, constants, 2)
        else:
            numbers = th.tensor(constants, dtype=th.float64)
            after = Step.apply(x, u, numbers, kernels(tree, th.float64, core.torch_device), 2)
        found[name] = (after.detach(), *th.autograd.grad((after * seed).sum(), (x, u)))
    assert (state[2] < 0.35).all() and found["plain"][2].abs().min() > 0
    for compiled, plain in zip(found["compiled"], found["plain"]):
        th.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-10)


def test_formulas_are_differentiated_as_torch_does() -> None:
    def formula(x: Any, y: Any) -> Any:
        return (x * y - x.sin()).relu() * (y * y + 1.0).sqrt().reciprocal() - (-x * 0.5).cos() * y + (0.0 - y) * (x * -1.0)

    numbers = [th.tensor(value, dtype=th.float64, requires_grad=True) for value in (1.3, 2.1)]
    expected = th.autograd.grad(formula(*numbers), numbers)
    tape = Tape()
    inputs = [tape.input(f"in{k}") for k in range(2)]
    gradient = tape.gradient(formula(*inputs), inputs)
    known: dict[int, float] = {}
    for index, (operation, *arguments) in enumerate(tape.formulas):
        values = [known[argument.index] if isinstance(argument, Symbol) else argument for argument in arguments]
        known[index] = calculate(operation, values)
    assert [float(value) for value in expected] == pytest.approx([known[symbol.index] for symbol in gradient], rel=1e-14)


def calculate(operation: str, arguments: list[Any]) -> float:
    if operation == "input":
        return {"in0": 1.3, "in1": 2.1}[arguments[0]]
    operations: dict[str, Any] = {
        **{name: getattr(math, name) for name in ("sin", "cos", "sqrt")},
        **{name: getattr(operator, name) for name in ("add", "sub", "mul", "neg")},
        "reciprocal": lambda x: 1 / x,
        "relu": lambda x: max(x, 0.0),
        "gate": lambda x, y: y if x > 0 else 0.0,
    }
    return float(operations[operation](*arguments))


def test_products_with_zero_and_repeated_formulas_are_left_out() -> None:
    tape = Tape()
    x, y = tape.input("x"), tape.input("y")
    assert x * 0.0 == 0.0 and x * 1.0 is x and x + 0.0 is x and x - x == 0.0
    assert (x * y).index == (y * x).index and (-x * y + x * y) == 0.0


def test_a_planar_robot_costs_what_a_plane_does() -> None:
    lines = {}
    for name, axis in (("in a plane", "0 1 0"), ("in space", "1 1 1")):
        links = "".join(f"<body pos='0 0 -1'><joint axis='{axis}'/><geom size='.1' pos='0 0 -1'/>" for _ in range(3))
        model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{links}{'</body>' * 3}</worldbody></mujoco>")
        tape, tree = Tape(), mjcf.tree(model)
        q, v = ([tape.input(f"{name}[{k}]") for k in range(3)] for name in "qv")
        a = dynamics.acceleration(tree, q, v, [], AIR)
        lines[name] = tape.code([(f"a[{k}]", value) for k, value in enumerate(a)]).count("\n")
    assert lines["in a plane"] < 0.4 * lines["in space"], lines


REFUSED = {
    "<equality><weld body1='b'/></equality>": r"equality constraints \(equality number 0\)",
    "<option viscosity='1'/>": "fluids",
    "<tendon><fixed name='t' stiffness='2'><joint joint='j' coef='1'/></fixed></tendon>": r"tendons that act \(tendon 't'\)",
    "<actuator><position joint='j'/></actuator>": r"actuators other than motors \(actuator number 0\)",
    "<actuator><motor joint='j' ctrllimited='true' ctrlrange='0 1'/></actuator>": "motors stronger one way than the other",
    "<actuator><motor joint='j' forcelimited='true' forcerange='-1 1'/></actuator>": "motors with force limits",
    "<default><geom type='box' size='1 1 1'/></default>": r"contact of a box with the ground \(geom 'g'\)",
    "<default><joint frictionloss='1'/></default>": r"dry friction in joints \(joint 'j'\)",
    "<worldbody><geom type='plane' size='1 1 1' euler='0 20 0'/></worldbody>": "ground that is tilted or moves",
    "<worldbody><geom type='plane' size='1 1 1' pos='0 0 1'/></worldbody>": "ground of several heights",
    "<worldbody><body mocap='true'><geom size='1' contype='0' conaffinity='0'/></body></worldbody>": "moved from outside",
    "<worldbody><body><joint type='ball' stiffness='1'/><geom size='1'/></body></worldbody>": "springs and limits of ball",
}


@pytest.mark.parametrize("part", REFUSED)
def test_what_is_not_carried_is_refused_with_cause_and_fix(part: str, tmp_path: Path) -> None:
    body = "<body name='b'><joint name='j'/><geom name='g' size='1 1 1'/></body>"
    ground = "<geom type='plane' size='1 1 1'/>"
    file = tmp_path / "robot.xml"
    file.write_text(f"<mujoco model='mine'>{part}<worldbody>{ground}{body}</worldbody></mujoco>")
    with pytest.raises(ValueError, match=rf"^The physics engine does not carry .*{REFUSED[part]}.* \(mine\): .+\.$"):
        Robot(str(file))
    file.write_text(f"<mujoco model='mine'><worldbody>{ground}{body}</worldbody></mujoco>")
    Robot(str(file))


def test_models_are_read_without_a_word_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = mujoco.get_mju_user_warning()
    mjcf.load("half_cheetah.xml")
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir()) and mujoco.get_mju_user_warning() is handler


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"^There is no model 'nowhere.xml': give the path of an MJCF file, or"):
        Robot("nowhere.xml")
