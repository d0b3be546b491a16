"""Rows that nobody published, for the contract and for Flower."""

from toy_tasks import APART, KEEPS_B

from fedlora_lab import methods
from fedlora_lab.methods.quantization import normal_float

# Rows that nobody published, from fields that the table does not combine: the contract holds for
# what users write.
WRITTEN = [
    KEEPS_B,
    methods.FFA.replace(name="FFA quantised", broadcast=normal_float(width=4, block=8), exact=True),
    APART,
]
