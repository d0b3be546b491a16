"""Lower bounds on epsilon from what can be seen of a run."""
