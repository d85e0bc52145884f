"""Runs: command line, run folder, record, tracking."""

import os

# before torch is imported: waiting threads sleep instead of spinning, which would slow two runs on one machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
