"""Sets what was measured here as a paper's table has it, with the epsilon of every row."""

from collections.abc import Sequence

import pandas as pd

from fedlora_lab._utils.rounding import round_up
from fedlora_lab.measures.runs import check_equal_privacy, spent_epsilons, t_interval
from fedlora_lab.plots.style import name


def measured(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Tabulates the accuracy of some methods of a study, at one epsilon that all of them spent.

    Args:
        frame: a row for each run, with the columns method, seed, accuracy and spent.
        methods: slugs, in the order of the rows.
    Returns: mean accuracy with its 95 % interval over seeds, their number, and the certified
        epsilon, of the seed that spent most; "none" where none is certified.
    Raises: ``ValueError`` where two methods spent unequal epsilons.
    Guarantees: test_papers.py::test_a_table_has_one_epsilon.
    """
    spent = spent_epsilons(frame)
    rows = []
    for slug in methods:
        check_equal_privacy(frame, methods[0], slug)
        scores = 100 * frame.loc[frame["method"] == slug, "accuracy"].to_numpy()
        mean, half = t_interval(scores)
        most = float("nan") if spent is None else spent[slug].max()
        rows.append(
            {
                "method": name(slug),
                "accuracy, %": f"{mean:.1f}",
                "95 % interval": f"{mean - half:.1f} to {mean + half:.1f}",
                "seeds": len(scores),
                "certified ε": "none" if pd.isna(most) else round_up(most, ".2f"),
            }
        )
    return pd.DataFrame(rows).set_index("method")
