"""Figures that several lessons draw; those of one lesson stand in its own folder."""

from fedlora_course.figures.method_diagrams import method_diagrams

__all__ = ["method_diagrams"]
