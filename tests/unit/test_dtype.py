"""The type that is computed in where nobody names one."""

import pytest
import torch

from gram import api

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "has_amx", "has_avx512", "expected"),
    [
        ("GenuineIntel", True, True, torch.bfloat16),
        ("GenuineIntel", False, True, torch.float32),
        ("GenuineIntel", False, False, torch.float32),
        ("AuthenticAMD", False, True, torch.bfloat16),
        ("AuthenticAMD", False, False, torch.float32),
        (None, False, True, torch.bfloat16),
    ],
)
def test_sampling_takes_bfloat16_where_the_processor_is_not_slower_with_it(
    vendor, has_amx, has_avx512, expected, tmp_path, monkeypatch
):
    info = tmp_path / "cpuinfo"
    if vendor is not None:
        info.write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(api, "CPU_INFO", info)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512)
    capabilities = {"amx_bf16": has_amx, "avx512_bf16": has_avx512, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert api.choose_dtype(device=CPU) is expected
    trained = torch.bfloat16 if has_amx or has_avx512 else torch.float32
    assert api.choose_dtype(device=CPU, is_training=True) is trained
    assert api.choose_dtype("bfloat16", CPU) is torch.bfloat16
    assert api.choose_dtype("float32", CPU) is torch.float32


def test_a_gpu_takes_bfloat16_whatever_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert api.choose_dtype(device=torch.device("cuda")) is torch.bfloat16


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="dtype must be auto or one of bfloat16, float32, got 'float16'"):
        api.choose_dtype("float16", CPU)
