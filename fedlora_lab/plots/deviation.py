"""How far the server's product is from the mean of the clients' products."""

from typing import Any

import pandas as pd

from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer, frame_axes, left_out, lines
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import Picture, look, name, paper, picture

EXACT = 1e-5  # relative deviation below which only rounding is left


def exact_lines(part: Any) -> set[str]:
    """Slugs whose deviation is rounding in every round."""
    worst = part.groupby("method")["value"].max()
    return set(worst[worst < EXACT].index)


def panel(ax: Any, part: Any) -> None:
    """Relative deviation over the rounds; methods at zero are named together."""
    labels = lines(ax, part)
    zero = {name(slug) for slug in exact_lines(part)}
    frame_axes(ax, part, "deviation")
    marked = [label._replace(text=label.text + (" = 0" if label.text in zero else "")) for label in labels]
    together = [label for label in marked if label.text.endswith(" = 0")]
    if len(together) > 1:
        names = ",\n".join(label.text.removesuffix(" = 0") for label in together)
        marked = [label for label in marked if label not in together]
        marked.append(Label(together[0].x, 0.0, f"{names}\nexact: 0", look("fedlora").colour))
    beside(ax, marked, low=-0.02)  # clear of the last tick


def layers(ax: Any, part: Any) -> None:
    """Frobenius deviation of each layer in the last round, for the methods that have any."""
    import seaborn  # slow to import, and the live figures do without

    sns: Any = seaborn  # its stubs know no dodge in data units

    last = part[part["round"] == part["round"].max()]
    slugs = tidy.order(last)
    names = list(dict.fromkeys(last["layer"]))
    sns.pointplot(
        data=last,
        y="layer",
        x="value",
        hue="method",
        hue_order=slugs,
        ax=ax,
        orient="y",
        dodge=0.35 if len(slugs) > 1 else False,
        legend=False,
        palette={slug: look(slug).colour for slug in slugs},
        markers=[look(slug).marker for slug in slugs],
        errorbar=tidy.band,
        linestyle="none",
        err_kws={"lw": 1.2},
        markersize=5,
        order=names,
    )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylabel("")
    ax.set_xlabel("Frobenius norm of the layer's deviation")
    ax.set_title(f"By layer, round {int(part['round'].max())}")
    ax.set_xlim(0, None)


def deviation(frame: pd.DataFrame) -> Picture:
    """Aggregation deviation D = mean B · mean A − mean of B·A: relative over rounds, and by layer in the last round.

    Args: frame: tidy, one task, with measure "deviation"; layers are drawn where the frame has them.
    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: methods whose deviation is rounding are named as exact (test_deviation_names_the_exact).
    Source: arXiv:2403.12313, the first discordance.
    """
    part = tidy.rows(frame, "deviation")
    try:
        by_layer = tidy.rows(frame, "deviation", layers=True)
        by_layer = by_layer[~by_layer["method"].isin(exact_lines(part))]
    except ValueError:
        by_layer = part.iloc[:0]
    with paper():
        figure = picture(9.9 if len(by_layer) else 7.6, 4.1)
        wide = len(by_layer) > 0
        panel(figure.add_axes((0.065, 0.16, 0.38, 0.75) if wide else (0.09, 0.16, 0.68, 0.75)), part)
        if wide:
            layers(figure.add_axes((0.70, 0.16, 0.285, 0.75)), by_layer)
        footer(figure, tidy.seeds(part) + left_out(tidy.unmeasured(frame, "deviation")))
    return figure
