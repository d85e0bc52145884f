"""Damaged files and killed processes: what a run, a sweep or a report then says is the same numbers or one sentence."""

import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from sdprobe import heads
from sdprobe.mitigations import load
from sdprobe.reports.__main__ import main as reports
from sdprobe.reports.collection import read_folders
from sdprobe.reports.run import Run
from sdprobe.runs.cli import expanded
from sdprobe.runs.folders import stored_overrides
from sdprobe.runs.record import complete
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_state, write_state, write_yaml
from tests.runs.forks import begin, command, ended, killed, numbers, prepare

SMALL = [
    "backbone=tiny", "block=up_0", "images.size=64", "images.limit=12", "trainer.max_epochs=3", "logger=none", "device=cpu",
]  # fmt: skip
# a regression: its errors are no counts, so that every change of a number shows
POSITION = [*SMALL, "probe=position", "probe.head=regression", "mitigation=[standardize]", "datamodule.compare=true"]
MATCHING = [*SMALL, "probe=correspondence", "images=scene_pairs", "images.limit=48", "probe.head=none"]
CORRUPTIONS, KILLS, SLICES = 320, 320, 16


def test_a_run_with_a_damaged_file_is_not_complete_and_its_mitigation_not_used(launch, tmp_path: Path, capsys) -> None:
    options = ["probe.solver=closed_form", "twins=1", "mitigation=[standardize]", "datamodule.compare=true"]
    first, second = (Path(launch(*options, f"seed={seed}", folder=str(seed)).folder) for seed in (0, 1))
    whole, random = tmp_path / "whole", np.random.default_rng(0)
    shutil.copytree(first, whole)
    names = [*Run.read(first).files, "metrics.json"]
    assert {Path(name).name for name in names} == {
        "maps.npz", "pseudovalues.npz", "mitigation.json", "mitigation.safetensors", "heads.json", "heads.safetensors",
        "metrics.json",
    }  # fmt: skip
    assert complete(first) and load(first / "mitigation" / "standardize") and heads.load(first)
    for name in names:
        for way in WAYS:
            damage(first / name, way, random, [second / name])
            assert complete(first) is None, (name, way)
            if name.startswith("mitigation"):
                with pytest.raises(InputError, match="Expected"):
                    load(first / "mitigation" / "standardize")
            elif name.startswith("heads"):
                with pytest.raises(InputError, match="Expected"):
                    heads.load(first)
            elif name != "maps.npz" and way not in ("folder", "other"):
                assert list(read_folders([first])[1]) == [first], (name, way)
            shutil.rmtree(first)
            shutil.copytree(whole, first)
    text = (first / "metrics.json").read_text()
    (first / "metrics.json").write_text(re.sub(r": 0\.\d", ": 0.987", text, count=1))
    with pytest.raises(SystemExit) as caught:
        reports([str(first)])
    assert caught.value.code == 1
    assert re.search(
        r"^Expected .* contain a run, but its metrics\.json is unreadable \(checksum mismatch\)\.", capsys.readouterr().err
    )


@pytest.mark.parametrize("way", ["cut", "bits", "empty", "folder", "other"])
def test_damaged_overrides_and_checkpoints_are_told_in_a_sentence(tmp_path: Path, way: str) -> None:
    for seed in (0, 1):
        write_overrides(tmp_path / str(seed), [f"seed={seed}"])
        write_state(tmp_path / str(seed) / "last.ckpt", {"seed": seed})
    path, random = tmp_path / "0" / ".hydra" / "overrides.yaml", np.random.default_rng(0)
    damage(tmp_path / "0" / "last.ckpt", way, random, [path])
    with pytest.raises(DamagedFile):
        read_state(tmp_path / "0" / "last.ckpt")
    damage(path, way, random, [tmp_path / "1" / "last.ckpt"])
    with pytest.raises(InputError, match=r"overrides\.yaml to be as the run wrote it, but got '.+'\. A resumed run keeps"):
        expanded([f"resume={tmp_path / '0'}"])


def test_overrides_that_were_edited_by_hand_are_told(tmp_path: Path) -> None:
    write_overrides(tmp_path, ["seed=0"])
    path = tmp_path / ".hydra" / "overrides.yaml"
    assert "seed=0" in expanded([f"resume={tmp_path}"])
    path.write_text(path.read_text().replace("seed=0", "seed=1"))
    with pytest.raises(InputError, match="to be as the run wrote it, but got 'checksum mismatch'"):
        expanded([f"resume={tmp_path}"])
    path.write_text("- seed=1\n")  # of an older version
    assert "seed=1" in expanded([f"resume={tmp_path}"])


def write_overrides(folder: Path, overrides: list[str]) -> None:
    (folder / ".hydra").mkdir(parents=True)
    write_yaml(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        yield measured(tmp_path_factory.mktemp("damage"))


def measured(place: Path) -> Path:
    """A folder with whole runs, sweeps and caches in ``work``, and a copy of them in ``whole``."""
    work = place / "work"
    runs = {f"position/{seed}": [*POSITION, f"seed={seed}"] for seed in (0, 1)}
    runs |= {f"matching/{seed}": [*MATCHING, f"seed={seed}"] for seed in (0, 1)}
    commands = [[*arguments, cached(work), f"hydra.run.dir={work / name}"] for name, arguments in runs.items()]
    for arguments in [*commands, sweep(work), [*saved(work), f"hydra.run.dir={work / 'saved'}"]]:
        code, printed = command(*arguments, log=place / "log")
        assert code == 0, printed
    for name in ("position", "matching"):
        first, second = (numbers(work / name / seed) for seed in "01")
        assert sum(first[key] != second[key] for key in first.keys() & second.keys()) > 20, "the control: seeds differ"
    shutil.copytree(work, place / "whole")
    return place


def same(folder: Path) -> Any:
    """The numbers of a run up to the rounding of an encoder that sees other images in a batch, as for a missing latent."""
    return pytest.approx(numbers(folder), rel=1e-5, abs=1e-6)


def cached(work: Path) -> str:
    return f"cache_dir={work / 'cache'}"


def sweep(work: Path) -> list[str]:
    return ["-m", *POSITION, "seed=0,1", "twins=0", cached(work), f"hydra.sweep.dir={work / 'sweep'}"]


def saved(work: Path) -> list[str]:
    folder = work / "position" / "0" / "mitigation" / "standardize"
    return [
        *SMALL,
        "probe=position",
        "probe.head=regression",
        "mitigation=saved",
        f"mitigation.saved.folder={folder}",
        cached(work),
    ]


# --- damaged files -----------------------------------------------------------------------------------------------------


def bits(content: bytes, random: np.random.Generator, count: int) -> bytes:
    """With some bits flipped."""
    flipped = bytearray(content)
    for position in random.integers(len(content), size=count):
        flipped[position] ^= 1 << random.integers(8)
    return bytes(flipped)


def digit(content: bytes, random: np.random.Generator, count: int) -> bytes:
    """With one digit replaced by another."""
    found = list(re.finditer(rb"\d", content))
    if not found:
        return content[:-1]
    at = found[random.integers(len(found))].start()
    return content[:at] + str((int(content[at : at + 1]) + random.integers(1, 10)) % 10).encode() + content[at + 1 :]


def damage(path: Path, way: str, random: np.random.Generator, others: list[Path]) -> None:
    """Damage a file in one of several ways; ``others`` are whole files of the same kind."""
    content = path.read_bytes()
    if way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "other":
        unlike = [other for other in others if other.read_bytes() != content]
        shutil.copyfile(unlike[random.integers(len(unlike))] if unlike else Path(__file__), path)
    else:
        damaged = {
            "empty": lambda: b"",
            "cut": lambda: content[: random.integers(len(content))],
            "bit": lambda: bits(content, random, 1),
            "bits": lambda: bits(content, random, 20),
            "digit": lambda: digit(content, random, 1),
        }[way]()
        path.write_bytes(damaged)


WAYS = ("cut", "bit", "bits", "digit", "empty", "folder", "other")
# glob of files of a kind → what is done with them afterwards, and what must give the numbers of which run
KINDS: dict[str, tuple[str, ...]] = {
    "cache/latents/**/*.safetensors": ("anew",),
    "cache/twins/*": ("anew", "anew matching"),
    "cache/mitigations/*/*": ("anew",),
    "position/0/metrics.json": ("resume", "report"),
    "position/0/maps.npz": ("resume", "report"),
    "position/0/pseudovalues.npz": ("resume", "report"),
    "position/0/mitigation/standardize/*": ("saved", "resume"),
    "position/0/checkpoints/last.ckpt": ("continue",),
    "position/0/.hydra/overrides.yaml": ("continue", "resume"),
    "matching/0/predictions.parquet": ("resume matching",),
    "sweep/sweep.json": ("sweep",),
    "sweep/0/*": ("sweep", "sweep continued"),
    "sweep/0/checkpoints/last.ckpt": ("sweep continued",),
    "sweep/0/.hydra/overrides.yaml": ("sweep",),
}


def use(what: str, work: Path, log: Path) -> tuple[int, str, dict[Path, str]]:
    """Exit code and output of a command that uses the files of ``work``, and the run folders → the folders they must equal."""
    what, _, kind = what.partition(" ")
    first = work / (kind if kind == "matching" else "position") / "0"
    if what in ("continue", "resume"):
        if what == "continue":
            (first / "metrics.json").unlink()
        return *command(f"resume={first}", cached(work), log=log), {first: str(first.relative_to(work))}
    if what == "sweep":
        if kind:
            (work / "sweep" / "0" / "metrics.json").unlink(missing_ok=True)
        return *command(*sweep(work), log=log), {work / "sweep" / seed: f"sweep/{seed}" for seed in "01"}
    if what == "report":
        return *command(str(work / "position"), log=log, program="sdprobe.reports"), {}
    arguments = saved(work) if what == "saved" else [*(MATCHING if kind else POSITION), "seed=0", cached(work)]
    code, printed = command(*arguments, f"hydra.run.dir={work / 'new'}", log=log)
    return code, printed, {work / "new": "saved" if what == "saved" else f"{kind or 'position'}/0"}


def tried(place: Path, pattern: str, way: str, what: str, random: np.random.Generator) -> str:
    """Damage a file, use it, and return what became of it: the numbers are the ``same``, or it was ``rebuilt`` or ``told``."""
    work, whole, log = place / "work", place / "whole", place / "log"
    shutil.rmtree(work)
    shutil.copytree(whole, work)
    files = [path for path in sorted(work.glob(pattern)) if path.is_file() and path.suffix not in (".png", ".log")]
    path = files[random.integers(len(files))]
    relative = path.relative_to(work).as_posix()
    others = [whole / name for name in (relative.replace("/0/", "/1/"), *(file.relative_to(work) for file in files))]
    if what.startswith(("continue", "sweep continued")) and path.name == "metrics.json":
        return "same"
    damage(path, way, random, [other for other in others if other.suffix == path.suffix and other.is_file()])
    code, printed, folders = use(what, work, log)
    case = f"{relative} {way}, then {what}: exit code {code}\n{printed}"
    assert "Traceback" not in printed, case
    if code:
        assert re.search(r"^(Error: )?(Expected .*\.|\d+ of \d+ jobs have no result)", printed, re.M), case
        assert any(name in printed for name in (path.name, str(path.parent))), case
        return "told"
    if what == "report":
        return "told" if "Skipped" in printed else "same"
    for folder, reference in folders.items():
        assert numbers(folder) == same(whole / reference), case
    return "rebuilt" if "damaged" in printed else "same"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(SLICES))
def test_a_damaged_file_is_rebuilt_or_told_and_changes_no_number(place: Path, part: int) -> None:
    cases = [(pattern, way, what) for pattern, uses in KINDS.items() for what in uses for way in WAYS]
    order = np.random.default_rng(0).permutation(np.resize(np.arange(len(cases)), CORRUPTIONS))
    outcomes: Counter[tuple[str, str]] = Counter()
    failed = []
    for number in order[part::SLICES]:
        try:
            outcome = tried(place, *cases[number], np.random.default_rng([part, int(number)]))
        except AssertionError as error:
            outcome = "failed"
            failed.append(str(error))
        outcomes[cases[number][0], outcome] += 1
    for (pattern, outcome), count in sorted(outcomes.items()):
        sys.stdout.write(f"part {part}: {pattern} {outcome} {count}\n")
    assert not failed, "\n".join(failed)
    assert {outcome for _, outcome in outcomes} >= {"same", "rebuilt", "told"}


# --- killed processes --------------------------------------------------------------------------------------------------


STEPS = "Steps: "  # a run prints this when it begins to measure


def moment(printed: str, several: bool) -> str:
    """What a run did when it was killed: the step after the last one that it had finished; of a sweep, which job."""
    if several:
        return f"job {len(re.findall('^Job .*', printed, re.M)) + 1} of a sweep"
    steps = re.findall(r"\d ([a-z ]+)", printed.partition(STEPS)[2].partition("\n")[0])
    done = len(re.findall(r"^\d+ of \d+: ", printed, re.M))
    return "start" if not steps else [*steps, "end"][done]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(SLICES))
def test_a_kill_at_any_moment_changes_no_number(place: Path, part: int, tmp_path: Path) -> None:
    random, log = np.random.default_rng(part), tmp_path / "log"
    moments: Counter[str] = Counter()
    kills = rounds = 0
    began = time.monotonic()
    assert command(*POSITION, "seed=0", cached(tmp_path), f"hydra.run.dir={tmp_path / 'timed'}", log=log)[0] == 0
    lasting = time.monotonic() - began
    while kills < KILLS // SLICES:
        rounds += 1
        work = tmp_path / str(rounds)
        several = rounds % 3 == 0
        arguments = sweep(work) if several else [*POSITION, "seed=0", cached(work), f"hydra.run.dir={work / 'run'}"]
        for _ in range(5):
            again = not several and (work / "run" / ".hydra" / "overrides.yaml").is_file()
            given = [f"resume={work / 'run'}", cached(work)] if again else arguments
            since = "" if random.uniform() < 0.1 else "A sweep" if several else STEPS
            died = killed(*given, log=log, since=since, after=lasting * random.uniform(0, 1.2 if several else 0.7))
            printed = log.read_text() if log.exists() else ""
            assert "Traceback" not in printed, printed
            lasting *= 1.05 if died else 0.8  # a busy machine becomes an idle one, and the reverse
            if not died:
                break
            kills += 1
            moments[moment(printed, several)] += 1
        again = not several and (work / "run" / ".hydra" / "overrides.yaml").is_file()
        code, printed = command(*([f"resume={work / 'run'}", cached(work)] if again else arguments), log=log)
        assert code == 0 and "damaged" not in printed, printed
        wanted = {f"sweep/{seed}": f"sweep/{seed}" for seed in "01"} if several else {"run": "position/0"}
        for name, reference in wanted.items():
            assert numbers(work / name) == same(place / "whole" / reference), printed
        shutil.rmtree(work)
    for name, count in sorted(moments.items()):
        sys.stdout.write(f"part {part}: {name} {count}\n")


# --- two starts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_starts_into_one_folder_one_is_refused(place: Path, tmp_path: Path) -> None:
    random, refused = np.random.default_rng(0), 0
    cache = cached(place / "whole")
    for number in range(10):
        folder, logs = tmp_path / str(number), [tmp_path / f"{number}_{seed}" for seed in (0, 1)]
        first = begin([*POSITION, "seed=0", cache, f"hydra.run.dir={folder}"], logs[0])
        time.sleep(random.uniform(0, 2.5))
        second = begin([*POSITION, "seed=1", cache, f"hydra.run.dir={folder}"], logs[1])
        codes = [ended(first), ended(second)]
        assert 0 in codes, logs[0].read_text() + logs[1].read_text()
        seed = 1 if codes[1] == 0 else 0  # where both ended well, the second began after the first had ended
        assert stored_overrides(folder)[-2] == f"seed={seed}"
        assert numbers(folder) == numbers(place / "whole" / "position" / str(seed))
        assert not (folder / ".lock").exists()
        if codes != [0, 0]:
            refused += 1
            assert re.search(rf"^Expected {folder} to be free, but .+ uses it\.", logs[1 - seed].read_text(), re.M)
    sys.stdout.write(f"{refused} of 10 second starts were refused\n")
    assert refused >= 5


@pytest.mark.slow
def test_four_identical_runs_at_once_share_caches(place: Path, tmp_path: Path) -> None:
    arguments = [*POSITION, "seed=0", cached(tmp_path)]
    processes = [
        begin([*arguments, f"hydra.run.dir={tmp_path / str(number)}"], tmp_path / f"log{number}") for number in range(4)
    ]
    assert [ended(process) for process in processes] == [0] * 4
    for number in range(4):
        assert numbers(tmp_path / str(number)) == numbers(place / "whole" / "position" / "0")
        assert "damaged" not in (tmp_path / f"log{number}").read_text()
