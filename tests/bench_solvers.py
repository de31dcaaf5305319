"""How near few steps come to where a guided flow leads: `python tests/bench_solvers.py`.

The data are known, so that the denoiser's answers and the flow are exact; the schedule is the published one.
A trained network is less kind: this ranks solvers, it does not promise pictures.
"""

import sys

from exact_flow import OBJECTS, TOY, errors, guidance_ends, unit_noise

SOLVERS = [
    ("ddim", 50), ("ddim", 25), ("ddim", 20), ("ddim", 10),
    ("unipc", 50), ("unipc", 25), ("unipc", 20), ("unipc", 15), ("unipc", 10), ("unipc", 8), ("unipc", 5),
]  # fmt: skip

SHARES = (1.0, 0.9, 0.75, 0.6, 0.5, 0.25)


def out(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    noise = unit_noise(OBJECTS, 16, seed=7)
    exact = TOY.converged(noise)
    out(f"distance to the exact flow, guided by {TOY.scale:g}, of {OBJECTS} objects")
    out(f"{'solver':>8} {'steps':>6} {'median':>9} {'p90':>9}")
    for solver, steps in SOLVERS:
        error = errors(TOY.sample(noise, solver, steps), exact)
        out(f"{solver:>8} {steps:6} {error.median():9.5f} {error.quantile(0.9):9.5f}")
    out("\nunipc in 20 steps, guided in the first share of them")
    out(f"{'share':>8} {'to its own flow, p90':>24} {'its flow to the guided one, p90':>34}")
    for share in SHARES:
        own = exact if share == 1 else TOY.converged(noise, until=guidance_ends("unipc", 20, share))
        error = errors(TOY.sample(noise, "unipc", 20, share), own)
        out(f"{share:8} {error.quantile(0.9):24.5f} {errors(own, exact).quantile(0.9):34.5f}")


if __name__ == "__main__":
    main()
