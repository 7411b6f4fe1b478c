"""The plots of a run, as SVG. Needs python3-matplotlib."""

import glob
import os

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot # noqa: E402

LABELS = {
    "throughput": ("seconds since the snapshot began", "the guest's steps per second"),
    "pause": ("populated memory, GiB", "pause, ms"),
    "faults": ("latency of the slowest steps, us", "part of them that was quicker"),
    "requests": ("requests answered", "ms since the launch"),
    "waits": ("seconds since the launch", "first touches that waited for a page"),
    "demands": ("seconds since the launch", "faults answered"),
    "touched": ("pages touched", "ms since the memory was handed over"),
    "filled": ("seconds since the launch", "memory of the VMM, MiB"),
}


def draw(figures, out_dir):
    """One file per plot that has data; their names."""
    for old in glob.glob(os.path.join(out_dir, "*.svg")):
        if os.path.basename(old).split("-")[0] in LABELS: # of an earlier run
            os.unlink(old)
    names = []
    for plot in dict.fromkeys(s["plot"] for s in figures.series):
        kind = plot.split("-")[0]
        fig, axes = pyplot.subplots(figsize=(8, 4.5))
        for one in (s for s in figures.series if s["plot"] == plot):
            xs, ys = zip(*one["points"])
            axes.plot(xs, ys, label=one["label"], linewidth=1.2,
                      marker="o" if kind == "pause" else "")
        decorate(axes, kind, plot)
        names.append(f"{plot}.svg")
        fig.tight_layout()
        fig.savefig(os.path.join(out_dir, names[-1]))
        pyplot.close(fig)
    return names


def decorate(axes, kind, plot):
    x_label, y_label = LABELS[kind]
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(plot.replace("-", ", "))
    axes.grid(alpha=0.3)
    axes.legend()
    if kind in ("faults", "requests", "touched"):
        axes.set_xscale("log")
    if kind in ("requests", "touched"):
        axes.set_yscale("log")
    elif kind != "faults":
        axes.set_ylim(bottom=0)
