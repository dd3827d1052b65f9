"""What it computes on: bf16 is chosen where it is native, and not where oneDNN is held to older instructions."""

import pytest
import torch

from runtime import compute
from runtime.errors import InputError


@pytest.mark.parametrize(
    ("limit", "native"),
    [
        (None, True),
        ("all", True),
        ("AVX512_CORE_AMX", True),
        ("AVX512_CORE", False),
        ("avx2", False),
    ],
)
def test_bf16_is_native_as_far_as_onednn_may_go(limit, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    if limit is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert compute.cpu_has_bf16() == native
    assert compute.choose("cpu", "auto").bf16 == native
    if not native:
        with pytest.raises(InputError, match="no bf16 arithmetic"):
            compute.choose("cpu", "bf16")


def test_an_old_processor_has_no_bf16(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not compute.cpu_has_bf16()
