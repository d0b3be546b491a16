"""Twenty seeds of all weights and of the head alone beside low rank: what the pages say."""

from typing import Any

from studies import ROOT, full_seeds


def test_the_pages_say_what_twenty_seeds_of_all_weights_found():
    table: Any = full_seeds.judge().set_index(["epsilon", "method", "over"]).sort_index()
    assert (table["seeds"] == 20).all()
    text = " ".join((ROOT / "studies" / "logbook.md").read_text("utf-8").split())
    for key, row in table.iterrows():
        epsilon, slug, other = key
        name = {"all-weights": "all weights", "head-only": "classifier alone"}[slug]
        over = {"fedlora": "FedLoRA", "ffa-lora": "FFA-LoRA"}[other]
        cells = f"{row['points']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
        assert f"| {name} | {over} | {epsilon:g} | {cells} |" in text
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    ahead = table.loc[(8.0, "all-weights", "fedlora")]
    assert (
        f"[{ahead['points']:.1f} points](studies/logbook.md#six-methods-in-two-minutes)" in readme
    )
    assert ahead["low"] > 0
