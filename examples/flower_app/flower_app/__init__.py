"""Two hospitals fine-tune one language model together: LoRA under differential privacy."""
