"""Two sites fine-tune one vision transformer together: LoRA under differential privacy."""
