"""Image files → batches on the accelerator."""

import sdprobe  # noqa: F401  # quiets libraries before lightning imports them
