"""Folders whose names have characters of Hydra's grammar are typed as they are, and their runs are resumed."""

from pathlib import Path

import pytest

from sdprobe.runs import cli, configuration
from sdprobe.runs.arguments import as_overrides

NAMES = ["set=1, übung (1)", "o'brien x#1&b", '~ "[x]" {y}']


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("[backbone=tiny]")
    read = configuration.check(as_overrides(["images=folder", f"images.root={folder}"]))
    assert read is not None and read.images.root == str(folder)
    resumed = configuration.check(cli.expanded(as_overrides([f"resume={folder}"])))
    assert resumed is not None and resumed.resume == resumed.hydra.run.dir == str(folder)
    assert resumed.hydra.runtime.choices.backbone == "tiny"
