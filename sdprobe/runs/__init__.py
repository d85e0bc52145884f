"""One run: its command line, its folder, its record, its tracking."""

import os

# before torch is imported: threads that wait for work sleep instead of spinning, or two runs on one machine starve each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
