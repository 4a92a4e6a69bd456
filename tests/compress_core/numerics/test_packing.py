import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.packing import pack_bits, packed_nbytes, unpack_bits
from compress_core.row_scales import ZERO_CODE, decode_row_scales, encode_row_scales, shifted


@given(bits=st.integers(1, 16), count=st.integers(0, 200), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_packing_round_trips_in_exactly_the_bits(bits: int, count: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_nbytes(count, bits) == -(-count * bits // 8)
    unpacked = unpack_bits(packed, bits, count)
    assert unpacked.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert torch.equal(unpacked.to(torch.int32), values)


def test_long_streams_cross_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress_core.packing._STRIP", 5)
    for bits in (2, 3, 5, 7, 11):
        values = torch.arange(1001, dtype=torch.int32) % 2**bits
        assert torch.equal(unpack_bits(pack_bits(values, bits), bits, 1001).to(torch.int32), values)


def test_the_first_integer_takes_the_lowest_bits() -> None:
    assert pack_bits(torch.tensor([1, 2, 3, 0]), 2).tolist() == [0b00111001]
    assert pack_bits(torch.tensor([0x1234]), 16).tolist() == [0x34, 0x12]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="take 2 bytes, but 3"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 4, 4)
    with pytest.raises(ValueError, match="1 to 16 bits"):
        pack_bits(torch.zeros(3), 17)


def test_row_scales_are_a_byte_within_half_a_step() -> None:
    scale = torch.tensor([1.0, 0.37, 1e-3, 0.0])
    codes = encode_row_scales(scale, torch.tensor(2.0))
    back = decode_row_scales(codes, torch.tensor(2.0))
    assert codes.max() <= 255
    assert torch.allclose(back[:3], scale[:3], rtol=2 ** (1 / 32) - 1 + 1e-4)
    assert back[3] == 0
    assert codes[3] == ZERO_CODE
    assert torch.allclose(decode_row_scales(shifted(codes, 16), torch.tensor(2.0))[1:3], 2 * back[1:3], rtol=1e-5)
    assert shifted(codes, 3)[3] == ZERO_CODE
