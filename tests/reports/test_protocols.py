"""The table of published ways of counting says what α is a share of, for every row and data set."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from sdprobe.metrics.pck import ALPHAS, PROTOCOLS
from sdprobe.reports.correspondence import PUBLISHED, PUBLISHED_ALPHAS, protocol_table, reach
from sdprobe.reports.run import Run

SPAIR = {"target_box": "object", "image_reach": False}
PASCAL = {"target_box": "object", "image_reach": True}
WILLOW = {"target_box": "keypoints", "image_reach": False}


def run(meta: dict[str, Any], alphas: tuple[str, ...] = PUBLISHED_ALPHAS) -> Run:
    """Every published number of one layer; the share is 2 α."""
    metrics = {
        f"test/mid/pck_{protocol}_{average}_{alpha}/all": 2 * float(alpha)
        for protocol, average in PUBLISHED
        for alpha in alphas
    }
    known = {"layers": ["mid"], "complete": True, "probe": "correspondence", "images": {"test": 20}, "pairs": {"test": 40}}
    return Run(metrics, known | meta, {})


def rows(table: Table) -> list[list[str]]:
    """Words of every printed line, without the layer's name."""
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.replace("mid", "").split() for line in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("meta", "ours", "papers"),
    [(SPAIR, "box", "box"), (PASCAL, "box", "image"), (WILLOW, "keypoints", "keypoints"), ({}, "box", "box")],
)
def test_every_protocol_names_its_length_on_every_data_set(meta: dict[str, Any], ours: str, papers: str) -> None:
    found = {protocol: reach(run(meta), protocol) for protocol in PROTOCOLS}
    expected = dict.fromkeys(("ours", "ours_refined", "dift", "loos_thesis"), ours)
    expected |= dict.fromkeys(("sd_dino", "geoaware", "geoaware_refined"), papers) | {"ours_img": "image"}
    assert found == expected


def test_the_table_has_every_alpha_that_papers_publish() -> None:
    assert tuple(f"{alpha:.2f}" for alpha in ALPHAS) == PUBLISHED_ALPHAS
    table = protocol_table(run(PASCAL))
    assert [column.header for column in table.columns][1:8] == [
        "protocol", "α of", "mean over", "@0.01", "@0.05", "@0.10", "@0.15",
    ]  # fmt: skip
    text = rows(table)
    assert ["sd_dino", "image", "categories", "2.0", "10.0", "20.0", "30.0"] in [line[:7] for line in text]
    assert table.row_count == len(PUBLISHED)


def test_a_run_that_counted_at_fewer_alphas_keeps_its_rows() -> None:
    table = protocol_table(run({}, ("0.05", "0.10", "0.15")))
    assert table.row_count == len(PUBLISHED)
    assert ["ours", "box", "keypoints", "–", "10.0", "20.0", "30.0"] in [line[:7] for line in rows(table)]
