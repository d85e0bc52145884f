"""Variant: a chain of mitigations for every layer, and the grids it is applied to. Data path step 6."""

from collections.abc import MutableMapping, Sequence
from typing import Any

from datamodules.stream import ActivationStream
from sdprobe.mitigations.base import Chain, Configured, Extraction, Mitigation
from sdprobe.mitigations.saved import Saved
from sdprobe.tokens.batch import GridBatch, joined
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.keys import variant
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError


class Variant:
    """A chain of mitigations for every layer; ``label`` is empty if the chain replaces the layers."""

    def __init__(self, label: str, steps: Sequence[Configured]) -> None:
        self.label = label
        self.extraction = steps[0] if steps and isinstance(steps[0], Extraction) else None
        self.mitigations = [step for step in steps if isinstance(step, Mitigation)]
        self.saved = next((step for step in steps if isinstance(step, Saved)), None)
        self.fitted: dict[str, Chain] = {}
        self.fitted_on: dict[str, Any] = {}
        for step in steps[1:] if self.extraction else steps:
            if isinstance(step, Extraction):
                raise InputError(
                    f"Expected {type(step).__name__} to come first, since it changes the pass that others work on, but got "
                    f"{' then '.join(type(each).__name__ for each in steps)}. Put it first, and only one of its kind."
                )
            if not isinstance(step, Mitigation | Saved):
                raise InputError(f"Expected mitigations, but got {type(step).__name__}. Choose one of configs/mitigation.")
        if self.saved and len(steps) > 1:
            raise InputError("Expected mitigation=saved alone, but got it in a list. Fit the others anew instead.")

    def name(self, layer: str) -> str:
        """Return the name of the layer with this chain applied."""
        return variant(layer, self.label)

    def describe(self, size: int) -> dict[str, Any]:
        """Return names and options of the steps, cost per image in passes of the plain image, and descriptions of the fits, by
        layer."""
        views = self.extraction.passes(size) if self.extraction else (View(),)
        steps = [step for step in (self.extraction, *self.mitigations, self.saved) if step]
        return {
            "steps": [type(step).__name__ for step in steps],
            "options": [dict(step.options) for step in steps],
            "passes": sum(((size + 2 * view.margin) / size) ** 2 for view in views),
            "fits": {layer: [fit.describe() for fit in chain.maps] for layer, chain in self.fitted.items()},
        }

    def needs_fit(self) -> bool:
        """Return whether any of its mitigations needs fit images."""
        return any(mitigation.fit_images != 0 for mitigation in self.mitigations)


def extract(
    extraction: Extraction | None,
    stream: ActivationStream,
    indices: Sequence[int],
    known: MutableMapping[View, GridBatch] | None = None,
) -> GridBatch:
    """Grids of these images, merged from the passes of an extraction, with the token groups of the merged grids.

    ``known`` holds the passes that these images have taken already; the plain one is added.
    """
    known = {} if known is None else known
    if extraction is None:
        known[View()] = joined(list(stream(indices)))
        return known[View()]
    size = stream.store.images.size
    views = extraction.passes(size)
    passes = [known[view] if view in known else joined(list(stream.viewed(view)(indices))) for view in views]
    grids = {layer: extraction.merge([each.grids[layer] for each in passes], size) for layer in stream.reads.names}
    masks = {layer: token_groups(grid) for layer, grid in grids.items()}
    return GridBatch(grids, masks, passes[0].image, passes[0].photo)
