"""Tasks: a frozen model, clients' private examples, public examples to measure on."""

from fedlora_lab.tasks.digits import digits
from fedlora_lab.tasks.hub import hub
from fedlora_lab.tasks.regression import regression
from fedlora_lab.tasks.sentiment import sentiment
from fedlora_lab.tasks.silent import silent
from fedlora_lab.tasks.task import Task
from fedlora_lab.tasks.tensors import classification
from fedlora_lab.tasks.tiny import tiny

__all__ = ["Task", "classification", "digits", "hub", "regression", "sentiment", "silent", "tiny"]
