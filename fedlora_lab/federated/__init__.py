"""One federated run: local training, uploads, the server's step, evaluation, checkpoints."""
