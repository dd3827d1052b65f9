"""What it computes on: bf16 is chosen where it is native, and not where oneDNN is held to older instructions."""

import pytest
import torch

from runtime import compute
from runtime.errors import InputError


@pytest.mark.parametrize(
    ("limit", "has", "native"),
    [
        (None, "avx512_bf16", True),
        (None, "avx2", False),
        ("all", "avx512_bf16", True),
        ("AVX512_CORE_AMX", "avx512_bf16", True),
        ("AVX512_CORE", "avx512_bf16", False),
        ("avx2", "avx512_bf16", False),
    ],
)
def test_bf16_is_native_as_far_as_the_processor_and_onednn_go(limit, has, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert compute.cpu_has_bf16() == native
    assert compute.choose("cpu", "auto").bf16 == native
    if not native:
        with pytest.raises(InputError, match="no bf16 arithmetic"):
            compute.choose("cpu", "bf16")
