"""Keeps a terminal readable: what libraries say about themselves is left out, what concerns the user is not."""

import logging
import warnings

# notes of libraries on their own internals, met on every run
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*`LightningModule.configure_optimizers` returned `None`",
    r"It is recommended to use `self\.log\(.*sync_dist=True\)`",  # what is logged is a sum over processes already
    r"`broadcast_buffers` is deprecated",
    r"The ``compute`` method of metric \w+ was called before the ``update``",  # a process without test images
    r"You are using `torch.load` with `weights_only=False`",
    r".*does not have many workers",
    r"Total length of `\w+` across ranks is zero",
    r"\n'hydra/launcher/\w+' is validated against ConfigStore schema",  # ours name every setting themselves
    r"The number of training batches .* is smaller than the logging interval",
)


def quiet() -> None:
    """Raise the level of chatty loggers and filter the warnings above."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
        "lightning.pytorch.accelerators.cuda",
        "httpx",
        "diffusers",
    ):
        logging.getLogger(name).setLevel(logging.ERROR if name == "diffusers" else logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
