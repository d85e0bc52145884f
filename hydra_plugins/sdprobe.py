"""The launcher of hydra/launcher=ray. Hydra finds launchers in this package only, and imports all of it at every start."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RayWorkers(Launcher):
    """Jobs on Ray actors, see :func:`sdprobe.runs.launchers.on_actors`.

    Args:
        ray: ``init`` (arguments of ``ray.init``) and ``remote`` (what an actor needs, such as ``num_gpus``).
    """

    def __init__(self, ray: DictConfig) -> None:
        self.ray = ray

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what :meth:`launch` needs."""
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for all of them. Errors that a user can fix end the process with a sentence."""
        from sdprobe.runs.cli import ended_by_a_sentence
        from sdprobe.runs.launchers import on_actors

        with ended_by_a_sentence():
            return on_actors(self.ray, self.context, self.task_function, self.config, job_overrides, initial_job_idx)
