"""``images=scene_depth``: the scenes of ``images=scenes`` with the depth of every pixel."""

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.images.scenes import Scenes


class SceneDepth(Scenes):
    """:class:`Scenes`, pixel for pixel, so that both share one cache of latents."""

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Depth in scene units, smaller is nearer: objects within (0, 7), background within [8, 10]."""
        return torch.from_numpy(self.scene(index).depth)

    def depth_key(self, index: int) -> str:
        """Version, seed and index decide depth as they decide pixels."""
        return self.content_key(index)
