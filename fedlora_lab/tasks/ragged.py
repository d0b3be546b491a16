"""Texts of different lengths, one after the other, without their padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

Places = Tensor | slice


class Ragged:
    """A column of n rows of different lengths, which is padded only where a model reads it.

    One long text among many short ones would otherwise make every row as long as itself. It is
    indexed by rows as a tensor is, and stays ragged; `to` makes the padded tensor.

    Args:
        values: all rows, one after the other.
        lengths: of the rows.
        padding: the number that fills a row up.

    >>> import torch
    >>> column = Ragged(torch.tensor([1, 2, 3]), torch.tensor([2, 1]), padding=0)
    >>> column.to("cpu").tolist(), column[torch.tensor([1])].to("cpu").tolist()
    ([[1, 2], [3, 0]], [[3]])
    """

    def __init__(
        self, values: Int[Tensor, " numbers"], lengths: Int[Tensor, " n"], padding: int
    ) -> None:
        self.values = values
        self.lengths = lengths
        self.padding = padding

    @classmethod
    def of_padded(
        cls, tensor: Int[Tensor, "n width"], lengths: Int[Tensor, " n"], padding: int
    ) -> "Ragged":
        """Keeps the beginning of each row of a padded tensor.

        Args: tensor: (n, width). lengths: (n,), of each row, at most width. padding: what fills up.
        """
        inside = torch.arange(tensor.shape[1]) < lengths[:, None]
        return cls(tensor[inside], lengths, padding)

    @classmethod
    def of_rows(cls, rows: Sequence[Tensor], padding: int) -> "Ragged":
        """Puts rows of any lengths below one another."""
        return cls(torch.cat([*rows]), torch.tensor([len(row) for row in rows]), padding)

    @classmethod
    def joined(cls, columns: "list[Ragged]") -> "Ragged":
        """Puts the rows of several columns below one another."""
        values = torch.cat([column.values for column in columns])
        lengths = torch.cat([column.lengths for column in columns])
        return cls(values, lengths, columns[0].padding)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, places: Places) -> "Ragged":
        lengths = self.lengths[places]
        return Ragged(self.values[self._numbers(places)], lengths, self.padding)

    def _numbers(self, places: Places) -> Int[Tensor, " numbers"]:
        """Where the numbers of some rows stand in ``values``."""
        lengths = self.lengths[places]
        starts = (self.lengths.cumsum(0) - self.lengths)[places]
        before = lengths.cumsum(0) - lengths
        return torch.arange(int(lengths.sum())) + (starts - before).repeat_interleave(lengths)

    def is_floating_point(self) -> bool:
        """Whether the rows have floating-point numbers."""
        return self.values.is_floating_point()

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions of the padded tensor."""
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the padded tensor."""
        return len(self), int(self.lengths.max()) if len(self) else 0

    def to(
        self, device: "torch.device | str", non_blocking: bool = False, copy: bool = False
    ) -> Int[Tensor, "n width"]:
        """Makes the padded tensor, as wide as the longest row, on a device; always a new one.

        Args: device, non_blocking: as of `torch.Tensor.to`. copy: changes nothing.
        """
        return self.padded(self.shape[1]).to(device, non_blocking=non_blocking)

    def padded(self, width: int) -> Int[Tensor, "n width"]:
        """Makes the padded tensor of a width, at least that of the longest row."""
        inside = torch.arange(width) < self.lengths[:, None]
        padded = self.values.new_full((len(self), width), self.padding)
        padded[inside] = self.values
        return padded

    def rows(self) -> tuple[Tensor, ...]:
        """Its rows, each of its own length."""
        return self.values.split(self.lengths.tolist())
