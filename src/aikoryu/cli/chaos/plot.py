"""The picture of a run: answers a second, who gave them, and the breaker, over time."""

from __future__ import annotations

from pathlib import Path

from .ledger import BIN_S
from .timeline import STATES, Timeline

INK, FAINT, DEVICE, SPARE, FAULT = "#24292f", "#d0d7de", "#2f6f9f", "#c08a2b", "#f3e3e1"


def draw(timeline: Timeline, title: str, path: Path) -> None:
    """Write the picture, SVG or PNG by the path's ending.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {"font.size": 9, "font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "aikoryu"}
    )
    figure, (rate, share, breaker) = plt.subplots(
        3, 1, figsize=(12, 6.2), sharex=True, height_ratios=(3, 2, 1), layout="constrained"
    )
    for axes in (rate, share, breaker):
        for period in timeline.periods:
            axes.axvspan(period.began_s, period.ended_s, color=FAULT, linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        axes.margins(x=0)
    thousands = [count / BIN_S / 1000 for count in timeline.answered]
    rate.plot([(bin_ + 0.5) * BIN_S for bin_ in range(len(thousands))], thousands, color=DEVICE, linewidth=0.9)
    rate.set_ylabel("right answers,\nthousand a second")
    rate.set_ylim(bottom=0)
    top = rate.get_ylim()[1]
    names = [((period.began_s + period.ended_s) / 2, period.fault) for period in timeline.periods]
    if timeline.periods:
        names.append((timeline.periods[0].began_s / 2, "no pause"))
    for middle, name in names:
        rate.text(middle, top * 1.02, name, rotation=45, ha="left", va="bottom", color=INK)
    times = [sample.at_s for sample in timeline.samples]
    wholes = [max(1, sample.device_rows + sample.spare_rows) for sample in timeline.samples]
    on_device = [100 * s.device_rows / whole for s, whole in zip(timeline.samples, wholes, strict=True)]
    on_spare = [100 * s.spare_rows / whole for s, whole in zip(timeline.samples, wholes, strict=True)]
    share.stackplot(times, on_device, on_spare, colors=(DEVICE, SPARE), labels=("device", "spare"), step="pre")
    share.set_ylabel("rows run on, %")
    share.set_ylim(0, 100)
    share.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    states = [(sample.at_s, STATES.index(sample.breaker)) for sample in timeline.samples if sample.breaker]
    breaker.step([at for at, _ in states], [state for _, state in states], where="post", color=INK, linewidth=1)
    breaker.set_yticks(range(len(STATES)), [state.replace("_", " ") for state in STATES])
    breaker.set_ylim(-0.3, 2.3)
    breaker.set_ylabel("breaker")
    breaker.set_xlabel(
        "seconds; at first calls without a pause and without a fault; between the shaded spans nobody calls"
    )
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
