"""The plan of a run: every step that it lists is done, in this order, and nothing else leaves a line."""

import logging
import re

import pytest

SMALL = [
    "block=up_0", "backbone=tiny", "images.size=128", "images.limit=20", "probe.min_steps=100", "trainer.max_epochs=1",
    "logger=none", "device=cpu", "twins=0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["mitigation=standardize"], "fit mitigations|extract activations|train heads|test"),
        (["probe.solver=closed_form", "twins=1"], "solve heads|test|random weights (seed 1)"),
        pytest.param(["probe=correspondence", "probe.head=none", "images.limit=48"], "test", marks=pytest.mark.slow),
        pytest.param(["probe=depth"], "read depth|extract activations|train heads|test", marks=pytest.mark.slow),
        pytest.param(["probe=correspondence", "images.limit=48"], "extract keypoints|train heads|test", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_every_planned_step_leaves_its_line(launch, caplog, overrides: list[str], steps: str) -> None:
    caplog.set_level(logging.INFO)
    launch(*overrides)
    summary, plan, *lines = [line for line in caplog.messages if re.match(r"Device|Steps|\d of \d: ", line)]
    names = ["encode images", *steps.split("|")]
    assert re.match(
        r"Device cpu, precision fp32\. \d+ images.*: (fit|train|test) \d+.* 1 layer: up_0 \(\d+ × \d+ tokens\)\.", summary
    )
    assert plan == f"Steps: {', '.join(f'{number} {name}' for number, name in enumerate(names, 1))}."
    assert [re.sub(r"(, .*)? \([\d.]+ s\)$", "", line) for line in lines] == [
        f"{number} of {len(names)}: {name}" for number, name in enumerate(names, 1)
    ]
    for line in (line for line in lines if "train heads" in line):
        assert re.search(r"train heads, \d+ steps, loss \d\.\d+, \d of \d heads at their plateau \([\d.]+ s\)$", line)
