"""Draws every signal against the true load. A signal that equals the load is on the diagonal."""

from collections.abc import Sequence
from pathlib import Path

from utilization.experiment import Reading


def draw(path: Path, found: Sequence[Reading]) -> None:
    """Draw one panel for each model and mix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(reading.model for reading in found))
    mixes = list(dict.fromkeys(reading.mix for reading in found))
    figure, panels = plt.subplots(
        len(models),
        len(mixes),
        figsize=(4 * len(mixes), 3.4 * len(models)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, model in enumerate(models):
        for column, mix in enumerate(mixes):
            panel = panels[row][column]
            here = [each for each in found if (each.model, each.mix) == (model, mix)]
            loads = [each.load for each in here]
            panel.plot([0, 100], [0, 100], color="0.7", linestyle="--", label="true load")
            for label, values in (
                ("effective utilization", [each.utilization for each in here]),
                ("time busy", [each.busy for each in here]),
                ("KV cache in use", [each.kv_usage for each in here]),
                ("running / maximum", [each.batch_share for each in here]),
            ):
                panel.plot(loads, values, marker="o", label=label)
            panel.set_title(f"{model}, {mix}")
            panel.set_xlabel("true load, %")
            panel.set_ylabel("signal, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    figure.savefig(path, dpi=110)
    plt.close(figure)
