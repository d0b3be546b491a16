"""Writes a bound in few digits, so that what is written is still a bound."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext


def round_up(value: float, spec: str) -> str:
    """Formats an upper bound, such as a spent epsilon: the text never says less than the value.

    Args: spec: of `format`, such as ".4g".

    >>> round_up(0.0105, ".2f"), round_up(8.0, ".4g")
    ('0.02', '8')
    """
    return _format(value, spec, ROUND_CEILING)


def round_down(value: float, spec: str) -> str:
    """Formats a lower bound, such as the epsilon that an audit shows: the text never says more.

    Args: spec: of `format`.

    >>> round_down(0.0199, ".2f")
    '0.01'
    """
    return _format(value, spec, ROUND_FLOOR)


def _format(value: float, spec: str, rounding: str) -> str:
    # NaN is written as such: a bound may be unknown.
    with localcontext() as context:
        context.rounding = rounding
        # Of the shortest text of the number: in binary 0.1 lies above a tenth.
        number = Decimal(repr(float(value)))
        # As a float is written: without zeros at the end, and infinity as "inf".
        return format(float(format(number, spec)), spec)
