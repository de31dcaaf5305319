"""The command line with fakes, on a machine whose clock is so many seconds off."""

import os
import time

import fakes

from crm_cli.cli.app import main

if __name__ == "__main__":
    right, right_ns, skew_s = time.time, time.time_ns, float(os.environ["SKEWED_S"])
    time.time = lambda: right() + skew_s
    time.time_ns = lambda: right_ns() + int(skew_s * 1e9)
    main(fakes.engine())
