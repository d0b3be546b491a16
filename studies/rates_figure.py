"""Accuracy over the learning rate, from results/rates.csv: the figures of README and the logbook.

python -m studies.rates_figure
"""

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.plots import style
from fedlora_lab.plots.line_plot import draw_lines
from fedlora_lab.recipes.rehearsal import NEAR
from studies import RESULTS, ROOT

FIGURES = {"example": "rates.png", "client": "rates-client.png"}
"""Unit of privacy -> its picture."""


def draw(frame: pd.DataFrame) -> style.Figure:
    """Draws a panel for each ε, one under the other.

    Args: frame: the runs of one unit of privacy.
    """
    with style.paper():
        picture, axes = style.subplots(4.3, 6.0, rows=2, sharex=True, sharey=True)
        behind = []
        for ax, (epsilon, runs) in zip(axes, frame.groupby("epsilon", sort=False), strict=True):
            labels = draw_lines(ax, runs, "lr", "method", value="accuracy")
            means = runs.groupby(["method", "lr"])["accuracy"].mean()
            for slug, scores in means.groupby("method"):
                colour = style.look(str(slug)).colour
                best = scores.droplevel("method").idxmax()
                style.draw_dots(ax, [best], [scores.max()], colour, 12, marker="*", zorder=4)
            leader = means["ffa-lora"]
            largest = leader[leader >= leader.max() - NEAR].index[-1]
            behind.append(100 * (leader[largest] - means.xs(largest, level="lr").min()))
            ax.axvline(largest, color=style.GREY, ls=style.DASHED, zorder=0.9)
            ax.axhline(runs["before_accuracy"].mean(), color=style.GREY, ls=style.DOTTED)
            ax.set(title=f"ε = {epsilon:g}", xscale="log", xlabel="", ylabel="accuracy")
            style.label_ends(ax, labels)
        rates = sorted(frame["lr"].unique())[::2]
        axes[-1].set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes[-1].set_xlabel("learning rate")
        first, second = behind
        style.headline(
            picture,
            f"At the dashed rate the worst is\n{first:.0f} and {second:.0f} points behind FFA-LoRA",
        )
        style.footer(
            picture,
            "dashed: the last rate that is good for FFA-LoRA; star: a method's best;\n"
            "dotted: before training; digits, means of five seeds with 95 % intervals",
        )
        picture.set_dpi(150)
    return picture


if __name__ == "__main__":
    runs = pd.read_csv(RESULTS / "rates.csv")
    for unit, name in FIGURES.items():
        picture = style.png(draw(runs[runs["unit"] == unit]))
        write_atomically(ROOT / "docs" / "figures" / name, picture, shared=True)
