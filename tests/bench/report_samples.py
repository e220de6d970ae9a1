"""Sections of result files as the benchmarks write them, with numbers that are easy to find again."""

from __future__ import annotations

from typing import Any

GPU = {
    "type": "cuda", "name": "NVIDIA H200", "memory_bytes": 150_000_000_000, "capability": "9.0",
    "multiprocessors": 132, "driver": "570.1",
}  # fmt: skip


def stat(median: float, repetitions: int = 5) -> dict[str, Any]:
    return {"median": median, "low": median * 0.9, "high": median * 1.2, "repetitions": repetitions}


def us(median: float) -> dict[str, Any]:
    return {"median": median, "p10": median * 0.95, "p90": median * 1.1, "repetitions": 50}


def kernel(provider: str, median: float, mode: str = "forward", **changes: Any) -> dict[str, Any]:
    row = {
        "operation": "inner_block", "case": "16384 x 16 x 12, 4 heads", "dtype": "bf16", "mode": mode,
        "provider": provider, "us": us(median + 8), "graph_us": us(median), "bytes": 12_600_000, "flops": 1_100_000_000,
        "floor_us": {"memory": 2.9, "product": 1.4}, "percent_of_floor": 100 * 2.9 / median, "peak_bytes": 12_000_000,
        "error_fp64": 0.0021,
    }  # fmt: skip
    return row | changes


def contender(name: str, batch_size: int, median: float, ratio: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "contender": name, "batch_size": batch_size, "seconds": [batch_size / median],
        "images_per_second": stat(median), "ratio_to_timm": ratio, "peak_bytes": 3 * 2**30,
        "first_step_seconds": 31.25, "warm_start_seconds": 4.5,
    }  # fmt: skip


THROUGHPUT = {
    "precision": "bfloat16",
    "rows": [
        contender("titn --fast", 256, 41_234.0, stat(1.75, 9)),
        contender("timm TNT compiled", 256, 23_500.0, None),
        contender("titn --fast", 1024, 61_234.0, stat(2.25, 9)),
        contender("timm TNT compiled", 1024, 27_200.0, None),
        {"contender": "titn --fast", "batch_size": 4096, "reason": "out of memory | 79 GiB"},
    ],
}
KERNELS = [
    kernel("triton", 41.5),
    kernel("torch", 166.0, error_fp64=None),
    kernel("compile", 83.0),
    kernel("triton", 130.0, "forward_backward"),
    kernel("compile", 100.0, "forward_backward", graph_us={"error": "cannot be captured"}, us=us(104.0)),
    {"operation": "inner_block", "case": "16384 x 16 x 12, 4 heads", "dtype": "bf16", "mode": "forward",
     "provider": "xformers", "reason": "the package xformers is not installed"},
]  # fmt: skip
KINDS = {
    "products": 40.0, "attention": 15.0, "fused kernels": 5.0, "element-wise": 20.0, "optimiser": 8.0, "rest": 12.0,
}  # fmt: skip


def switched(name: str, switch: str, speed: float, gib: int, gain: float | None) -> dict[str, Any]:
    """A row of the waterfall."""
    ratio = None if gain is None else stat(gain, 9)
    return {
        "name": name, "switch": switch, "images_per_second": stat(speed), "peak_bytes": gib * 2**30, "loss": 4.5678,
        "ratio_to_last": ratio, "ratio_to_first": ratio, "fill_images_per_second": None,
    }  # fmt: skip


SECTIONS: dict[str, Any] = {
    "ceilings": {"copy_gb_per_s": stat(4300.0), "product_tflops": {"bf16": stat(790.0), "fp32": stat(51.0)}},
    "correctness": [
        {"operation": "inner_block", "case": "a", "dtype": "bf16", "ok": True, "errors": [0.002, 0.004],
         "plain_errors": [0.002, 0.003], "within": [True, True], "runs_equal": True},
        {"operation": "inner_block", "case": "a", "dtype": "fp16", "skipped": "for a reason"},
        {"operation": "inner_block", "case": "a", "dtype": "fp32", "error": "RuntimeError: of a kind"},
    ],
    "kernels": KERNELS,
    "throughput": THROUGHPUT,
    "waterfall": {
        "batch_size": 1024, "dataset": "cifar100", "teacher": "vgg16_bn", "steps": 20, "round_steps": 10, "rows": [
            switched("reference", "", 5000.0, 9, None),
            switched("bfloat16", "--amp bf16", 8000.0, 5, 1.6),
            switched("stored answers", "--teacher-cache auto", 20_000.0, 2, 2.5) | {"fill_images_per_second": 4321.0},
            {"name": "CUDA graph", "switch": "--cuda-graph on", "reason": "no room"},
    ]},
    "pipelines": {"dataset": "cifar100", "images": 50_000, "workers": 2, "notes": {"titn dali": ["it is so"]}, "rows": [
        {"source": "torchvision v2, DataLoader", "batch_size": 256, "images_per_second": stat(2000.0),
         "ratio_to_torchvision": None},
        {"source": "titn torch", "batch_size": 256, "images_per_second": stat(9000.0),
         "ratio_to_torchvision": stat(4.5)},
        {"source": "kornia on batches", "batch_size": 256, "reason": "No module named 'kornia'"},
    ]},
    "time_to_accuracy": {
        "dataset": "cifar10", "target": 0.9, "train_images": 45_000, "held_out_images": 5000, "epochs": 2,
        "batch_size": 1024, "planned_seeds": 1, "settings": {"model": "titn", "optimizer": "sgd"},
        "teacher": {"name": "vgg16_bn", "top1": 0.93, "epochs": 2, "seconds": 77.0},
        "paths": [
            {"name": name, "switches": {"amp": amp}, "runs": [{
                "seed": 0, "first_step_seconds": 1.5, "test_top1": 0.905,
                "points": [{"epoch": 1, "images": 45_000, "seconds": seconds / 2, "top1": 0.8}, last],
                "to_target": last,
            }]}
            for name, amp, seconds in (("reference", "off", 300.0), ("titn --fast", "bf16", 100.0))
            for last in [{"epoch": 2, "images": 90_000, "seconds": seconds, "top1": 0.91}]
        ],
        "ratio": {"to_target": stat(3.0, 1), "in_all": stat(3.0, 1)},
    },
    "bank": {
        "dataset": "cifar10", "train_images": 3000, "development_images": 5000, "epochs": 48, "planned_seeds": 3,
        "teacher": {"name": "small_cnn", "top1": 0.6}, "commits": ["abc"],
        "settings": {"model": "titn", "depth": 2, "optimizer": "adamw", "lr": 1e-3, "batch_size": 64},
        "rows": [
            {"bank": 16, "runs": [{"seed": 0, "top1": 0.5125}, {"seed": 1, "top1": 0.51}], "mean": 0.51125,
             "to_fresh": {"mean": -0.01, "interval95": [-0.03, 0.01]}},
            {"bank": None, "runs": [{"seed": 0, "top1": 0.52}], "mean": 0.52, "to_fresh": None},
        ],
    },
    "parity": {"dataset": "cifar100", "images": 600, "reasons": {"triton": "no GPU"}, "rows": [
        {"kind": "operation", "name": "Equalize", "differences": {
            "torch and torchvision": {"mean": 0.0, "off_by_more_than_2": 0.0, "largest": 0.0},
            "dali and torch": {"mean": 0.25, "off_by_more_than_2": 0.015, "largest": 3.0}}},
        {"kind": "mix", "name": "mixup", "differences": {
            "dali and torch": {"mean": 0.0, "off_by_more_than_2": 0.0, "largest": 0.0}}},
    ]},
    "cpu": {
        "path": "avx2",
        "rows": [
            {"threads": 1, "batch_size": 64, "work": "training", "contender": "titn --fast",
             "images_per_second": stat(100.0), "ratio_to_timm": stat(1.5), "percent_of_product_rate": 71.0},
            {"threads": 1, "batch_size": 64, "work": "training", "contender": "timm TNT, eager",
             "images_per_second": stat(66.0), "ratio_to_timm": None, "percent_of_product_rate": None},
            {"threads": 1, "batch_size": 64, "work": "training", "contender": "timm TNT, torch.compile",
             "reason": "no C++ compiler"},
        ],
        "operations": [
            {"name": "aten::mm", "calls": 96, "us": 300_000.0, "percent": 50.0, "floor_us": 200_000.0},
            {"name": "SGD", "calls": 1, "us": 6_000.0, "percent": 1.0, "floor_us": None},
        ],
    },
    "scaling": {"rows": [
        {"axis": axis, "value": value, "batch_size": 256, "images_per_second": stat(speed), "peak_bytes": 2**30 * value,
         "gflops_per_image": 0.6642, "percent_of_product_ceiling": speed / 1000, "percent_by_kind": KINDS,
         "percent_of_ceiling_in_arithmetic": speed / 600}
        for axis, values in {"batch": (64, 256, 1024), "depth": (6, 12)}.items()
        for value, speed in zip(values, (9000.0, 7000.0, 5000.0), strict=False)
    ]},
    "step_profile": {"batch_size": 1024, "device_us": 9000.0, "rows": [
        {"name": "void very::long<kernel|name>" * 4, "us": 4500.0, "calls": 24, "percent": 50.0},
        {"name": "inner_forward", "us": 1500.0, "calls": 12, "percent": 16.7},
    ]},
}  # fmt: skip


def accuracy(dataset: str, split: str, top1: list[float]) -> dict[str, Any]:
    runs = [
        {"seed": i, "top1": t, "seconds": 25.5, "seconds_to_target": 20.0 if i else None} for i, t in enumerate(top1)
    ]
    mean = sum(top1) / len(top1)
    return {
        "dataset": dataset, "split": split, "epochs": 30, "target": 0.7471, "runs": runs, "mean": mean,
        "interval95": [mean - 0.01, mean + 0.01] if len(top1) > 1 else None, "planned_seeds": 5, "note": "shortened",
        "teacher": {"name": "vgg16_bn", "top1": 0.7, "epochs": 10, "seconds": 99.0},
        "settings": {"depth": 12, "lr": 0.1},
    }  # fmt: skip


def trained(dataset: str, label: str, network: str, top1: list[float], **changes: Any) -> dict[str, Any]:
    """A row of the section "paper"."""
    scores = {"top1": sum(top1) / max(len(top1), 1), "top5": 0.9, "precision": 0.7, "recall": 0.71, "f1": 0.72}
    printed = {"top1": 0.7471, "top5": 0.9228, "precision": 0.72, "recall": 0.75, "f1": 0.74, "parameters": 5.85,
               "gflops": 111.4}  # fmt: skip
    return {
        "dataset": dataset, "label": label, "network": network, "is_teacher": False, "changes": {}, "images": 50_000,
        "epochs": 600, "parameters": 5_852_564, "macs": 110_690_000, "gflops": 111.404, "paper": printed,
        "runs": [{"seed": i, "run": f"paper-{network}-{i}", "top1": t, "seconds": 99.0, "commit": "abc"}
                 for i, t in enumerate(top1)],
        "mean": scores if top1 else dict.fromkeys(scores), "interval95": [0.7, 0.8] if len(top1) > 1 else None,
        "curve": [[1, 0.1], [600, 0.8]] if top1 else [], "reason": "" if top1 else "not run: the time was over",
    } | changes  # fmt: skip


def paper_table(table: str, split: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"table": table, "split": split, "planned_seeds": 2, "rows": list(rows)}


PAPER = paper_table(
    "students", "test", trained("cifar100", "TITN", "titn", [0.74, 0.76]), trained("mnist", "ViT", "vit", [])
)
