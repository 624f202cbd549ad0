"""Values of tables as JSON has them, with the digits that Python's own dates and times have no room for.

What has no form in JSON becomes a string: bytes base64, a time ISO 8601 with up to nine digits behind the second, and a
duration ISO 8601 in seconds, such as `PT90.5S`.
"""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # of the unit of a duration, behind the second


def json_values(array: pa.Array) -> list[Any]:
    """Return the values of a column as orjson takes them.

    Raises:
        ValueError: A value has no form in Python, such as a year beyond 9999.
    """
    if not (pa.types.is_nested(array.type) or pa.types.is_temporal(array.type)):
        return list(map(_plain, array.to_pylist()))
    try:
        return list(map(_value, array))
    except (OverflowError, KeyError, pa.ArrowException) as error:  # a KeyError is of a time zone that nobody knows
        raise ValueError(str(error)) from error


def _value(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    kind = scalar.type
    match scalar:
        case pa.StructScalar():
            return {name: _value(each) for name, each in scalar.items()}
        case pa.MapScalar():
            return [[_value(entry[0]), _value(entry[1])] for entry in scalar.values]
        case pa.ListScalar():
            return list(map(_value, scalar.values))
        case pa.DurationScalar():
            return _duration(scalar.value, _DIGITS[kind.unit])
        case pa.TimestampScalar() if kind.unit == "ns":
            return _with_nanoseconds(scalar.value, pa.timestamp("us", kind.tz))
        case pa.Time64Scalar() if kind.unit == "ns":
            return _with_nanoseconds(scalar.value, pa.time64("us"))
        case _:
            return _plain(scalar.as_py())


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _with_nanoseconds(value: int, microseconds: pa.DataType) -> Any:
    """Return the time of a number of nanoseconds, as a string where it is no whole number of microseconds."""
    whole, rest = divmod(value, 1000)
    time = pa.scalar(whole, microseconds).as_py()
    if not rest:
        return time
    before, point, after = time.isoformat(timespec="microseconds").partition(".")
    return f"{before}{point}{after[:6]}{rest:03}{after[6:]}"  # the zone comes last


def _duration(value: int, digits: int) -> str:
    seconds, rest = divmod(abs(value), 10**digits)
    fraction = f".{rest:0{digits}}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}PT{seconds}{fraction}S"
