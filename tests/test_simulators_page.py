"""docs/simulators.md: every piece of code on it runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "simulators.md").read_text()
EXAMPLES = dict(re.findall(r"\n## ([^\n]*)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_page_has_them() -> None:
    assert len(EXAMPLES) == PAGE.count("```python\n") == 5


@pytest.mark.parametrize("title", EXAMPLES)
def test_it_runs(title: str, capsys: pytest.CaptureFixture) -> None:
    if "jax" in EXAMPLES[title] or "phys2d" in EXAMPLES[title]:
        pytest.importorskip("flax")
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*truncated mini-batch.*")
        exec(compile(EXAMPLES[title], title, "exec"), names)
    assert names["model"]._has_gradients and names["model"].rollout_buffer.action_gradients.any()
    if "check_" in EXAMPLES[title]:
        assert "agree with central differences" in capsys.readouterr().out
