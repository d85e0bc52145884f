"""A head keeps its best state, stops by itself, and belongs to what it was fitted on once it is saved."""

from pathlib import Path

import pytest
import torch

from sdprobe.estimators.heads import Head, LayerHead, load, save
from sdprobe.utilities.errors import InputError


def set_to(head: LayerHead, value: float) -> None:
    head.weight.data.fill_(value)
    head.bias.data.fill_(value)


def test_the_best_state_comes_back() -> None:
    head = LayerHead(3, 4, 2, "key")
    for value, losses in ((1.0, [5.0, 5.0]), (2.0, [4.0, 6.0]), (3.0, [4.5, 4.0])):
        set_to(head, value)
        head.update_best(torch.tensor(losses), torch.zeros(len(head.bias)), patience=5, min_steps=0)
    head.restore_best()
    assert head.weight[0].unique().tolist() == [2.0]
    assert head.weight[1].unique().tolist() == [3.0]


def test_a_finished_variant_ignores_later_luck() -> None:
    head = LayerHead(3, 4, 1, "key")
    for value, loss in ((1.0, 5.0), (2.0, 6.0), (3.0, 6.0), (4.0, 1.0)):
        set_to(head, value)
        head.update_best(torch.tensor([loss]), torch.zeros(len(head.bias)), patience=2, min_steps=0)
    assert head.finished(patience=2, min_steps=0)
    head.restore_best()
    assert head.bias.unique().tolist() == [1.0]


def test_nothing_stops_before_it_may() -> None:
    head = LayerHead(3, 4, 1, "key")
    for value, loss in ((1.0, 5.0), (2.0, 6.0), (3.0, 6.0), (4.0, 1.0)):
        set_to(head, value)
        head.update_best(torch.tensor([loss]), torch.zeros(len(head.bias)), patience=2, min_steps=1)
    head.restore_best()
    assert head.bias.unique().tolist() == [4.0]


def test_a_head_that_was_never_judged_stays_as_trained() -> None:
    head = LayerHead(3, 4, 1, "key")
    set_to(head, 7.0)
    head.restore_best()
    assert head.weight.unique().tolist() == [7.0]


def test_the_best_state_travels_in_the_checkpoint() -> None:
    head, other = LayerHead(3, 4, 1, "key"), LayerHead(3, 4, 1, "other")
    head.update_best(torch.tensor([1.0]), torch.zeros(len(head.bias)), patience=2, min_steps=0)
    other.load_state_dict(head.state_dict())
    set_to(other, 9.0)
    other.restore_best()
    assert torch.equal(other.weight, head.weight)


def test_initialisation_is_keyed() -> None:
    assert torch.equal(LayerHead(3, 4, 2, 0, "mid").weight, LayerHead(3, 4, 2, 0, "mid").weight)
    assert not torch.equal(LayerHead(3, 4, 2, 0, "mid").weight, LayerHead(3, 4, 2, 0, "up_0").weight)


def test_bfloat16_tokens_give_float32_outputs() -> None:
    assert LayerHead(3, 4, 2, "key")(torch.randn(5, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_head_is_refused_where_it_does_not_belong(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(16, 6), "bias": torch.zeros(16)}
    fitted = {layer: Head(layer, "position", (6, 8, 8), tensors) for layer in ("mid", "up_1")}
    save(tmp_path / "heads", fitted, timestep=50, size=512, unet_hash="a" * 64, model="one")
    head = load(tmp_path, timestep=50, size=512, device="cuda")["mid"]
    assert not head(torch.zeros(1, 6, 8, 8)).any()
    with pytest.raises(
        InputError, match=r"activations of mid of shape \(B, 6, 8, 8\), as .* but got \(1, 6, 16, 16\)\. Use the"
    ):
        head(torch.zeros(1, 6, 16, 16))
    with pytest.raises(InputError, match=r"a layer with a head in .*heads, mid, up_1, but got 'up_2'\. Use one of these\."):
        load(tmp_path)["up_2"]
    for name, value in {"timestep": 261, "size": 768}.items():
        with pytest.raises(
            InputError, match=f"the set of heads in .* to be used with {name} .*, which .*, but got {value}. Fit"
        ):
            load(tmp_path, **{name: value})
    with pytest.raises(
        InputError, match=r"unet_hash aaaaaaaaaaaa… \(one\), which it was fitted on, but got bbbbbbbbbbbb…\. Fit"
    ):
        load(tmp_path, unet_hash="b" * 64)
    with pytest.raises(InputError, match=r"to hold heads\.json and heads\.safetensors, but it does not\. Give the folder of a"):
        load(tmp_path / "nowhere")
    (tmp_path / "heads" / "heads.json").write_text("{}")
    with pytest.raises(InputError, match=r"Expected an intact set of heads in .*Fit it again"):
        load(tmp_path)
