"""Modules that differ from one of a plan's programs to the next, over weights that all programs share."""

from torch import nn


class Stepped(nn.Module):
    """A module that computes something else in each program.

    Attributes:
        program: which of the plan's programs it is part of now, an index into `PlanHeader.programs`.
    """

    program: int = 0


def select(module: nn.Module, program: int) -> None:
    """Make every part of a module that of one of the plan's programs; a plain module has but one."""
    for part in module.modules():
        if isinstance(part, Stepped):
            part.program = program
