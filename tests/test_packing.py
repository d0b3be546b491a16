"""Codes on the wire: as many bytes as counted, and the quantiser's values bit for bit."""

import pytest
import torch

from fedlora_lab import packing, wire


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("shape", [(7, 5), (1,), (0, 3), (64, 4)])
def test_codes_are_as_long_as_counted(width, shape):
    """As many bytes as the rule counts, rounded up; what comes out is what the rule gives, bit for bit."""
    rule = wire.normal_float(width, 16)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(width), dtype=dtype)
        for tensor in (x, rule(x), torch.zeros_like(x)):
            found = packing.pack(tensor, rule)
            codes, scales = (found[name] for name in packing.parts(rule))
            assert codes.dtype == torch.uint8 and scales.dtype == dtype
            assert len(codes) + 4 * len(scales) == wire.bytes_of([x.numel()], rule)
            assert torch.equal(packing.unpack(found, rule, torch.full_like(x, 7.0)), rule(tensor))


def test_numbers_go_as_they_are():
    """A rule that has no codes, also one of a user's own."""
    x = torch.randn(3, 2)
    for rule in (wire.full, object()):
        found = packing.pack(x, rule)
        assert tuple(found) == packing.parts(rule) == ("",)
        assert packing.unpack(found, rule, torch.zeros(3, 2)) is x


def test_a_code_beyond_the_levels_is_refused():
    rule = wire.normal_float(1, 4)
    found = packing.pack(torch.ones(3), rule)
    assert found[packing.CODES].tolist() == [0b101010]
    found[packing.CODES][0] = 0b101011
    with pytest.raises(ValueError, match=r"^codes=3: expected at most 2$"):
        packing.unpack(found, rule, torch.ones(3))
