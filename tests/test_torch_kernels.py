"""The Triton kernels against their twins in plain PyTorch: run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_tools import plain_config, plain_encoder, plain_partition, plain_samples, random_inputs, torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
pytest.importorskip("triton", reason="needs Triton, which PyTorch brings along for GPUs")

from machxc.partition import HashPartition  # noqa: E402
from machxc.torch import fused, kernels, top_k  # noqa: E402
from machxc.torch.batches import batch_of  # noqa: E402
from machxc.torch.encode import Rows, Wanted  # noqa: E402
from machxc.torch.layers import Output, OutputGradients, Table, turned  # noqa: E402
from machxc.torch.learner import group_of  # noqa: E402
from machxc.torch.loss import gradient_  # noqa: E402

MODULES = ("loss", "layers", "top_k")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No kernels until `use` says so."""
    for module in MODULES:
        monkeypatch.setattr(sys.modules[f"machxc.torch.{module}"], "kernels_for", lambda tensor: None)
    return monkeypatch


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(sys.modules[f"machxc.torch.{module}"], "kernels_for", lambda tensor: kernels)


def rand(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)).to(DEVICE, dtype)


def wanted(groups: int, n: int, n_buckets: int) -> Wanted:
    source = np.random.default_rng(1)
    places = np.arange(groups * n) * n_buckets + source.integers(0, n_buckets, groups * n)
    weights = torch.from_numpy(source.choice([0.0, 0.5, 1.0], (groups, n)).astype(np.float32)).to(DEVICE)
    return Wanted(torch.from_numpy(places).view(groups, n).to(DEVICE), weights, weights)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("n_buckets", [1, 7, 64, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(softmax: bool, n_buckets: int, dtype: Any, plain: pytest.MonkeyPatch) -> None:
    z = rand(2, 3, n_buckets, dtype=dtype)
    expected, found = z.clone(), z.clone()
    expected_loss = gradient_(expected, wanted(2, 3, n_buckets), softmax=softmax)
    use(plain)
    found_loss = gradient_(found, wanted(2, 3, n_buckets), softmax=softmax)
    torch.testing.assert_close(found_loss, expected_loss, rtol=1e-4, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("n_buckets", [1, 7, 5000])
def test_kernels_add_biases_on_the_way(softmax: bool, n_buckets: int, plain: pytest.MonkeyPatch) -> None:
    z, bias = rand(2, 3, n_buckets), rand(2, n_buckets, seed=5)
    expected = z + bias[:, None]
    expected_loss = gradient_(expected, wanted(2, 3, n_buckets), softmax=softmax)
    use(plain)
    found_loss = gradient_(z, wanted(2, 3, n_buckets), softmax=softmax, bias=bias)
    torch.testing.assert_close(found_loss, expected_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("at_a_time", [0, 4])
def test_whole_steps(kind: str, hidden: int, at_a_time: int, plain: pytest.MonkeyPatch) -> None:
    config, encoders = plain_config(loss=kind, hidden=hidden), [plain_encoder() for _ in range(3)]
    groups = [group_of(config, plain_partition(), [0, 1, 2], DEVICE, encoders) for _ in range(2)]
    if at_a_time:
        for group in groups:
            group._at_a_time, group._samples = 1, at_a_time
    for n in (20, 7, 1):
        batch = batch_of(plain_samples(*random_inputs(n, n)), DEVICE)
        with plain.context() as patch:
            expected = groups[0].train(batch, 0.3, 0)
            use(patch)
            found = groups[1].train(batch, 0.3, 0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for i in range(3):
        for name, view in groups[0].views(i).items():
            torch.testing.assert_close(groups[1].views(i)[name], view, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("softmax", [True, False])
def test_gradients_of_huge_logits_are_finite(softmax: bool, plain: pytest.MonkeyPatch) -> None:
    z = torch.tensor([[[1e4, -1e4, 0.0], [-1e30, 1e30, 1e30]]], device=DEVICE)
    use(plain)
    loss = gradient_(z, wanted(1, 2, 3), softmax=softmax)
    assert torch.isfinite(z).all()
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("width", [1, 5, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_rows(width: int, dtype: Any, plain: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(0)
    bags = np.sort(source.integers(0, 6, 40))
    offsets = np.searchsorted(bags, np.arange(6))
    arrays = (offsets, source.integers(0, 20, 40), source.normal(0, 1, 40).astype(np.float32), bags)
    rows = Rows(*(torch.from_numpy(array).to(DEVICE) for array in arrays))
    tables = [Table(20, width, DEVICE) for _ in range(2)]
    gradient = rand(6, width, dtype=dtype)
    for _ in range(2):
        tables[0].step(turned(rows), gradient, 0.3)
    use(plain)
    for _ in range(2):
        tables[1].step(turned(rows), gradient, 0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(tables[1].squares, tables[0].squares, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(tables[1].weights, tables[0].weights, rtol=tolerance, atol=tolerance)


def test_a_row_that_all_samples_have_is_stepped_by_all(plain: pytest.MonkeyPatch) -> None:
    n, values = 100, np.random.default_rng(0).normal(0, 1, 100).astype(np.float32)
    arrays = (np.arange(n), np.where(np.arange(n) % 9 == 4, 1, 0), values, np.arange(n))
    rows = Rows(*(torch.from_numpy(array).to(DEVICE) for array in arrays))
    tables = [Table(3, 700, DEVICE) for _ in range(2)]
    tables[0].step(turned(rows), rand(n, 700), 0.3)
    use(plain)
    tables[1].step(turned(rows), rand(n, 700), 0.3)
    torch.testing.assert_close(tables[1].squares, tables[0].squares, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tables[1].weights, tables[0].weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_outputs(dtype: Any, plain: pytest.MonkeyPatch) -> None:
    outputs = [Output(3, 5, 12, DEVICE, dtype) for _ in range(2)]
    gradients = OutputGradients(rand(2, 4, 12), rand(2, 5, 12, dtype=dtype), rand(2, 5, seed=2))
    gradients.weights[0, 2] = 0.0  # a bucket without a gradient
    for _ in range(2):
        outputs[0].step(slice(1, 3), gradients, 0.3)
    use(plain)
    for _ in range(2):
        outputs[1].step(slice(1, 3), gradients, 0.3)
    for name, tolerance in (("weights", 1e-5), ("squares", 1e-5), ("_copy", 1e-2)):  # the copy is rounded
        torch.testing.assert_close(getattr(outputs[1], name), getattr(outputs[0], name), rtol=tolerance, atol=tolerance)
    assert outputs[1].weights[0].count_nonzero() == 0
    assert outputs[1].weights[1, 2].count_nonzero() == 0


# ---- the k best


def best(n_labels: int, z: Any, k: int, **changed: Any) -> Any:
    partition = HashPartition(n_labels, z.shape[2], z.shape[1], 3)
    return top_k.top_k(z, partition, k, **{"loss": "softmax", "estimator": "log-probability", **changed})


@pytest.mark.parametrize("estimator", ["log-probability", "mean", "min", "median"])
@pytest.mark.parametrize("first", [64, 300])
def test_sifting_finds_the_same_as_looking_at_all(first: int, estimator: str, plain: pytest.MonkeyPatch) -> None:
    z, seen = rand(5, 3, 40), np.packbits(np.arange(3000) % 5 != 2, bitorder="little")
    expected = best(3000, z, 8, seen=seen, estimator=estimator)
    use(plain)
    plain.setattr(top_k, "_FIRST", first)
    found = best(3000, z, 8, seen=seen, estimator=estimator)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def test_sifting_copes_with_scores_that_are_all_the_same(plain: pytest.MonkeyPatch) -> None:
    use(plain)
    plain.setattr(top_k, "_FIRST", 64)
    plain.setattr(top_k, "_ROOM_TIMES", 2)
    ids, _ = best(1500, torch.zeros((2, 2, 10), device=DEVICE), 9)
    assert ids.tolist() == [list(range(9))] * 2


def test_sifting_where_fewer_are_seen_than_asked_for(plain: pytest.MonkeyPatch) -> None:
    use(plain)
    plain.setattr(top_k, "_FIRST", 64)
    seen = np.packbits(np.isin(np.arange(900), [3, 700, 899]), bitorder="little")
    ids, scores = best(900, rand(2, 2, 10), 5, seen=seen)
    assert [sorted(row) for row in ids.tolist()] == [[-1, -1, 3, 700, 899]] * 2
    assert np.isinf(scores[:, 3:]).all()


@pytest.mark.parametrize("n_labels", [2, 3, 1000])
def test_few_labels(n_labels: int, plain: pytest.MonkeyPatch) -> None:
    z = rand(3, 2, 2)
    expected = best(n_labels, z, 4)
    use(plain)
    plain.setattr(top_k, "_FIRST", 1)
    np.testing.assert_array_equal(best(n_labels, z, 4)[0], expected[0])


# ---- where Triton does not work


class Broken:
    """Kernels that cannot be compiled."""

    @staticmethod
    def sigmoid_(z: Any, weights: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nMore of it.")


def test_where_kernels_cannot_be_compiled_plain_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zeros, ones = torch.zeros, torch.ones
    monkeypatch.setattr(torch, "zeros", lambda *shape, device="cpu": zeros(*shape, device=DEVICE))
    monkeypatch.setattr(torch, "ones", lambda *shape, device="cpu": ones(*shape, device=DEVICE))
    with caplog.at_level("WARNING", "machxc"):
        assert fused._works(kernels)
        assert not fused._works(Broken)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("plain PyTorch computes instead, slower (Failed to find C compiler.)")


# ---- what an interpreter does not tell: that they compile

Variant = tuple[str, dict[str, str], dict[str, Any], int]
ROWS = {
    "weights": "*fp32", "squares": "*fp32", "used": "*i64", "ends": "*i64", "bags": "*i64", "shares": "*fp32",
    "gradient": "*bf16", "rate": "fp32", "width": "i32",
}  # fmt: skip
OUTPUTS = {
    "weights": "*fp32", "squares": "*fp32", "gradient": "*bf16", "copy": "*bf16", "rate": "fp32", "width": "i32",
}  # fmt: skip
SIFT = {
    "values": "*fp32", "parameters": "*i64", "thresholds": "*fp32", "counts": "*i32", "found": "*i64", "seen": "*u8",
    "start": "i32", "stop": "i32", "n": "i32", "room": "i32", "n_buckets": "i32", "n_repetitions": "i32",
}  # fmt: skip


def variants() -> Iterator[Variant]:
    """Kernels as they are started: types of their arguments, constants, warps."""
    for dtype in ("*bf16", "*fp32"):
        for block in (64, 4096):
            z = {"z": dtype, "bias": "*fp32", "weights": "*fp32", "n": "i32", "n_buckets": "i32"}
            for bias in (True, False):
                constants = {"BLOCK": block, "BIAS": bias}
                yield "_softmax", {**z, "normalisers": "*fp32"}, constants, kernels._warps(block)
                yield "_sigmoid", z, constants, kernels._warps(block)
        for block, bags in ((64, 8), (512, 8), (2048, 4), (8192, 1)):
            constants = {"BLOCK": block, "BAGS": bags}
            yield "_step_rows", {**ROWS, "gradient": dtype}, constants, kernels._warps(block * bags // 2)
        for block in (64, 2048, 8192):
            yield (
                "_step_outputs",
                {**OUTPUTS, "gradient": dtype, "copy": dtype},
                {"BLOCK": block},
                kernels._warps(block),
            )
    for bits, size, seen, least, queries in (
        (26, "i32", True, False, 32), (26, "i32", False, True, 32), (32, "i64", True, True, 1),
        (2, "i32", False, False, 8),
    ):  # fmt: skip
        constants = {"BITS": bits, "SHIFT": (bits + 1) // 2, "SEEN": seen, "LEAST": least, "QUERIES": queries}
        types = {**SIFT, "start": size, "stop": size, "seen": "*u8" if seen else "*i32"}
        yield "_sift", types, {**constants, "LABELS": min(512, 2048 // queries)}, 4


COMPILE = """
import ast, json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from machxc.torch import kernels

for name, types, constants, warps in ast.literal_eval(sys.argv[1]):
    jitted = getattr(kernels, name)
    types = {argument: types.get(argument, "constexpr") for argument in jitted.arg_names}
    source = ASTSource(jitted, types, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"], name
    print(json.dumps([name, made.metadata.shared, made.asm["ptx"]]))
"""
LARGEST_SHARED = 227 << 10  # bytes of a program on sm_90


def first_of_each() -> list[Variant]:
    """One variant of each kernel."""
    return list({variant[0]: variant for variant in reversed(list(variants()))}.values())


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
@pytest.mark.parametrize("which", [first_of_each, pytest.param(variants, marks=pytest.mark.slow)])
def test_they_compile_for_a_gpu_that_is_not_there(which: Callable[[], Iterable[Variant]], tmp_path: Path) -> None:
    given = list(which())
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, repr(given)]
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in found] == [name for name, *_ in given]
    for name, shared, assembly in found:
        assert shared < LARGEST_SHARED, name
        stores = spilled(assembly, tmp_path)
        assert stores in (None, 0), f"{name} has no registers for {stores} bytes"


def spilled(assembly: str, folder: Path) -> int | None:
    """The bytes that a kernel's threads have no registers for, by the assembler that came with Triton, if one can."""
    import triton

    (folder / "kernel.ptx").write_text(assembly)
    for assembler in sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*")):
        command = [str(assembler), "-v", "--gpu-name=sm_90a", str(folder / "kernel.ptx"), "-o", str(folder / "kernel")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        match = re.search(r"(\d+) bytes spill stores", done.stderr)
        if not done.returncode and match is not None:
            return int(match[1])
    return None
