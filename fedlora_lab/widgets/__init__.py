"""Controls bound to plot functions. Nothing is computed here, and nothing runs before a button is pressed."""

from fedlora_lab.widgets.dial import Dial, dial
from fedlora_lab.widgets.live import Live, live

__all__ = ["Dial", "Live", "dial", "live"]
