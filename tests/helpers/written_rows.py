"""Rows that nobody published, for the contract and for Flower."""

from toy_tasks import APART, KEEPS_B, gaps

from fedlora_lab import methods
from fedlora_lab.methods.quantization import normal_float


def proximal(rows, start):
    """Half the squared distance from what the client received, example by example."""
    return 0.5 * gaps(rows, start)


# Rows that nobody published, from fields that the table does not combine: the contract holds for
# what users write.
WRITTEN = [
    KEEPS_B,
    methods.FedLoRA.replace(name="proximal", penalty=proximal),
    methods.FFA.replace(name="FFA quantised", broadcast=normal_float(width=4, block=8), exact=True),
    APART,
]
