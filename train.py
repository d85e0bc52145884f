"""The command: train and test a probe on frozen diffusion activations, ``python train.py probe=position block=mid``."""

from sdprobe.runs import interrupts

if __name__ == "__main__":
    interrupts.begin()  # before imports that take seconds

import hydra
from omegaconf import DictConfig

from sdprobe.runs import cli


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the configuration that Hydra composed; in a sweep, skip a job that is finished, or that another process runs."""
    from sdprobe.runs import checks, sweep
    from sdprobe.runs.run import run

    cli.silence_libraries()
    with cli.ended_by_a_sentence(), sweep.job(cfg) as free:
        if not free:
            return
        checks.fill_size(cfg)
        checks.fill_timestep(cfg)
        if sweep.finished(cfg):
            return
        sweep.begin(cfg)
        run(cfg)
        sweep.end(cfg)


if __name__ == "__main__":
    cli.start(main)
