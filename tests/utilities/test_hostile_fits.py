"""Files of a stranger that are no files, and records of heads that do not fit their tensors: one sentence each."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdprobe import heads
from sdprobe.runs import places
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_file

TENSORS = {"weight": torch.ones(1, 8), "bias": torch.zeros(1)}
RECORDS: dict[str, Callable[[Any], Any]] = {
    "heads as a list": lambda record: record.update(heads=[1]),
    "no heads": lambda record: record.update(heads=None),
    "shape as text": lambda record: record["heads"]["mid"].update(shape="abc"),
    "shape of other channels": lambda record: record["heads"]["mid"].update(shape=[3, 4, 4]),
    "negative shape": lambda record: record["heads"]["mid"].update(shape=[8, -1, 4]),
    "other tensors": lambda record: record["heads"]["mid"].update(predicts="content"),
    "settings as a list": lambda record: record.update(fitted_on=[]),
    "mitigations as a list": lambda record: record["fitted_on"].update(mitigations=[]),
    "mitigation as a number": lambda record: record["fitted_on"].update(mitigations={"a": 1}),
    "mitigation above": lambda record: record["fitted_on"].update(mitigations={"../x": {"maps": [1], "extraction": []}}),
    "mitigation elsewhere": lambda record: record["fitted_on"].update(mitigations={"/x": {"maps": [1], "extraction": []}}),
    "extraction as text": lambda record: record["fitted_on"].update(mitigations={"a": {"maps": [], "extraction": "x"}}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_heads_that_do_not_fit_their_record_are_told(name: str, tmp_path: Path) -> None:
    heads.save(tmp_path, {"mid": heads.Head("mid", "depth", (8, 4, 4), TENSORS)}, timestep=50)
    assert list(heads.load(tmp_path)) == ["mid"]
    file = tmp_path / "heads.json"
    record = json.loads(file.read_text())
    del record["meta"]
    RECORDS[name](record)
    file.write_text(json.dumps(record | {"meta": {}}))
    with pytest.raises(InputError, match="Expected an intact set of heads"):
        heads.load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFile):
        read_file(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe or a device"):
        places.check_file("datamodule.labels", str(tmp_path / "pipe"))
