"""Correspondence of the tokens of one layer: keypoints are matched in a target picture, and matches become numbers."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Shaped
from torch import Tensor

from sdprobe.estimators.matching import best, random_mask, refined, upsampled_argmax
from sdprobe.metrics.correspondence import Correspondence, Units
from sdprobe.metrics.matches import Matches
from sdprobe.metrics.pck import PROTOCOLS
from sdprobe.tokens.batch import Keypoints, MatchBatch
from sdprobe.tokens.geometry import tokens_at
from sdprobe.tokens.keys import MASKED, OVER_NONE, Key, base_of, label_of, qualified, unmitigated


def add(
    matches: Matches,
    layer: str,
    batch: MatchBatch,
    similarities: Mapping[str, Float[Tensor, "n p"]],
    points: Keypoints,
    seed: int,
) -> None:
    """Match the keypoints of one target picture in one layer, with all tokens and without those of each group.

    Args:
        matches: receives the matches.
        layer: its name; variants are not refined, since they are evaluated by one protocol.
        batch: the target picture, and which keypoints are sought in it.
        similarities: condition → similarity of every sought keypoint's token with every target token.
        points: all keypoints.
        seed: of the random masks.
    """
    _, height, width = batch.target[layer].shape
    masks = batch.target_masks[layer]
    key = (seed, base_of(layer), int(points.target[batch.row[0]]))
    other = {group: random_mask(masks, group, *key, group) for group in MASKED}
    true = tokens_at(points.target_input[batch.row], points.size / height, height, width)
    matches.update(
        batch.row,
        {condition: best(similarity) for condition, similarity in similarities.items()},
        {
            condition: {group: best(similarity, masks[group].flatten()) for group in MASKED}
            for condition, similarity in similarities.items()
        },
        {
            condition: {group: best(similarity, other[group]) for group in MASKED}
            for condition, similarity in similarities.items()
        },
        true[:, 0] * width + true[:, 1],
        batch.source_masks[layer],
        masks,
        other,
    )
    if not label_of(layer):
        matches.put_refined(
            batch.row, {condition: refined(similarity, width) for condition, similarity in similarities.items()}
        )


def add_pixels(matches: Matches, layer: str, batch: MatchBatch, points: Keypoints) -> None:
    """Match the keypoints of one target picture as DIFT does, on grids enlarged to the size of the picture."""
    first = int(batch.row[0])
    width, height = (int(side) for side in points.target_size[first].tolist())
    placement = points.target_placement(first)
    pixels = upsampled_argmax(batch.sampled[layer], batch.target[layer], placement, width, height, points.size)
    matches.put_pixels(batch.row, pixels)


def reported(reports: Correspondence, measures: Mapping[str, Matches], raw: str) -> tuple[dict[str, float], Units]:
    """Numbers and pseudo-values of all layers under their full keys, with baselines and paired gains.

    Args:
        reports: what is reported of matches.
        measures: layer → its matches.
        raw: the condition that matches raw tokens.
    """
    results: dict[str, float] = {}
    units: Units = {}
    for name, values in reports.baselines().items():
        results |= qualified(name, "baseline", values)
    for layer, matches in measures.items():
        for condition in matches.conditions:
            own: Units = {}
            results |= qualified(condition, layer, _of_condition(layer, reports, matches, condition, raw, own))
            units |= qualified(condition, layer, own)
        gains: dict[str, Shaped[Tensor, " n"]] = {"gain_over_same_position": reports.same_position()}
        if raw != "test":
            gains["gain_over_zero_shot"] = reports.correct(matches, raw)
        if label_of(layer):
            gains[OVER_NONE] = reports.correct(measures[unmitigated(layer)], "test")
        for name, other in gains.items():
            results |= qualified(name, layer, reports.gain(reports.correct(matches, "test"), other))
    return results, units


def over_networks(
    reports: Correspondence,
    hits: Mapping[str, Shaped[Tensor, " n"]],
    networks: Sequence[Mapping[str, Shaped[Tensor, " n"]]],
) -> dict[str, float]:
    """``gain_over_random_weights/<layer>/…``: gain of the tested matching over the mean of networks with random weights.

    Args:
        reports: what is reported of matches.
        hits: layer → which keypoints are matched correctly, see :meth:`Correspondence.correct`.
        networks: the same of each network with random weights.
    """
    gains: dict[str, float] = {}
    for layer, correct in hits.items():
        own = correct.double()
        gained = reports.gain_over_seeds(own, [network[layer].to(own) for network in networks])
        gains |= qualified("gain_over_random_weights", layer, gained)
    return gains


def _of_condition(
    layer: str, reports: Correspondence, matches: Matches, condition: str, raw: str, units: Units
) -> dict[str, float]:
    if condition == "shuffled_labels":
        numbers = reports.pck(matches, condition, ("ours",))
        return {text: value for text, value in numbers.items() if Key.parse(text).metric.startswith("pck_ours_point")}
    if label_of(layer):  # variants are evaluated by one protocol
        return reports.pck(matches, condition, ("ours",), units) | reports.costs(matches, condition, units)
    protocols = tuple(name for name in PROTOCOLS if name != "dift" or condition == raw)
    return reports.pck(matches, condition, protocols, units) | reports.costs(matches, condition, units)
