"""The server's side: it sees noised uploads, writes the ledger, and keeps the adapter."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import fedlora_lab as fl
from flower_app.terms import participant

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Plays the rounds that are left of the run in the folder ``out``."""
    out = Path(str(context.run_config["out"])).expanduser().resolve()
    timeout = float(context.run_config["timeout"])
    for record in fl.flower.run(grid, participant(), out=out, timeout=timeout):
        accuracy = record.metrics["accuracy"]
        spent = fl.privacy.round_up(record.epsilon, ".2f")
        print(f"round {record.index}: accuracy {accuracy:.3f}, epsilon {spent}")
    if not (out / "adapter").exists():  # the run had ended before
        fl.save_adapter(record, out / "adapter")
    print(f"finished: {out / 'adapter'}")
