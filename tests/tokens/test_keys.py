"""Laws of keys: printing and parsing are inverse, variants keep their parts, and no other module parses keys."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.tokens.keys import (
    CONDITIONS,
    GROUPS,
    MASKED,
    PARTITION,
    STATISTICS,
    Key,
    at_level,
    base_of,
    is_label,
    label_of,
    qualified,
    select,
    timestep_of,
    variant,
)
from sdprobe.utilities.errors import InputError
from tests.test_architecture import LEVELS, ROOT

# of runs of backbone=tiny with position, controls, study, statistics, depth, content, correspondence, role
WRITTEN = [
    "chance/mid__position_mean/binned_accuracy/all",
    "gain_over_none/mid__position_mean/binned_accuracy/high_norm/n",
    "random_partition/mid__position_mean/axis_accuracy/corner/ci_high",
    "random_weights/mid__position_mean/binned_accuracy/high_norm/seeds",
    "shuffled_labels/mid__position_mean/binned_accuracy/corner/ci_low",
    "test/mid/r2/all",
    "val/mid/axis_accuracy/all",
    "choice/mid/binned_accuracy/all/ci_low",
    "rotated/mid/binned_accuracy/all/ci_high",
    "other_noise/mid/binned_accuracy/all/ci_high",
    "test/mid/flip_attribution/all",
    "test/down_0_res_0/similarity_reprcropped_published/interior/n",
    "random_weights/conv_in/norm_icc/all/seeds",
    "gain_over_none/down_0_res_0__position_mean/relative_norm/high_norm/ci_high",
    "random_weights/conv_in__position_mean/cropped_similarity_centred/border_interior/seeds",
    "test/conv_in/similarity/corner_content",
    "test/conv_in/high_norm_parity/even_odd",
    "constant/up_0__position_mean/rmse_per_image/interior/ci_high",
    "position_only/up_0/delta1/all",
    "val/up_0/loss/all",
    "val/mid__position_mean/ridge_level/all",
    "test/mid/content_r2/corner/ci_high",
    "chance/mid/content_r2/high_norm",
    "gain_over_random_weights/up_1/pck_ours_point_0.10/displacement_middle/ci_high",
    "gain_over_same_position/up_1/pck_ours_point_0.10/all",
    "gain_over_zero_shot/up_1/pck_ours_point_0.10/edge_near",
    "random_point/baseline/pck_ours_img_point_0.01/all/ci_high",
    "random_weights_zero_shot/up_1__position_mean/attraction/border/seeds",
    "same_position/baseline/pck_geoaware_image_0.15/all/n",
    "zero_shot/up_1/pck_dift_point_0.10/all",
    "test/up_1/harm_random/corner",
    "test/mid__position_mean__leace/reemergence/up_1/ci_low",
    "ceiling/mid/loss_change/band_8/n",
    "random_energy/mid__leace/ceiling_share/all/ci_high",
    "shuffled_position/mid/displacement/all",
]
word = st.lists(st.text("ta1.", min_size=1, max_size=3), min_size=1, max_size=2).map("_".join)
label = st.lists(word, min_size=1, max_size=2).map("__".join).filter(is_label)


@settings(max_examples=60)
@given(word, word, st.none() | st.integers(0, 999), st.just("") | label, word, word, st.sampled_from(["", *STATISTICS]))
def test_a_printed_key_is_parsed_to_itself(
    condition: str, layer: str, timestep: int | None, mitigation: str, metric: str, where: str, statistic: str
) -> None:
    key = Key(condition, variant(layer, mitigation, timestep), metric, where, statistic)
    assert Key.parse(str(key)) == key
    own = Key("", "", metric, where, statistic)
    assert Key.parse(str(own)) == own and own.quantity == key.quantity
    assert qualified(condition, key.layer, {str(own): 0.0}) == {str(key): 0.0}


@settings(max_examples=60)
@given(word, st.none() | st.integers(0, 999), st.just("") | label)
def test_a_variant_keeps_its_parts(layer: str, timestep: int | None, mitigation: str) -> None:
    name = variant(layer, mitigation, timestep)
    assert (base_of(name), timestep_of(name), label_of(name)) == (layer, timestep, mitigation)


@pytest.mark.parametrize("text", WRITTEN)
def test_keys_that_runs_write_are_printed_as_they_were(text: str) -> None:
    assert str(Key.parse(text)) == text and Key.parse(text).layer


def test_every_condition_is_written_and_documented() -> None:
    written = {Key.parse(text).condition for text in WRITTEN}
    [row] = re.findall(r"^\| `<condition>` \|(.*)\|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    assert written == set(re.findall(r"`(\w+)`", row)) == set(CONDITIONS)
    assert len(set(CONDITIONS)) == len(CONDITIONS)


@pytest.mark.parametrize(
    "text", ["", "rmse", "test/mid/rmse", "/mid/rmse/all", "//rmse/all", "test/mid/rmse/all/", "a/b/c/d/low", "a/b/c/d/e/n"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"Expected a key of metrics.json .*, but got '{text}'"):
        Key.parse(text)


def test_selected_numbers_have_every_part_asked_for() -> None:
    numbers = {text: k for k, text in enumerate(WRITTEN)}
    for statistic in ("", *STATISTICS):
        found = select(numbers, condition="test", statistic=statistic)
        slow = [text for text in numbers if text.startswith("test/") and text.split("/")[4:] == [statistic] * bool(statistic)]
        assert list(found) == slow and all(numbers[text] == value for text, value in found.items())
    assert select(numbers) == numbers


def test_groups_are_listed_once_and_nobody_else_knows_how_variants_are_spelt() -> None:
    assert (*PARTITION, "high_norm") == GROUPS and set(MASKED) < set(GROUPS)
    for file in library():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                listed = {value.value for value in node.elts if isinstance(value, ast.Constant)}
                assert not listed >= set(PARTITION) and listed != set(MASKED), f"{file}:{node.lineno}"
            if isinstance(node, ast.JoinedStr):
                spelt = [part.value for part in node.values if isinstance(part, ast.Constant)]
                assert not any("__" in (str(text)[:2], str(text)[-2:]) for text in spelt), f"{file}:{node.lineno}"
            assert not (isinstance(node, ast.Constant) and node.value == "__"), f"{file}:{node.lineno}"


def library() -> Iterator[Path]:
    """Every module but the grammar's own."""
    for room in LEVELS:
        yield from (file for file in (ROOT / room.replace(".", "/")).rglob("*.py") if file.name != "keys.py")


@given(st.sampled_from(WRITTEN), st.sampled_from([0, 50, 261]))
def test_a_level_has_the_names_of_a_run_at_this_level(text: str, timestep: int) -> None:
    key = Key.parse(text)
    several = str(replace(key, layer=variant(base_of(key.layer), label_of(key.layer), timestep)))
    assert at_level(several, timestep) == text and at_level(several, 100) is None
    assert at_level(text, timestep) == text, "a baseline without a network is of every level"
