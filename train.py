"""The command: train and test a probe on frozen diffusion activations, ``python train.py probe=position block=mid``."""

import logging
import sys

import hydra
from omegaconf import DictConfig

from sdprobe.runs import cli
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the configuration that Hydra composed; in a sweep, skip a job that is finished."""
    from sdprobe.runs import sweep
    from sdprobe.runs.run import run

    cli.silence_libraries()
    with sweep.recorded(cfg), cli.user_errors():
        if sweep.finished(cfg):
            log.info("%s is finished already; skipped.", cfg.run_dir)
            return
        sweep.begin(cfg)
        run(cfg)


if __name__ == "__main__":
    cli.silence_libraries()
    try:
        if cli.is_rank_zero():  # worker processes get the arguments of the first process
            sys.argv[1:] = cli.prepare(sys.argv[1:])
        main()
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        cli.say(cli.interrupted())
        sys.exit(130)
