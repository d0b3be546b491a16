"""The live run: a federation that trains while you watch, and that you may pause, stop, and repeat in a cell."""

import base64
import math
import time
import weakref
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab import loop, methods
from fedlora_lab.checks import check
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.plots.live import images, kind
from fedlora_lab.plots.live import live as chart
from fedlora_lab.plots.style import png
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round
from fedlora_lab.widgets import controls, tuning
from fedlora_lab.widgets.recipe import Recipe
from fedlora_lab.widgets.worker import FAILED, OVER, PAUSED, RUNNING, STOPPED, Latest, Worker, one_line

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.method import Method
    from fedlora_lab.tasks import Task
