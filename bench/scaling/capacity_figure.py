"""Draws docs/capacity.png: the misses, by cause, that the capacity formula predicts, and the misses
of simulated engines.

PYTHONPATH=bench uv run python -m scaling.capacity_figure
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from llmservice_operator.scaling.misses import misses
from scaling.hardware import SLO
from scaling.promise import promised_rate, seen_mix
from scaling.truth import measure, truth_of
from scaling.workloads import GATE_WORKLOADS, Workload

FIGURE = Path(__file__).parents[2] / "docs/capacity.png"
SHOWN = ("prefill-bursts", "azure", "reasoning", "small-gpu")
"""Workloads of the figure. In this order, they have short answers to long prompts, usual lengths,
long answers, and slow steps."""
POINTS = 12


def draw(workload: Workload, axes: Axes) -> None:
    """Draw the share of requests that miss the SLO, by cause, against the request rate."""
    hardware, truth = workload.hardware, truth_of(workload).capacity
    mix = seen_mix(workload, 0.5 * truth)
    promised = promised_rate(hardware, mix)
    rates = np.linspace(0.02, 1.25, 200) * truth
    shares = [misses(rate, mix, hardware.step, hardware.limits, SLO) for rate in rates]
    shown = [100 * it.share for it in shares]
    axes.plot(rates, shown, color="lightgray", linewidth=6, label="any cause, formula")
    for cause, style in (("itl", "-"), ("ttft", "--"), ("admission", "-.")):
        values = [100 * getattr(it, cause) for it in shares]
        axes.plot(rates, values, style, label=cause)
    traffic = workload.make(np.random.default_rng(1234))
    tried = np.linspace(0.2, 1.2, POINTS) * truth
    seen = [measure(workload, traffic, rate).attainment for rate in tried]
    axes.plot(
        tried, [100 * (1 - it) for it in seen], "o", color="black", label="any cause, simulated"
    )
    axes.axhline(100 * (1 - SLO.objective), color="black", linewidth=0.6)
    axes.axvline(promised, color="black", linewidth=0.6, label=f"capacity: {promised:.1f}")
    axes.set_title(f"{workload.name}: {mix.prompts.mean:.0f} in, {mix.answers.mean:.0f} out")
    axes.set_xlabel("requests per second on one replica")
    axes.set_ylim(0, 30)
    axes.legend(loc="upper left", fontsize="small")


def main() -> None:
    workloads = {it.name: it for it in GATE_WORKLOADS}
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), sharey=True)
    for name, axes in zip(SHOWN, panels.flat, strict=True):
        draw(workloads[name], axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("requests that miss the SLO, %")
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=80)


if __name__ == "__main__":
    main()
