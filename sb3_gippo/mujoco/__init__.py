"""The gradient channel for Gymnasium's MuJoCo tasks; MuJoCo itself is imported by :mod:`sb3_gippo.mujoco.wrapper` only."""
