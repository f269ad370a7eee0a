"""``clipvis compile-check``: what is read from compiled programs, and a compilation for TPUs where libtpu is there."""

import dataclasses
import importlib.util
import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from clipvis_jax.cli import main
from clipvis_jax.commands.compile_check import format_report
from clipvis_jax.compilation.check import CompileReport, Memory, compile_step, model_of, parse_out_of_memory
from clipvis_jax.compilation.gpu_profile import find_kernels
from clipvis_jax.compilation.hlo_collectives import Collectives, find_collectives
from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.errors import InputError
from clipvis_jax.loop.matmul_flops import count_matmul_flops
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.matching import MatchingConfig
from clipvis_jax.training.step import TrainingConfig
from clipvis_jax.training.task import ClipVisExperiment
from clipvis_jax.weights import published_sizes

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None

CONFIG = """
from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.task import ClipVisExperiment
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.matching import MatchingConfig
from clipvis_jax.training.step import TrainingConfig

config = ClipVisExperiment(
    data=PipelineConfig(batch_size=4, image_size=(64, 64), max_instances=3),
    pixel_decoder=PixelDecoderConfig(dim=32, mask_dim=32, num_layers=1, ffn_dim=32),
    query_decoder=QueryDecoderConfig(num_queries=5, num_layers=1, dim=32, mask_dim=32, ffn_dim=32),
    step=TrainingConfig(losses=LossConfig(num_points=16, matching=MatchingConfig(method="device"))),
)
"""
"""A tiny training."""

# Recorded from the TPU compiler (libtpu 0.0.52) and shortened. One all-gather runs in a loop of eight rounds and is
# written twice, in the two halves that overlap with computation; the loop in which nothing says how long it is counts
# once. A fused computation holds the one reduce-scatter; what nothing calls does not count.
HLO = """HloModule jit_step, is_scheduled=true, num_partitions=4

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b), metadata={op_name="jit(step)/all-reduce(x)"}
}

%async_start.1 (param_0.1: f32[1,1344,32]) -> f32[4,1344,32] {
  %param_0.1 = f32[1,1344,32]{1,2,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.7 = f32[4,1344,32]{1,2,0:T(8,128)S(1)} all-gather(%param_0.1), channel_id=11, dimensions={0}
}

%async_done.1 (param_0.2: f32[1,1344,32]) -> f32[4,1344,32] {
  %param_0.2 = f32[1,1344,32]{1,2,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.8 = f32[4,1344,32]{1,2,0:T(8,128)S(1)} all-gather(%param_0.2), channel_id=11, dimensions={0}
}

%body.1 (arg.1: (s32[], f32[1,1344,32])) -> (s32[], f32[1,1344,32]) {
  %arg.1 = (s32[]{:T(128)}, f32[1,1344,32]{2,1,0:T(8,128)}) parameter(0)
  %gte.1 = f32[1,1344,32]{1,2,0:T(8,128)S(1)} get-tuple-element(%arg.1), index=1
  %fusion.1 = f32[4,1344,32]{1,2,0} fusion(%gte.1), kind=kCustom, calls=%async_start.1
  %fusion.2 = f32[4,1344,32]{1,2,0} fusion(%gte.1), kind=kCustom, calls=%async_done.1
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[1,1344,32]{2,1,0:T(8,128)}) tuple(%gte.1)
}

%condition.1 (arg.2: (s32[], f32[1,1344,32])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(8)
  %arg.2 = (s32[]{:T(128)}, f32[1,1344,32]{2,1,0:T(8,128)}) parameter(0)
  %gte.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.2, %constant.1), direction=LT
}

%body.2 (arg.3: (pred[], u8[16])) -> (pred[], u8[16]) {
  %arg.3 = (pred[]{:T(512)}, u8[16]{0}) parameter(0)
  %gte.3 = u8[16]{0} get-tuple-element(%arg.3), index=1
  %permute.1 = u8[16]{0} collective-permute(%gte.3), channel_id=21, source_target_pairs={{0,1},{1,0}}
  ROOT %tuple.2 = (pred[]{:T(512)}, u8[16]{0}) tuple(%gte.3, %permute.1)
}

%condition.2 (arg.4: (pred[], u8[16])) -> pred[] {
  %arg.4 = (pred[]{:T(512)}, u8[16]{0}) parameter(0)
  ROOT %gte.4 = pred[]{:T(512)} get-tuple-element(%arg.4), index=0
}

%scattered.1 (param_0.3: bf16[8,128]) -> bf16[2,128] {
  %param_0.3 = bf16[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.1 = bf16[2,128]{1,0} reduce-scatter(%param_0.3), channel_id=31, to_apply=%region_0.1
}

%unused.1 (param_0.4: f32[64]) -> f32[64] {
  %param_0.4 = f32[64]{0} parameter(0)
  ROOT %all-reduce.9 = f32[64]{0} all-reduce(%param_0.4), channel_id=41, to_apply=%region_0.1
}

ENTRY %main.1 (p.0: f32[256,256], p.1: f32[7], p.2: bf16[8,128]) -> f32[256,256] {
  %p.0 = f32[256,256]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[7]{0:T(128)S(1)} parameter(1)
  %p.2 = bf16[8,128]{1,0:T(8,128)} parameter(2)
  %all-reduce.1 = (f32[256,256]{1,0:T(8,128)}, /*index=1*/f32[7]{0:T(128)S(1)}) all-reduce(%p.0, %p.1), channel_id=1, \
replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%region_0.1, metadata={op_name="jit(step)/psum"}
  %ags.1 = (f32[7]{0}, f32[28]{0}) all-gather-start(%p.1), channel_id=2, dimensions={0}
  %agd.1 = f32[28]{0} all-gather-done(%ags.1)
  %fusion.3 = bf16[2,128]{1,0} fusion(%p.2), kind=kCustom, calls=%scattered.1
  %init.1 = (s32[]{:T(128)}, f32[1,1344,32]{2,1,0:T(8,128)}) tuple(%p.0)
  %while.1 = (s32[]{:T(128)}, f32[1,1344,32]{2,1,0:T(8,128)}) while(%init.1), condition=%condition.1, body=%body.1
  %while.2 = (pred[]{:T(512)}, u8[16]{0}) while(%init.1), condition=%condition.2, body=%body.2
  ROOT %copy.1 = f32[256,256]{1,0:T(8,128)} copy(%p.0)
}
"""


def test_collectives_of_a_recorded_program():
    assert find_collectives(HLO) == (
        Collectives("all-reduce", instructions=1, executions=1, size=4 * (256 * 256 + 7)),
        Collectives("all-gather", instructions=2, executions=9, size=8 * 4 * 1344 * 32 * 4 + 28 * 4),
        Collectives("reduce-scatter", instructions=1, executions=1, size=8 * 128 * 2),
        Collectives("collective-permute", instructions=1, executions=1, size=16),
    )


def test_collectives_of_a_program_compiled_here():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def on_device(x):
        def add(total, row):
            return total + jax.lax.psum(row, "x"), None

        total, _ = jax.lax.scan(add, jnp.zeros(6), x)
        return jax.lax.all_gather(total, "x")

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=P(None, "x"), out_specs=P("x"), check_vma=False)
    found = find_collectives(jax.jit(mapped).lower(jnp.zeros((5, 24))).compile().as_text())
    assert found == (
        Collectives("all-reduce", instructions=1, executions=5, size=5 * 6 * 4),
        Collectives("all-gather", instructions=1, executions=1, size=4 * 6 * 4),
    )


def test_products_are_counted_in_loops_branches_and_on_all_devices():
    a, b, kernel = jnp.zeros((3, 4)), jnp.zeros((4, 5)), jnp.zeros((3, 3, 4, 8))
    assert count_matmul_flops(jax.make_jaxpr(jnp.dot)(a, b)) == 2 * 3 * 4 * 5

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ jnp.ones((4, 4)), None), x, None, length=7)

    assert count_matmul_flops(jax.make_jaxpr(jax.jit(loop))(a)) == 7 * 2 * 3 * 4 * 4

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ b, lambda x: (x @ b) + (x @ b), x)

    assert count_matmul_flops(jax.make_jaxpr(branch)(a)) == 2 * 2 * 3 * 4 * 5

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    image = jnp.zeros((2, 16, 16, 4))
    forward = 2 * (2 * 8 * 8 * 8) * (3 * 3 * 4)
    assert count_matmul_flops(jax.make_jaxpr(convolve)(image, kernel)) == forward
    both = jax.make_jaxpr(lambda x, k, y: jax.vjp(convolve, x, k)[1](y))(image, kernel, jnp.zeros((2, 8, 8, 8)))
    assert count_matmul_flops(both) == 3 * forward

    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(lambda x: x @ b, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert count_matmul_flops(jax.make_jaxpr(mapped)(jnp.zeros((8, 4)))) == 2 * 8 * 4 * 5


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (24.45G) exceeds available HBM (15.75G). HLO module: jit_step.",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 24.45G of 15.75G hbm. Exceeded hbm capacity by 8.70G.",
    ],
)
def test_what_the_compiler_says_when_memory_is_short(message):
    assert parse_out_of_memory(message) == (round(24.45 * 2**30), round(15.75 * 2**30))


def test_other_words_of_the_compiler_are_not_taken_for_it():
    assert parse_out_of_memory("INTERNAL: something else") == (None, None)


# --- the training step


@pytest.fixture
def tiny_backbone(monkeypatch):
    """Make RN50 a tiny network."""
    monkeypatch.setitem(published_sizes.BACKBONES, "RN50", ResNetConfig(depths=(1, 1, 1, 1), width=8, embed_dim=16))
    monkeypatch.setitem(
        published_sizes.TEXT_TOWERS, "RN50", TextConfig(width=16, num_heads=2, num_layers=1, embed_dim=16)
    )


def experiment(batch_size=4):
    return ClipVisExperiment(
        data=PipelineConfig(batch_size=batch_size, image_size=(64, 64), max_instances=3),
        pixel_decoder=PixelDecoderConfig(dim=32, mask_dim=32, num_layers=1, ffn_dim=32),
        query_decoder=QueryDecoderConfig(num_queries=5, num_layers=1, dim=32, mask_dim=32, ffn_dim=32),
        step=TrainingConfig(losses=LossConfig(num_points=16, matching=MatchingConfig(method="device"))),
    )


def test_a_step_sends_its_gradients_and_sums_and_nothing_else(tiny_backbone):
    report = compile_step(experiment(), jax.devices()[:4], "here")
    assert report.num_chips == 4
    assert report.memory.fits
    assert report.memory.total >= report.memory.arguments + report.memory.temporaries
    assert report.matmul_flops > 0
    params = jax.eval_shape(model_of(experiment()).init_decoders, jax.random.key(0))
    parameters = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert [found.kind for found in report.collectives] == ["all-reduce"]
    assert report.collectives[0].size == pytest.approx(parameters, rel=0.01)


def test_a_step_is_not_compiled_for_a_batch_that_chips_do_not_divide(tiny_backbone):
    with pytest.raises(InputError, match=r"data.batch_size 6: must be a multiple of 4"):
        compile_step(experiment(6), jax.devices()[:4], "here")
    with pytest.raises(InputError, match="choose a backbone"):
        compile_step(dataclasses.replace(experiment(), backbone=None), jax.devices()[:4], "here")


# --- programs for GPUs

# Shortened from what XLA writes for an H100. A loop of eight rounds starts a look-up, a product and a library call in
# each; what is inside a fusion starts nothing of its own, and loops of known length do not compute their condition.
GPU_HLO = """HloModule jit_step, is_scheduled=true

%fused_gather (p: f32[100,4], q: s32[8]) -> f32[8,4] {
  %p = f32[100,4]{1,0} parameter(0)
  %q = s32[8]{0} parameter(1)
  %inner = s32[8]{0} fusion(%q), kind=kLoop, calls=%fused_copy
  ROOT %gather.1 = f32[8,4]{1,0} gather(%p, %inner), offset_dims={1}
}

%fused_copy (x: s32[8]) -> s32[8] {
  %x = s32[8]{0} parameter(0)
  ROOT %copy.1 = s32[8]{0} copy(%x)
}

%body (t: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %t = (s32[], f32[100,4]{1,0}) parameter(0)
  %table = f32[100,4]{1,0} get-tuple-element(%t), index=1
  %rows = s32[8]{0} get-tuple-element(%t), index=0
  %found = f32[8,4]{1,0} fusion(%table, %rows), kind=kLoop, calls=%fused_gather, metadata={op_name="jit(step)/jvp()/while/body/gather"}, backend_config={"reification_cost":[{"exec_time_us":0.5}]}
  %dot = f32[8,8]{1,0} fusion(%found, %found), kind=kCustom, calls=%gemm, metadata={op_name="jit(step)/transpose(jvp())/PixelDecoder/layer3/attention/output/dot_general"}, backend_config={"kind":"__triton_nested_gemm_fusion"}
  ROOT %sort = (s32[], f32[100,4]{1,0}) custom-call(%t), custom_call_target="sort"
}

%condition (t: (s32[], f32[100,4])) -> pred[] {
  %t.1 = (s32[], f32[100,4]{1,0}) parameter(0)
  ROOT %less = pred[] fusion(%t.1), kind=kLoop, calls=%fused_copy
}

ENTRY %main (a: (s32[], f32[100,4])) -> s32[8] {
  %a = (s32[], f32[100,4]{1,0}) parameter(0)
  %loop = (s32[], f32[100,4]{1,0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %index = s32[8]{0} get-tuple-element(%loop), index=0
  ROOT %moved = s32[8]{0} fusion(%index), kind=kLoop, calls=%fused_copy, metadata={op_name="jit(step)/add"}
}
"""  # noqa: E501


def test_kernels_of_a_program_for_a_gpu():
    kernels = {(row.part, row.kind): row for row in find_kernels(GPU_HLO)}
    looked_up = kernels["matching and losses, in loops, forward", "look-ups"]
    assert (looked_up.executions, looked_up.bytes, looked_up.estimated_us) == (8, 8 * (128 + 1600 + 32), 4.0)
    assert kernels["deformable attention, backward", "products"].executions == 8
    assert kernels["optimizer and the rest", "library calls"].executions == 8
    assert kernels["optimizer and the rest", "copies"].executions == 1
    assert sum(row.executions for row in kernels.values()) == 25


@pytest.mark.parametrize("topology", ["h100", "b200:0", "a100:2x4", "h200:many"])
def test_gpus_are_counted(topology, config, capsys):
    assert main(["compile-check", str(config), "--topology", topology]) == 2
    name = topology.partition(":")[0]
    assert f"--topology {topology}: give the number of GPUs, such as {name}:8" in capsys.readouterr().err


def test_without_the_compiler_for_gpus_the_extra_is_named(config, monkeypatch, capsys):
    def fail(**_):
        raise RuntimeError("no plugin")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", fail)
    assert main(["compile-check", str(config), "--topology", "h100:8"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'clipvis-jax[gpu-check]'" in error
    assert error.count("\n") == 1


def test_a_profile_is_of_gpus(config, capsys):
    assert main(["compile-check", str(config), "--topology", "v5e:2x2", "--profile", "True"]) == 2
    assert "--profile: is there for GPUs alone" in capsys.readouterr().err


# --- the command


REPORT = CompileReport(
    topology="v5e:16x16",
    chip="TPU v5 lite",
    num_chips=256,
    batch_size=512,
    memory=Memory(2**30, 0, 2**31, 2**20, 2**30 + 2**31 + 2**20, round(15.75 * 2**30)),
    matmul_flops=1.5e12,
    compiler_flops=2e12,
    bytes_accessed=3e10,
    collectives=(Collectives("all-reduce", 3, 9, 80 * 2**20),),
    kernels=None,
    trace_seconds=10.2,
    compile_seconds=321.0,
)
TOO_LARGE = dataclasses.replace(
    REPORT, memory=Memory(None, None, None, None, 20 * 2**30, 16 * 2**30), collectives=None, compiler_flops=None
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_the_table():
    table = format_report(REPORT)
    assert "256 x TPU v5 lite (v5e:16x16)" in table
    assert "512 in the global batch, 2 per chip" in table
    assert "3.00 GiB of 15.75 GiB: fits, 12.75 GiB to spare" in table
    assert "9 (3 in the program), 80.0 MiB" in table
    assert "2e+12 FLOP, 3e+10 bytes accessed" in table
    assert "FLOP," not in format_report(dataclasses.replace(REPORT, compiler_flops=None, bytes_accessed=None))
    assert "20.00 GiB of 16.00 GiB: does not fit, 4.00 GiB too much" in format_report(TOO_LARGE)


def test_the_command_prints_and_writes_a_report(config, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(
        "clipvis_jax.commands.compile_check.check_compilation", lambda *options: asked.append(options) or REPORT
    )
    file = tmp_path / "report.json"
    options = ["--topology", "v5e:16x16", "--data.batch-size", "512", "--json", str(file)]
    assert main(["compile-check", str(config), *options]) == 0
    assert asked[0][0].data.batch_size == 512
    assert asked[0][1] == "v5e:16x16"
    assert capsys.readouterr().out == format_report(REPORT) + "\n"
    content = json.loads(file.read_text())
    assert content["memory"]["temporaries"] == 2**31
    assert content["fits"] is True
    assert content["collectives"] == [{"kind": "all-reduce", "instructions": 3, "executions": 9, "size": 80 * 2**20}]
    assert content["config"]["data"]["batch_size"] == 512
    assert "jax" in content["versions"]


def test_the_command_fails_if_the_step_does_not_fit(config, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("clipvis_jax.commands.compile_check.check_compilation", lambda *_: TOO_LARGE)
    file = tmp_path / "report.json"
    assert main(["compile-check", str(config), "--topology", "v5e:16x16", "--json", str(file)]) == 2
    captured = capsys.readouterr()
    assert "4.00 GiB too much" in captured.out
    assert "--step.remat" in captured.err
    assert captured.err.count("\n") == 1
    assert json.loads(file.read_text())["fits"] is False


@pytest.mark.parametrize(("options", "expected"), [([], None), (["--effort", "least"], "O1")])
def test_the_compilers_effort(options, expected, config, monkeypatch):
    """The setting is one that every allowed version of JAX has."""
    before, levels = jax.config.jax_optimization_level, []

    def check(*_):
        levels.append(jax.config.jax_optimization_level)
        return REPORT

    monkeypatch.setattr("clipvis_jax.commands.compile_check.check_compilation", check)
    try:
        assert main(["compile-check", str(config), "--topology", "v5e:16x16", *options]) == 0
    finally:
        jax.config.update("jax_optimization_level", before)
    assert levels == [expected or before]


def test_without_libtpu_the_extra_is_named(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main(["compile-check", str(config), "--topology", "v5e:2x2"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'clipvis-jax[tpu]'" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:3x5"])
def test_an_unknown_topology_is_named(topology, config, capsys):
    assert main(["compile-check", str(config), "--topology", topology]) == 2
    error = capsys.readouterr().err
    assert f"--topology {topology}: unknown" in error
    assert "v5e:16x16" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.slow
def test_a_tiny_step_compiles_for_tpus(tiny_backbone, config, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert main(["compile-check", str(config), "--topology", "v5e:2x2", "--json", str(file)]) == 0
    assert "fits, " in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["num_chips"] == 4
    assert content["memory"]["limit"] == round(15.75 * 2**30)
    assert [found["kind"] for found in content["collectives"]] == ["all-reduce"]
