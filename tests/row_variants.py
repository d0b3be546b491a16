"""FedLoRA with other values of fields that no row of the table sets."""

from fedlora_lab.methods import FedLoRA, filters

APART = FedLoRA.replace(name="apart", clip_groups=filters.by_side)
WEIGHTS = FedLoRA.replace(
    name="weights", clip_groups=filters.by_tensor, clip_reference=filters.origin
)
SPLIT = FedLoRA.replace(name="split", own_ranks=0.5)
