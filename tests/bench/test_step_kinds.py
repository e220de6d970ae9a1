"""Operators are sorted into kinds of work by the names that CPUs and GPUs give them; no time is lost on the way."""

import pytest
import torch

from bench.contenders import TOY, Contender, Step
from bench.sections import KINDS, arithmetic, elsewhere
from bench.step_kinds import Operator, kind, percent_by_kind, shares


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::mm", "products"),
        ("aten::bmm", "products"),
        ("aten::addmm", "products"),
        ("aten::mkldnn_convolution", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("## Call CompiledFxGraph fddv7sspiuh7 ##", "element-wise"),
        ("aten::native_layer_norm", "element-wise"),
        ("aten::copy_", "element-wise"),
        ("aten::_fused_sgd_", "optimiser"),
        ("Optimizer.step#SGD.step", "optimiser"),
        ("TorchDynamo Cache Lookup", "rest"),
        ("autograd::engine::evaluate_function: CompiledFunctionBackward", "rest"),
    ],
)
def test_operators_of_a_cpu(name: str, expected: str) -> None:
    assert kind(name, "cpu") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_sm90_tst_128x64_64x8_2x1_v_bz_TNT", "products"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_stage3", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("triton_tem_fused_addmm_3", "products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<32, 128, 128, 4>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("triton_per_fused_native_layer_norm_0", "element-wise"),
        ("triton_poi_fused_add_gelu_2", "element-wise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float>>", "element-wise"),
        ("Memcpy DtoD (Device -> Device)", "element-wise"),
        ("void at::native::multi_tensor_apply_kernel<at::native::FusedSgdMathFunctor<float, 3>>", "optimiser"),
        ("inner_forward", "fused kernels"),
        ("attention_backward", "fused kernels"),
        ("loss_and_gradients", "fused kernels"),
    ],
)
def test_kernels_of_a_gpu(name: str, expected: str) -> None:
    assert kind(name, "cuda") == expected


def test_time_without_a_kernel_is_rest() -> None:
    found = [Operator("inner_forward", 30.0, 1), Operator("nvjet_tst", 20.0, 2), Operator("triton_poi_fused", 10.0, 1)]
    percent = shares(found, "cuda", 80e-6)
    assert percent == {
        "products": 25.0, "attention": 0.0, "fused kernels": 37.5, "element-wise": 12.5, "optimiser": 0.0, "rest": 25.0,
    }  # fmt: skip
    assert arithmetic(percent) == 62.5
    assert elsewhere(percent) == ("rest", 25.0)


def test_a_profiler_that_sees_nothing_gives_no_shares() -> None:
    assert shares([], "cuda", 1e-3) is None


def test_the_shares_of_a_step_are_all_of_it() -> None:
    step = Step(Contender("", "titn", "eager", None), torch.device("cpu"), 8, TOY)
    step()
    percent = percent_by_kind(step, torch.device("cpu"))
    assert percent is not None and set(percent) == set(KINDS)
    assert sum(percent.values()) == pytest.approx(100)
    assert all(percent[one] > 0 for one in ("products", "element-wise", "optimiser"))
