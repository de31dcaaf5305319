"""How honest the forecast is: one guided step of a published denoiser, as foreseen and as it is.

    python tests/bench_forecast.py [--precision float32] [--threads 2] [--stage rgb] [--repeat 2]

Needs 4 GB of memory in float32, half of it in the other precisions; the weights are random.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch

from crm_cli.models.cost import measure_pace, processor_s
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.operations import LATENT_SIDE, PATCHES, PROMPT_TOKENS, SIZES, decode, denoiser_step
from crm_cli.models.vae import Vae


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    dtype = getattr(torch, options.precision)
    sizes = SIZES["release"]
    config = sizes.rgb if options.stage == "rgb" else sizes.ccm
    clock = processor_s if options.processor else time.perf_counter
    began = time.perf_counter()
    pace = measure_pace(sizes, device="cpu", dtype=dtype)
    measured_s = time.perf_counter() - began
    speeds = ", ".join(f"{side}: {speed / 1e9:.0f}" for side, speed in pace.by_side.items())
    _say(f"GFLOP/s by side {speeds}; found in {measured_s:.1f} s")
    step = Counter({side: 2 * count for side, count in denoiser_step(config).items()})
    _compare("guided step", pace.seconds(step), _guided_step(config, dtype), options.repeat, clock)
    # macOS counts bytes, Linux kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    _say(f"peak memory {peak_gb:.2f} GB")
    picture = decode(sizes.vae)
    vae = _filled(lambda: Vae(sizes.vae), dtype)
    latent = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE, dtype=dtype)
    _compare("decoding a view", pace.seconds(picture), lambda: vae.decode(latent), options.repeat, clock)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the forecast with the work.")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stage", default="rgb", choices=("rgb", "ccm"))
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="for a machine that does other work as well")
    return parser.parse_args()


def _guided_step(config, dtype: torch.dtype) -> Callable[[], object]:
    network = _filled(lambda: MultiViewUNet(config), dtype)
    shape = (2, config.frames, config.channels_in, LATENT_SIDE, LATENT_SIDE)
    beside = (2, config.frames, config.concat_channels, LATENT_SIDE, LATENT_SIDE)
    with torch.inference_mode():
        conditions = network.prepare(
            text=torch.randn(2, PROMPT_TOKENS, config.context_width, dtype=dtype),
            image=torch.randn(2, PATCHES + 1, config.image_width, dtype=dtype),
            concat=torch.randn(beside, dtype=dtype) if config.concat_channels else None,
            reference=torch.randn(2, *shape[2:], dtype=dtype) if config.has_reference else None,
        )
    x, t = torch.randn(shape, dtype=dtype), torch.full((2,), 500)
    return lambda: network(x, t, conditions)


def _filled(build: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
    """A network with small random numbers everywhere: zeros are quicker than weights are."""
    with torch.device("meta"):
        network = build().to(dtype)
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.uniform_(-0.03, 0.03)
    return network


@torch.inference_mode()
def _compare(
    what: str, foreseen_s: float, work: Callable[[], object], repeat: int, clock: Callable[[], float]
) -> None:
    for _ in range(repeat):
        began = clock()
        work()
        spent_s = clock() - began
        ratio = spent_s / foreseen_s
        _say(f"{what}: foreseen {foreseen_s:.2f} s, took {spent_s:.2f} s, ratio {ratio:.2f}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
