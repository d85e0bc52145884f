"""What the user can mend becomes one sentence; everything else is a defect and keeps its traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from runs import command
from tokens.errors import InputError

# a full, protected or read-only place to write to
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(CompactHydraException):
    """A sentence for the user; Hydra prints it without a traceback and exits with 1."""


@contextmanager
def sentences() -> Iterator[None]:
    """Raise :class:`UserError` for wrong input, wrong configuration and places that cannot be written to."""
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from error
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    except OmegaConfBaseException as error:
        raise UserError(command.explained(error)) from None  # Hydra would print the cause too
    except OSError as error:
        if error.errno not in WRITING:
            raise
        where = error.filename or "the run folder"
        raise UserError(
            f"Expected to write to {where}, but got '{error.strerror}'. Free some space, or set hydra.run.dir and cache_dir."
        ) from error
