"""Declared studies, the runner that goes on after a kill, and the claims judged by them."""
