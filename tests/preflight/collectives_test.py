"""Collectives of compiled programs: in hand-written text, and in programs for eight CPU devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.preflight import hlo
from research.preflight.collectives import group_size, traffic
from research.preflight.traffic import moved_bytes

ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def program(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(f"HloModule m\n\n{ADD}\n{before}\nENTRY %main (p: f32[8,16]) -> f32[8,16] {{\n{body}\n}}\n")


P = "%p = f32[8,16]{1,0} parameter(0)"  # 512 bytes


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 8),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", 2),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("channel_id=3", 8),
    ],
)
def test_group_sizes_in_every_notation(groups, size):
    assert group_size(f", channel_id=1, {groups}, dimensions={{0}}", 8) == size


@pytest.mark.parametrize(
    ("kind", "operation", "received"),
    [
        ("all-reduce", "f32[8,16]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add", 512 * 2 * 3 / 4),
        ("all-gather", "f32[32,16]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", 512 * 3),
        ("reduce-scatter", "f32[2,16]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add", 512 * 3 / 4),
        ("all-to-all", "f32[8,16]{1,0} all-to-all(%p), replica_groups=[1,8]<=[8], dimensions={0}", 512 * 7 / 8),
        ("collective-permute", "f32[8,16]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", 512),
    ],
)
def test_bytes_of_each_kind(kind, operation, received):
    found = traffic(program(P, f"ROOT %c = {operation}"), 8)
    assert found.received == {kind: received}
    assert found.count == {kind: 1}


def test_an_asynchronous_tuple_counts_once():
    module = program(
        P,
        "%q = bf16[4]{0} constant({...})",
        "%s = ((f32[8,16]{1,0}, bf16[4]{0}), (f32[16,16]{1,0}, /*index=1*/bf16[8]{0:T(256)S(1)})) "
        "all-gather-start(%p, %q), replica_groups=[4,2]<=[8], dimensions={0}",
        "ROOT %d = (f32[16,16]{1,0}, bf16[8]{0}) all-gather-done(%s)",
    )
    assert traffic(module, 8).received == {"all-gather": 512 + 8}


def test_the_parts_of_a_chain_count_once():
    chain = 'frontend_attributes={chain_id="0"}'

    def part(name, custom):
        return f"""%{name} (a: f32[8,16]) -> f32[16,16] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %g.{name} = f32[16,16]{{1,0}} all-gather(%a), channel_id=9, replica_groups=[4,2]<=[8], {chain}
  ROOT %r.{name} = f32[16,16]{{1,0}} custom-call(%g.{name}), custom_call_target="{custom}"
}}
"""

    module = program(
        P,
        "%one = f32[16,16]{1,0} fusion(%p), kind=kCustom, calls=%first",
        "ROOT %two = f32[16,16]{1,0} fusion(%p), kind=kCustom, calls=%second",
        before=part("first", "AsyncCollectiveStart") + "\n" + part("second", "AsyncCollectiveDone"),
    )
    assert traffic(module, 8).received == {"all-gather": 512}


LOOP = """%body (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %a = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %r = f32[8,16]{1,0} all-reduce(%a), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %o = (s32[], f32[8,16]{1,0}) tuple(%i, %r)
}

%condition (t.1: (s32[], f32[8,16])) -> pred[] {
  %t.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(24)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  ROOT %l = pred[] compare(%i.1, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    ("note", "before", "times", "unknown"),
    [
        ("", LOOP, 24, 0),
        (', backend_config={"known_trip_count":{"n":"7"}}', LOOP, 7, 0),
        ("", LOOP.replace("direction=LT", "direction=NE"), 1, 1),
    ],
)
def test_loops(note, before, times, unknown):
    module = program(
        P,
        "%z = s32[] constant(0)",
        "%t0 = (s32[], f32[8,16]{1,0}) tuple(%z, %p)",
        f"%w = (s32[], f32[8,16]{{1,0}}) while(%t0), condition=%condition, body=%body{note}",
        "ROOT %x = f32[8,16]{1,0} get-tuple-element(%w), index=1",
        before=before,
    )
    found = traffic(module, 8)
    assert found.received == {"all-reduce": times * 512 * 2 * 7 / 8}
    assert found.unknown == unknown
    assert moved_bytes(module) == times * 2 * 512  # read and written


def test_only_slices_and_the_main_memory_count_as_moved():
    before = """%slicing (a.2: f32[6,8,16], i.2: s32[]) -> f32[8,16] {
  %a.2 = f32[6,8,16]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %z.2 = s32[] constant(0)
  %s.2 = f32[1,8,16]{2,1,0} dynamic-slice(%a.2, %i.2, %z.2, %z.2), dynamic_slice_sizes={1,8,16}
  ROOT %b.2 = f32[8,16]{1,0} bitcast(%s.2)
}
"""
    module = program(
        P,
        "%big = f32[6,8,16]{2,1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "%f = f32[8,16]{1,0:S(1)} fusion(%big, %i), kind=kLoop, calls=%slicing",  # reads the slice and its place
        "ROOT %g = f32[8,16]{1,0} add(%p, %f)",  # reads %p, and writes
        before=before,
    )
    assert moved_bytes(module) == 512 + 4 + 512 + 512


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def compiled(mesh, function, spec_in, spec_out):
    def place(spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    step = jax.jit(function, in_shardings=place(spec_in), out_shardings=place(spec_out))
    return traffic(hlo.parse(step.lower(jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text()), 8)


def test_known_collectives_of_compiled_programs(mesh):
    """For eight devices, of which each has a part of 8 × 16 numbers, 512 bytes."""
    assert compiled(mesh, lambda x: x * 2, ("y", None), ()).received == {"all-gather": 128 * 3}
    assert compiled(mesh, lambda x: x * 2, (("x", "y"), None), ()).received == {"all-gather": 64 * 7}
    assert compiled(mesh, lambda x: x.sum(0), ("x", None), ()).received == {"all-reduce": 64.0}
    assert compiled(mesh, lambda x: x * 2, ("y", None), (None, "y")).received == {"all-to-all": 128 * 3 / 4}


def test_a_scan_of_all_reduces(mesh):
    def scan(x):
        def body(x, _):
            return jnp.sin(x) - x.sum(0, keepdims=True), None

        return jax.lax.scan(body, x, length=5)[0]

    found = compiled(mesh, scan, (("x", "y"), None), (("x", "y"), None))
    assert found.received == {"all-reduce": 5 * 64 * 2 * 7 / 8}
    assert found.count == {"all-reduce": 5}
    assert found.unknown == 0
