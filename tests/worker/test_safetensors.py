"""Reading .safetensors by hand: every type that is read, and every way in which a file can be damaged."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "bool": "BOOL",
}


def file_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def file_of_tensors(tensors: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str] | None = None) -> bytes:
    """Write tensors one after another; `dtypes` overrides the header's type of some."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name) or NAMES[tensor.dtype.name]
        start, data = len(data), data + tensor.tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    return file_of(header, data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def opened(folder: Path, content: bytes) -> SafetensorsFile:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile.open(path)


@pytest.mark.parametrize("dtype", list(NAMES))
def test_a_tensor_has_the_type_shape_and_values_that_were_written(tmp_path: Path, dtype: str) -> None:
    written = np.arange(6).reshape(2, 3).astype(dtype)
    read = opened(tmp_path, file_of_tensors({"a": written}))["a"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, written)


def test_bfloat16_is_widened_to_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.0e38, 0.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    read = opened(tmp_path, file_of_tensors({"a": halves}, {"a": "BF16"}))["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, (halves.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(read, values, rtol=2**-7)


def test_tensors_come_in_the_order_of_their_data_and_metadata_is_no_tensor(tmp_path: Path) -> None:
    header = {
        "second": entry(offsets=[8, 16]),
        "__metadata__": {"format": "pt"},
        "first": entry(offsets=[0, 8]),
    }
    file = opened(tmp_path, file_of(header, np.arange(4, dtype=np.float32).tobytes()))
    assert list(file) == ["first", "second"]
    assert len(file) == 2
    assert file["second"].tolist() == [2.0, 3.0]
    assert file.get("third") is None


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    file = opened(tmp_path, file_of_tensors({"scalar": np.array(2.5), "empty": np.zeros((0, 4), np.float32)}))
    assert file["scalar"].shape == ()
    assert float(file["scalar"]) == 2.5
    assert file["empty"].shape == (0, 4)


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    assert dict(opened(tmp_path, file_of({}))) == {}


def test_tensors_are_read_only_and_outlive_the_file_object(tmp_path: Path) -> None:
    tensor = opened(tmp_path, file_of_tensors({"a": np.ones(3, np.float32)}))["a"]
    assert tensor.sum() == 3
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty: get it again"),
        (b"\x02\0\0", "truncated to 3 bytes"),
        (struct.pack("<Q", 100) + b"{}", "truncated within its header of 100 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "exceeds"),
        (b"PK\x03\x04 a zip archive", "exceeds"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"\xff\xfe{}"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of([]), "not a JSON object"),
        (file_of({"a": 1}), "needs dtype, shape and two data_offsets"),
        (file_of({"a": {"dtype": "F32", "shape": [2]}}), "needs dtype"),
        (file_of({"a": entry(offsets=[0])}), "needs dtype"),
        (file_of({"a": entry(dtype=7)}), "needs dtype"),
        (file_of({"a": entry(shape="22")}), "needs dtype"),
        (file_of({"a": entry(dtype="F8_E4M3")}), "dtype 'F8_E4M3', which is not read"),
        (file_of({"a": entry(shape=[-2])}), "a shape that is no list"),
        (file_of({"a": entry(shape=[2.0])}), "a shape that is no list"),
        (file_of({"a": entry(shape=[True])}), "a shape that is no list"),
        (file_of({"a": entry(shape=[2**64])}), "a shape that is no list"),
        (file_of({"a": entry(shape=[1] * 33)}), "a shape that is no list"),
        (file_of({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}), "shape"),
        (file_of({"a": entry(offsets=[-8, 0])}), "not a start and an end"),
        (file_of({"a": entry(offsets=[8, 0])}), "not a start and an end"),
        (file_of({"a": entry(offsets=["0", "8"])}), "not a start and an end"),
        (file_of({"a": entry(offsets=[0, 12])}, bytes(12)), "12 bytes where its shape [2] takes 8"),
        (file_of({"a": entry(shape=[2**63 - 1] * 32)}), "takes"),
        (file_of({"a": entry()}), "0 bytes of data and its header describes 8"),
        (file_of({"a": entry()}, bytes(7)), "7 bytes of data and its header describes 8"),
        (file_of({"a": entry()}, bytes(9)), "9 bytes of data and its header describes 8"),
        (file_of({"a": entry(offsets=[4, 12])}, bytes(12)), "begins at byte 4 of the data and not at 0"),
        (file_of({"a": entry(), "b": entry()}, bytes(16)), "'b' begins at byte 0 of the data and not at 8"),
        (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(16)), "'b' begins at byte 4"),
        (file_of({"a": entry(offsets=[2**62, 2**62 + 8])}, bytes(8)), "begins at byte 4611686018427387904"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(SafetensorsError) as raised:
        opened(tmp_path, content)
    message = str(raised.value)
    assert message.startswith("model.safetensors is ")
    assert sentence in message
    assert message.count("\n") == 0


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match=r"^absent\.safetensors cannot be read: "):
        SafetensorsFile.open(tmp_path / "absent.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(SafetensorsError, match=r"^model-00001-of-00002\.safetensors is not a regular file$"):
        SafetensorsFile.open(tmp_path / "model-00001-of-00002.safetensors")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="is not a regular file"):
        SafetensorsFile.open(tmp_path)


WHOLE = file_of_tensors({"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float16), "c": np.array(7)})


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_no_truncated_file_opens(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    with pytest.raises(SafetensorsError):
        opened(tmp_path_factory.getbasetemp(), WHOLE[:cut])


@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_file_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    content = bytearray(WHOLE)
    content[position] = byte
    try:
        file = opened(tmp_path_factory.getbasetemp(), bytes(content))
    except SafetensorsError:
        return
    assert sum(tensor.nbytes for tensor in file.values()) <= len(WHOLE)
