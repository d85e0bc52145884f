"""Files of a stranger that are no files, and records of fits that do not fit their tensors: one sentence each."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdprobe import heads, mitigations
from sdprobe.mitigations.saved import KINDS, _made
from sdprobe.runs import places
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.fits import write_fit
from sdprobe.utilities.io import DamagedFile, checksum, read_file, read_json, read_tensors, write_json
from sdprobe.utilities.signatures import declared, fits

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
    with pytest.raises(InputError, match="a pipe"):
        places.check_file("datamodule.labels", str(tmp_path / "pipe"))


OPTIONS = [(name, option) for name, kind in KINDS.items() for option in declared(kind)]
VALUES: list[Any] = [1e300, -1e300, 1.5, math.nan, math.inf, 10**30, -1, None, "x", "", [], [1], {}, True]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_options_of_a_saved_mitigation_have_the_type_and_range_of_its_argument(name: str, option: str) -> None:
    hint = declared(KINDS[name])[option]
    for value in VALUES:
        try:
            _made(name, {option: value})
        except (InputError, ValueError):
            continue
        assert fits(value, hint), f"{option}={value} of {name}"
        if isinstance(value, int | float):
            assert math.isfinite(value) and (fits(1.5, hint) or value < 2**32), f"{option}={value} of {name}"


def mitigation(folder: Path, seed: int = 0) -> Path:
    grids = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(seed))
    mitigations.save(folder, {"mid": mitigations.PcaDrop().fit([grids])})
    return folder


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "single number": lambda tensor: tensor.new_zeros(()), "nothing": lambda tensor: tensor.new_zeros(0),
    "other channels": lambda tensor: torch.cat([tensor, tensor]), "one dimension more": lambda tensor: tensor[None],
    "NaN": lambda tensor: torch.full_like(tensor, math.nan), "infinity": lambda tensor: torch.full_like(tensor, math.inf),
}  # fmt: skip


WRONG = [(name, tensor) for name in SHAPES for tensor in ("mean", "left", "right")]


@pytest.mark.parametrize(("name", "tensor"), [*WRONG, ("nothing", "seen"), ("NaN", "seen"), ("infinity", "seen")])
def test_tensors_that_cannot_be_applied_are_told_when_a_mitigation_is_read(name: str, tensor: str, tmp_path: Path) -> None:
    """Its checksums are those of a stranger, too."""
    place = mitigation(tmp_path)
    assert mitigations.load(place)
    record, (tensors, _) = read_json(place / "mitigation.json"), read_tensors(place / "mitigation.safetensors")
    changed = {key: SHAPES[name](each.float()) if key.endswith(f".{tensor}") else each for key, each in tensors.items()}
    write_fit(place, "mitigation", changed, {key: value for key, value in record.items() if key not in ("digest", "meta")})
    with pytest.raises(InputError, match=r"Expected .*mitigation"):
        mitigations.load(place)


def test_a_fit_of_another_run_in_a_run_folder_is_told(tmp_path: Path) -> None:
    """Both files fit each other, and their checksums are right."""
    own, other = (mitigation(tmp_path / name / "mitigation" / "pca_drop", seed) for seed, name in enumerate("ab"))
    files = {path.relative_to(tmp_path / "a").as_posix(): checksum(path.read_bytes()) for path in own.iterdir()}
    write_json(tmp_path / "a" / "metrics.json", {"meta": {"files": files}})
    assert mitigations.load(own) and mitigations.load(other)
    for path in other.iterdir():
        shutil.copy(path, own)
    with pytest.raises(InputError, match=r"Expected an intact mitigation in .*checksum mismatch"):
        mitigations.load(own)
    (tmp_path / "a" / "metrics.json").unlink()  # nobody knows
    assert mitigations.load(own)
