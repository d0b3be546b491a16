"""The figure of a dry run: what noise alone leaves of a model, beside what training makes of it."""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.line_plot import lines

if TYPE_CHECKING:
    from fedlora_lab.recipes.dry_run import DryRun

COLOURS = {"noise alone": style.FACTOR["A"], "trained": style.FACTOR["B"]}


@style.paper()
def noise_alone(dry: "DryRun", trained: pd.DataFrame) -> Figure:
    """Draws the score of the model with the noise of a whole run alone, and that of trained models.

    Where the lower line falls noise destroys what the model knew before. Training mends a part of
    it, so the other line falls later; where it falls first, the steps are too long.

    Args:
        dry: what `fl.dry_run` returned.
        trained: columns ``lr`` and ``score``, a row a run or a mean: such as the table of
            `fl.rehearse`.

    Raises: ``ValueError`` for a frame without these columns.
    Guarantees: both lines go through the scores
        (test_plots.py::test_noise_alone_is_drawn_beside_the_trained_model).
    """
    tidy.check_columns(trained, "lr", "score")
    parts = zip(COLOURS, (dry.table, trained), strict=True)
    figure = lines(
        pd.concat(part[["lr", "score"]].assign(model=name) for name, part in parts),
        "lr",
        by="model",
        value="score",
        band="none",
        colours=COLOURS,
        title="What the noise of a run alone does to the model",
        ylabel="share of public examples right",
    )
    figure.axes[0].axvline(dry.end, color=style.GREY, lw=1, ls=style.DASHED, zorder=0.9)
    text = "dashed: the rate at which the dry run expects the range to end"
    style.footer(figure, text)
    return figure
