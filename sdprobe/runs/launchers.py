"""Jobs of a sweep in other processes: a job whose process dies is started once more, and named if that dies, too.

With ``hydra/launcher=ray`` (:func:`on_actors`) every Ray actor runs one job after another, so that its jobs share networks, see
:mod:`sdprobe.backbones.pool`. :func:`start_again` gives the launchers of submitit the same second try.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from sdprobe.runs import cli
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown

TRIES = 2
MOST = 64  # workers that are asked for at once; some may wait for a device


class Died(Exception):
    """The process of a worker ended before its job did."""


class Workers(Protocol):
    """Processes that run jobs, and handles of what they do."""

    def start(self) -> Any:
        """Return a new worker."""

    def ready(self, worker: Any) -> Any:
        """Return a handle that is done when the worker can take a job."""

    def run(self, worker: Any, job: Any) -> Any:
        """Return a handle that is done when the job has ended."""

    def first(self, handles: Sequence[Any]) -> Any:
        """Wait for the first handle that is done."""

    def result(self, handle: Any) -> Any:
        """Return what the job returned. Raises Died if its process ended before."""

    def stop(self, worker: Any) -> None:
        """End a worker."""


def hand_out(jobs: Sequence[Any], workers: Workers, say: Callable[[int, bool], None]) -> list[Any]:
    """Run jobs on workers, each of which runs one after another. A job whose worker dies is run by another one, once.

    Args:
        jobs: what :meth:`Workers.run` takes.
        workers: where the jobs run.
        say: gets the position of a job whose worker died, and whether the job is started again.

    Returns:
        what the jobs returned; None for a job whose worker died twice.

    Raises:
        Died: as many workers in a row as there are tries died before they could take a job, and no other one has or had a job.
    """
    waiting, tries, results = deque(range(len(jobs))), Counter[int](), dict[int, Any]()
    unready, ever = 0, False
    busy: dict[Any, tuple[Any, int | None]] = {}

    def begin() -> None:
        worker = workers.start()
        busy[workers.ready(worker)] = worker, None

    for _ in range(min(len(jobs), MOST)):
        begin()
    while len(results) < len(jobs):
        handle = workers.first(list(busy))
        worker, job = busy.pop(handle)
        try:
            result = workers.result(handle)
        except Died:
            if job is None:
                unready += 1
                if unready >= TRIES and not (ever and busy):
                    raise
            else:
                again = tries[job] < TRIES
                say(job, again)
                if again:
                    waiting.appendleft(job)
                else:
                    results[job] = None
            if waiting and (unready < TRIES or not busy):
                begin()
            continue
        unready, ever = 0, True
        if job is not None:
            results[job] = result
        if waiting:
            job = waiting.popleft()
            tries[job] += 1
            busy[workers.run(worker, jobs[job])] = worker, job
        else:
            workers.stop(worker)
    for worker, _ in busy.values():
        workers.stop(worker)
    return [results[job] for job in range(len(jobs))]


def name(job_overrides: Sequence[Sequence[str]], first: int, position: int) -> str:
    """A job in words, with the overrides that others do not have.

    Args:
        job_overrides: those of all jobs that are started together.
        first: number of the first of them.
        position: of the job among them.

    >>> name([["probe=depth", "seed=0"], ["probe=depth", "seed=1"]], 4, 1)
    'job 6 (seed=1)'
    """
    common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
    words = " ".join(text for text in filter_overrides(job_overrides[position]) if text not in common)
    return f"job {first + position + 1}{f' ({words})' if words else ''}"


def say_died(job: str, again: bool) -> None:
    """Say that the process of a job died, and whether the job is started again."""
    what = "It is started once more." if again else "It died before, too, so the sweep goes on without it."
    cli.say(f"The process of {job} died. {what}")


def lost() -> JobReturn:
    """What a launcher returns for a job without a result: at an exception Hydra would end the sweep without its table."""
    return JobReturn(status=JobStatus.COMPLETED, _return_value=None)


# --- Ray ---------------------------------------------------------------------------------------------------------------


def on_actors(
    settings: DictConfig,
    context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Run jobs on Ray actors, and wait for all of them.

    Args:
        settings: ``init`` (arguments of ``ray.init``) and ``remote`` (what an actor needs, such as ``num_gpus``).
        context: Hydra's.
        task_function: runs one job.
        config: of the sweep.
        job_overrides: of every job.
        first: number of the first job.

    Returns:
        what the jobs returned.

    Raises:
        InputError: no cluster at the address, more devices than this machine has, or workers that cannot start.
    """
    import ray

    setup_globals()
    if not ray.is_initialized():
        try:
            ray.init(**_plain(settings.init))
        except Exception as error:  # Ray has no class for most of them
            raise InputError(
                f"Expected Ray to start or to be reached, but got '{_first_line(error)}'. Correct hydra.launcher.ray.init, "
                "or try again when the machine is less busy."
            ) from error
    if settings.init.address is None:
        _check_resources(ray.cluster_resources(), _plain(settings.remote))
    configs = []
    for number, overrides in enumerate(job_overrides, first):
        job = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        configs.append(job)
    actor = ray.remote(**_plain(settings.remote))(_Worker)
    workers = _Actors(ray, partial(actor.remote, context, task_function, Singleton.get_state()))
    names = [name(job_overrides, first, position) for position in range(len(configs))]
    try:
        results = hand_out(configs, workers, lambda job, again: say_died(names[job], again))
    except Died as error:
        raise InputError(
            f"Expected Ray to start workers, but {TRIES} in a row ended before their first job ({_first_line(error)}). "
            "Free some memory, or see Ray's logs."
        ) from error
    return [result or lost() for result in results]


def _check_resources(there: Mapping[str, float], asked: Mapping[str, Any]) -> None:
    """Refuse a job that asks for more than this machine has: Ray would wait for ever.

    Raises:
        InputError: it does.
    """
    for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        most, wanted = there.get(resource, 0), asked.get(name) or 0
        if wanted > most:
            raise InputError(
                f"Expected hydra.launcher.ray.remote.{name} to be at most {most:g}, what this machine has, but got {wanted:g}. "
                "Lower it."
            )


def _first_line(error: BaseException) -> str:
    return shown(next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip("."))


class _Worker:
    """Runs jobs, in the process of an actor."""

    def __init__(self, context: HydraContext, task_function: TaskFunction, state: Any) -> None:
        setup_globals()
        Singleton.set_state(state)
        self.context, self.task_function = context, task_function

    def ready(self) -> None:
        """Return as soon as the actor exists."""

    def run(self, config: DictConfig) -> JobReturn:
        """Run one job, as Hydra's own launcher does."""
        return run_job(
            hydra_context=self.context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class _Actors:
    """:class:`Workers` of Ray."""

    def __init__(self, ray: Any, start: Callable[[], Any]) -> None:
        self.ray, self.start = ray, start

    def ready(self, worker: Any) -> Any:
        return worker.ready.remote()

    def run(self, worker: Any, job: DictConfig) -> Any:
        return worker.run.remote(job)

    def first(self, handles: Sequence[Any]) -> Any:
        [done], _ = self.ray.wait(list(handles), num_returns=1)
        return done

    def result(self, handle: Any) -> Any:
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError:  # raised by the job's own code
            raise
        except self.ray.exceptions.RayError as error:  # of its process, its memory or its computer
            raise Died(str(error)) from error

    def stop(self, worker: Any) -> None:
        self.ray.kill(worker)


def _plain(node: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in (OmegaConf.to_container(node, resolve=True) or {}).items()}  # type: ignore[union-attr]


# --- submitit ----------------------------------------------------------------------------------------------------------


class Again:
    """A job of submitit that is submitted once more if its process dies. One that a user has cancelled is not.

    Args:
        job: the submitted job.
        submit: submits it again.
        words: the job in words.
    """

    def __init__(self, job: Any, submit: Callable[[], Any], words: str) -> None:
        self.job, self.submit, self.words = job, submit, words

    def results(self) -> list[Any]:
        """Wait for the job. Returns what its processes returned."""
        for number in range(1, TRIES + 1):
            try:
                return list(self.job.results())
            except Exception:  # of its process: a job writes its own errors down and returns
                if str(self.job.state).startswith("CANCELLED"):
                    cli.say(f"{self.words.capitalize()} was cancelled. The sweep goes on without it.")
                    break
                say_died(self.words, number < TRIES)
                if number < TRIES:
                    self.job = self.submit()
        return [lost()]


def start_again(executor: type) -> None:
    """Let a class of submitit's executors submit a job of an array once more if its process dies.

    Args:
        executor: has ``map_array`` and ``submit``; Hydra's launcher maps itself over overrides, key of the folder, number...
    """
    if "_sdprobe" in vars(executor):
        return
    executor._sdprobe = True  # type: ignore[attr-defined]
    map_array = executor.map_array  # type: ignore[attr-defined]

    def mapped(self: Any, function: Any, *columns: Sequence[Any]) -> list[Again]:
        rows = list(zip(*columns, strict=True))
        names = [name([row[0] for row in rows], rows[0][2], position) for position in range(len(rows))]
        jobs = map_array(self, function, *columns)
        again = [partial(self.submit, function, *row) for row in rows]
        return [Again(*each) for each in zip(jobs, again, names, strict=True)]

    executor.map_array = mapped  # type: ignore[attr-defined]
