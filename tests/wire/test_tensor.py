from __future__ import annotations

import numpy as np
import pytest

from lossd_client.wire import DTYPES, Tensor
from lossd_client.wire.tensor import element_count


@pytest.mark.parametrize("name", DTYPES)
def test_the_table_of_dtypes_agrees_with_numpy(name: str) -> None:
    dtype = DTYPES[name]
    assert np.dtype(dtype.storage).itemsize == dtype.itemsize
    if name != "bfloat16":
        assert np.dtype(dtype.storage).name == name


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = Tensor.of(array)
    array[0, 0] = 7
    assert np.shares_memory(tensor.numpy(), array)
    assert tensor.numpy()[0, 0] == 7


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
        np.arange(5, dtype=">f4"),
        np.float16(1.5).reshape(()),
        np.zeros((2, 0, 3), np.uint8),
        np.array([True, False]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=["strided", "transposed", "big-endian", "scalar", "empty", "bool", "column-major"],
)
def test_any_layout_becomes_row_major_little_endian(array: np.ndarray) -> None:
    tensor = Tensor.of(array)
    assert bytes(tensor.data) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert tensor.data.format == "B"
    assert tensor.data.ndim == 1
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.shape == array.shape


def test_bfloat16_travels_as_its_bits_and_reads_as_float32() -> None:
    exact = np.array([1.0, -2.5, np.inf, 3.3895314e38], np.float32)
    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    tensor = Tensor.of(bits, "bfloat16")
    assert tensor.numpy().dtype == np.float32
    np.testing.assert_array_equal(tensor.numpy(), exact)


def test_bits_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(TypeError, match="an array of float32 does not hold the bits of bfloat16"):
        Tensor.of(np.zeros(2, np.float32), "bfloat16")


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.array(["a"]), np.array([None]), np.zeros(1, "M8[s]")])
def test_other_dtypes_do_not_travel(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be sent; convert to one of float64"):
        Tensor.of(array)


def test_data_may_start_anywhere() -> None:
    body = b"\xff" + np.arange(3, dtype=np.float64).tobytes()
    tensor = Tensor("float64", (3,), memoryview(body)[1:])
    np.testing.assert_array_equal(tensor.numpy(), [0, 1, 2])


def test_products_of_axes_do_not_overflow() -> None:
    assert element_count(()) == 1
    assert element_count((2**62, 4, 0)) == 0
    assert element_count((2**62, 2**62)) == 2**124
