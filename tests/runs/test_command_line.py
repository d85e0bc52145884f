"""What a user types in a shell: bash splits the words, train.py answers, and torch is not imported meanwhile."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sdprobe.runs import cli, configuration, help
from sdprobe.runs.arguments import as_overrides
from sdprobe.runs.groups import CONFIGS
from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parents[2]
# the first half of train.py, in a process that may not load a network's libraries; prints the value of a setting
CHECKED = """
import sys
from omegaconf import OmegaConf
from sdprobe.runs import arguments, configuration
cfg = configuration.check(arguments.as_overrides(sys.argv[2:]))
print(OmegaConf.select(cfg, sys.argv[1]))
assert not {"torch", "diffusers", "lightning", "matplotlib"} & set(sys.modules)
"""


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line in bash, where `sdprobe SETTING WORDS` prints what SETTING is."""
    (python,) = {sys.executable}
    script = f'sdprobe() {{ \'{python}\' -c "$CHECKED" "$@"; }}\n{line}'
    variables = os.environ | {"CHECKED": CHECKED} | environment
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("sdprobe images.root images=folder images.root=~/photos", "/home/me/photos"),
        ("sdprobe images.root images=folder images.root='/data/my, own = [new] photos'", "/data/my, own = [new] photos"),
        ('sdprobe images.root images=folder "images.root=/data/it\'s here"', "/data/it's here"),
        ("sdprobe prompt prompt='a cat'", "a cat"),
        ("sdprobe prompt prompt='a {category}, at night'", "a {category}, at night"),
        ("sdprobe images.split images=hub images.path=owner/name images.split='train[:12]'", "train[:12]"),
        ("sdprobe block block='up_blocks[1].resnets[2]'", "up_blocks.1.resnets.2"),
        ("sdprobe block block='up_*'", "up_*"),
        ("sdprobe block block=[mid, up_1]", "['mid', 'up_1']"),
        ("sdprobe prompt 'prompt=\"a photo of a {category}\"'", "a photo of a {category}"),  # as Hydra's documents quote
    ],
)
def test_what_a_shell_delivers_is_taken(line: str, value: str) -> None:
    answer = shell(line, HOME="/home/me")
    assert answer.stdout.strip() == value, answer.stderr


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(lambda text: "${" not in text))
def test_text_arrives_as_it_was_typed(text: str) -> None:
    [override] = as_overrides([f"prompt={text}"])
    value = OverridesParser.create().parse_override(override).value()
    quoted = re.fullmatch(r"([\"']).*\1", text) or text == "null" or re.fullmatch(r"\w+\(.*\)", text)
    assert value == text or quoted


def test_jobs_of_a_sweep_may_differ_in_text() -> None:
    assert as_overrides(["-m", "prompt=a cat,a dog"]) == ["-m", "prompt=a cat,a dog"]
    assert as_overrides(["prompt=a cat,a dog"]) == ["prompt='a cat,a dog'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mid"], "form key=value, but got 'mid'"),
        (["images.limit=1=2"], "but got 'images.limit=1=2'"),
        (["block=mid", "seed=a b["], r"but got 'seed=a b\['.* Write \"seed='a b\['\"\."),
    ],
)
def test_the_argument_that_cannot_be_read_is_named_with_a_spelling_that_works(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_overrides(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timestep=abc"], "Expected timestep to be a number, but got 'abc'. The default is 50."),
        (["images.limit=1", "seed=[1]"], "Expected seed to be a number"),
        (["mitigation=leace", "mitigation.leace.shrinkage=3"], "to be true or false, but got 3"),
        (["images.size=100"], "Expected images.size to be a positive multiple of 64"),
        (["images=crops", "images.images.limit=1e30"], "Expected images.images.limit to be at most 10000000"),
        (["probe=positon"], "The nearest is 'position'"),
        (["images.root=x"], "Add images=folder or images=nyu or images=pf_pascal or images=pf_willow or images=spair."),
        (["block=mid,up_1"], "Write block=[mid,up_1] for several layers in one run, or add -m for a job per value."),
        (["seed=1,2"], "Expected one value of seed, but got '1,2'. Add -m for a job per value."),
        (["backbone=[tiny,tiny]"], "Expected backbone to be one of demo, demo_dit, dit_xl, flux_dev,"),
        (["experiment=[null,controls]"], "Write experiment=NAME."),
    ],
)
def test_wrong_settings_are_found_before_torch_is_imported(words: list[str], message: str) -> None:
    answer = shell(f"sdprobe seed {' '.join(words)}")
    assert message in answer.stderr.splitlines()[-1] and answer.returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timestep=10,50"], "Write timestep=[10,50] for several noise levels in one run, or add -m for a job per value."),
        (["timestep=[]"], "Expected timestep to be a number or a list of numbers, but got []."),
        (["timestep=[10,1000]"], "Expected timestep to be from 0 to 999, but got 1000."),
        (["timestep=[10,many]"], "Expected timestep to be an integer, but got 'many'."),
        (["timestep=[261,10]"], "to be in ascending order, without repetition, but got [261, 10]. Write timestep=[10,261]."),
        (["timestep=[10,10]"], "to be in ascending order, without repetition, but got [10, 10]. Write timestep=[10]."),
        (["noise_level=[.4,.2]"], "Write noise_level=[0.2,0.4]."),
        (["noise_level=1.5"], "Expected noise_level to be from 0 to 1, but got 1.5."),
        (["noise_level=low"], "Expected noise_level to be a finite number, but got 'low'."),
        (["noise_level=.2", "timestep=50"], "Expected timestep or noise_level, but got both, timestep 50 and noise_level 0.2."),
        (
            ["noise_level=.2", "control=shared_261"],
            "but got both, timestep 261 and noise_level 0.2. Leave noise_level out, or the sweep=, control=",
        ),
        (["noise_level=.2", "sweep=timesteps"], "Expected timestep or noise_level, but got both"),
    ],
)
def test_noise_levels_that_cannot_be_meant_get_a_sentence(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        configuration.check(words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mitigation=[]"], r"Expected mitigation to be one of canvas, .*, but got \[\]"),
        (["hydra=wrong"], "Expected hydra to have settings of its own, but got hydra=wrong"),
        (["~hydra"], "Write hydra.NAME=VALUE"),
        (["~logger"], "Expected every configuration group to stay, but got '~logger'"),
        (["~block"], "Expected every setting to stay, but got '~block'"),
        (["~choose=layer"], "Expected every setting to stay, but got '~choose=layer'"),
    ],
)
def test_what_is_no_choice_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration.check(words)


@pytest.mark.parametrize(
    "words",
    [
        ["timestep=[10,50]"],
        ["noise_level=[.1,.2]"],
        ["-m", "noise_level=.1,.2"],
        ["-m", "timestep=[10,50],[261]"],
        ["activation_budget=.5"],
        ["block=[mid,up_1]"],
        ["probe.learning_rate=1"],
        ["images.limit=null"],
    ],
)
def test_values_of_another_kind_than_the_default_that_are_meant_pass(words: list[str]) -> None:
    assert configuration.check(words) is not None


def test_help_has_examples_choices_and_every_setting_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    help.show(["probe=correspondence", "images=spair", "images.root=x", "--help"])
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith(" python train.py")]) == 7
    for name in ("timestep", "probe.temperature", "images.resize", "backbone.padding", "datamodule.pair_batch"):
        assert re.search(rf"^ {re.escape(name)} ", printed, re.M), name
    for choice in ("sd15", "loos2025", "slurm", "timesteps"):
        assert choice in printed


@pytest.mark.parametrize("group", help.GROUPS)
def test_every_choice_says_what_it_is(group: str) -> None:
    assert all(help.choices(group).values()), help.choices(group)


def test_help_is_what_the_files_say() -> None:
    [timestep] = [setting for setting in help.settings_of(CONFIGS / "train.yaml") if setting.name == "timestep"]
    line = next(line for line in (CONFIGS / "train.yaml").read_text().splitlines() if line.startswith("timestep:"))
    assert timestep.default == "50" and timestep.meaning in line and timestep.values in line
    names = [setting.name for setting in help.settings_of(CONFIGS / "probe" / "study.yaml", "probe.")]
    assert {"probe.head", "probe.solver"} <= set(names)  # inherited from position.yaml


def test_the_first_line_says_what_was_asked_for() -> None:
    cfg = configuration.check(["probe=depth", "mitigation=leace", "block=[mid,up_1]"])
    assert cfg is not None
    assert cli.asked_for(cfg) == (
        "Probe depth, backbone demo, block mid and up_1, timestep 50, images scene_depth, mitigation leace."
    )
    sweep = configuration.check(["-m", "timestep=10,50"])
    assert sweep is not None and cli.asked_for(sweep).startswith("A sweep; its first job: ")
