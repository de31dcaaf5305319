"""Settings that every test and every process it starts share."""

import os

# Before torch is imported anywhere: on a busy machine, threads that spin while they wait for each other
# triple the time of everything.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
