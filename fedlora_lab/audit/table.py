"""What a table of audits says, and what it could have said."""

from typing import TYPE_CHECKING, Any

from fedlora_lab.checks import check

if TYPE_CHECKING:
    import pandas as pd

SETTING = ["method", "unit", "noise_multiplier"]


def verdict(frame: "pd.DataFrame") -> str:
    """How many audits exceed their ledger's epsilon, how many are invalid, and how many could have exceeded it at all.

    An audit can only fail where its ceiling lies above the stated epsilon; a table of others says nothing.

    Args: frame: one row an audit, columns method, unit, noise_multiplier, epsilon_lower (NaN: invalid), ceiling,
        epsilon_upper, as results/audit.csv.
    Raises: ``ValueError`` for a frame without rows.
    Guarantees: test_the_verdict_counts_what_could_have_failed.
    """
    check(len(frame) > 0, "frame", f"{len(frame)} rows", "at least one audit")
    could: Any = frame[frame["ceiling"] > frame["epsilon_upper"]]
    above, invalid = (frame["epsilon_lower"] > frame["epsilon_upper"]).sum(), frame["epsilon_lower"].isna().sum()
    settings, able = (len(part[SETTING].drop_duplicates()) for part in (frame, could))
    power = f"in {able} of {settings} settings ({len(could):,} audits) the ceiling lies above the stated epsilon"
    conclusion = "only these could have contradicted it" if able else "none of these could have contradicted it"
    return f"{len(frame):,} audits, {above} above the ledger's epsilon, {invalid} invalid; {power}: {conclusion}"
