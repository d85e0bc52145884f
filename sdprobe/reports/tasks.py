"""What runs of a probe are compared by, and which of its metrics a tracker draws over layers. Imports no drawing library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """The metric by which runs are compared, and the criterion that selects a layer: its highest number, or its lowest.

    ``name`` is part of figure names; probes of the same name share figures. ``scale`` turns a share into percent.
    """

    name: str
    metric: str
    label: str
    criterion: str
    highest: bool = True
    scale: float = 1.0


MAIN_PCK = "pck_ours_point_0.10"
POSITION = Task("position", "binned_accuracy", "position accuracy, 8 bins", "highest position accuracy")
TASKS = {
    "position": POSITION,
    "study": POSITION,
    "statistics": Task("statistics", "credibility", "credibility", "highest credibility (descriptive)"),
    "correspondence": Task("correspondence", MAIN_PCK, "PCK@0.10, %", "highest PCK", scale=100.0),
    "depth": Task("depth", "rmse", "depth RMSE", "lowest depth RMSE", highest=False),
    "content": Task("content", "content_r2", "content R²", "highest content R²"),
    "equivariance": Task("equivariance", "equivariance", "shift equivariance", "highest shift equivariance"),
    "controls": POSITION,
}
ACCURACIES = ("binned_accuracy", "axis_accuracy", "cell_accuracy")
# probe → metrics over layers, the main one first
TRACKED = {
    "position": ACCURACIES,
    "controls": ACCURACIES,
    "study": (*ACCURACIES, "r_tok"),
    "statistics": ("credibility", "r_pos", "r_cor", "r_norm", "r_tok", "r_chn"),
    "correspondence": (MAIN_PCK, "copy_excess", "attraction"),
    "depth": ("rmse", "abs_rel", "delta1"),
    "content": ("content_r2",),
    "role": ("loss_change", "displacement"),
    "equivariance": ("equivariance", "equivariance_psnr", "r_pos"),
    "explore": ("similarity_error",),
}
# errors and risks, of which the lowest is best; of other metrics it is the highest
LOWER = (
    "rmse", "rmse_per_image", "abs_rel", "r_pos", "r_cor", "r_cor_within", "r_cor_across", "r_norm", "r_tok", "r_chn",
    "copy_share", "copy_excess", "similarity_error",
)  # fmt: skip


def tracked_of(kind: str) -> tuple[str, ...]:
    """Metrics over layers; an unknown probe has those of ``position``."""
    return TRACKED.get(kind, ACCURACIES)


def main_task(kind: str) -> Task:
    """What runs of a probe are compared by, also where no report compares them: the first metric over layers."""
    first = tracked_of(kind)[0]
    return TASKS.get(kind) or Task(kind, first, first, f"highest {first}")
