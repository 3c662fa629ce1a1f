"""docs/simulators.md and docs/first_settings.md: every piece of code on them runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from sb3_gippo.cli.hyperparams import read_hyperparams

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "simulators.md").read_text()
EXAMPLES = dict(re.findall(r"\n## ([^\n]*)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_page_has_them() -> None:
    assert len(EXAMPLES) == PAGE.count("```python\n") == 5


def test_first_settings_are_the_default_entry() -> None:
    names: dict = {}
    exec((DOCS / "first_settings.md").read_text().split("```python\n")[1].split("```")[0], names)
    model, entry = names["model"], read_hyperparams("gippo", "default")
    assert model._has_gradients and not model.get_vec_normalize_env().norm_reward
    for key in ("n_envs", "n_steps", "batch_size", "n_epochs", "max_grad_norm", "policy_kwargs"):
        assert getattr(model, key) == entry[key], key


@pytest.mark.parametrize("title", EXAMPLES)
def test_it_runs(title: str, capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*truncated mini-batch.*")
        exec(compile(EXAMPLES[title], title, "exec"), names)
    assert names["model"]._has_gradients and names["model"].rollout_buffer.action_gradients.any()
    if "check_" in EXAMPLES[title]:
        assert "agree with central differences" in capsys.readouterr().out
