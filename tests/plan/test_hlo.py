"""What is counted in the text of compiled programs: on programs of known cost, and on lines as the compiler of TPUs writes them."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.plan import hlo, operations

N, M, L = 8, 16, 5
PRODUCT = 2.0 * N * M * M


def looped(x, weights):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(x, weights):
  for w in weights:
    x = jnp.tanh(x @ w)
  return x


def nested(x, weights):
  return jax.lax.fori_loop(0, 3, lambda i, x: looped(x, weights), x)


def until(x, weights):
  """As decoding does: at most 7 turns, fewer where the data say so."""
  more = lambda carry: (carry[0] < 8) & (carry[1][0, 0] < 1e9)
  turn = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ weights[0]))
  return jax.lax.while_loop(more, turn, (jnp.int32(1), x))[1]


def counted(function, turns=L):
  x, weights = jnp.ones((N, M)), jnp.ones((turns, M, M))
  traced = jax.jit(function).trace(x, weights)
  module = hlo.Module(traced.lower().compile().as_text())
  return module.costs(), operations.flops(traced.jaxpr.jaxpr, turns=7)


@pytest.mark.parametrize(
  "function, products", [(looped, L), (unrolled, L), (nested, 3 * L), (until, 7)]
)
def test_a_loop_costs_as_often_as_it_turns(function, products):
  costs, asked = counted(function)
  assert costs.flops == asked == products * PRODUCT
  assert costs.unknown == ()


def test_products_whose_result_nobody_asks_for_are_not_asked_for():
  def unused(x, weights):
    jax.lax.map(lambda w: (x @ w).sum(), weights)
    return x @ weights[0]

  _, asked = counted(unused)
  assert asked == PRODUCT


def test_a_loop_reads_a_slice_of_what_it_scans():
  costs, _ = counted(looped, 50)
  weights = 4 * 50 * M * M
  assert weights < costs.bytes < 8 * weights  # and not the whole of it in each of 50 turns


TPU = """HloModule step

%fused.1 (p.0: bf16[4,8], p.1: bf16[8,16]) -> f32[4,16] {
  %p.0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.2 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}
  ROOT %convolution.1 = f32[4,16]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused.2 (p.2: bf16[4,8]) -> bf16[32,8] {
  %p.2 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.3 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%scatter.1 (p.3: f32[32,8]) -> f32[4,8] {
  %p.3 = f32[32,8]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %all-reduce.4 = f32[32,8]{1,0:T(8,128)} all-reduce(%p.3), channel_id=8, replica_groups={{0,2,4,6,8,10,12,14},{1,3,5,7,9,11,13,15}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[4,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.4, %zero, %zero), dynamic_slice_sizes={4,8}
}

%batched (p.4: bf16[2,4,8], p.5: bf16[2,8,16]) -> f32[2,4,16] {
  %p.4 = bf16[2,4,8]{2,1,0} parameter(0)
  %p.5 = bf16[2,8,16]{2,1,0} parameter(1)
  ROOT %convolution.2 = f32[2,4,16]{2,1,0} convolution(%p.4, %p.5), window={size=2 stride=1 pad=0_0 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}

ENTRY %main (a: bf16[4,8], b: bf16[8,16], c: f32[32,8]) -> (f32[4,16], f32[4,8]) {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = f32[32,8]{1,0:T(8,128)} parameter(2)
  %fusion.1 = f32[4,16]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused.1, metadata={op_name="jit(step)/dot_general"}
  %fusion.2 = bf16[32,8]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%fused.2
  %fusion.3 = f32[4,8]{1,0:T(8,128)} fusion(%c), kind=kCustom, calls=%scatter.1
  %all-reduce.9 = f32[6]{0} all-reduce(%c), channel_id=9, replica_groups=[8,2]<=[16], to_apply=%add
  %slice.5 = f32[2,8]{1,0:T(8,128)} slice(%c), slice={[0:2], [0:8]}
  %copy.3.remat = f32[4,8]{1,0:T(8,128)} copy(%fusion.3)
  ROOT %tuple = (f32[4,16]{1,0:T(8,128)}, f32[4,8]{1,0:T(8,128)}) tuple(%fusion.1, %fusion.3)
}
"""


def test_collectives_of_a_tpu_are_counted_once_each_and_by_kind():
  costs = hlo.Module(TPU).costs()
  assert costs.sent == {
    "all-gather": 32 * 8 * 2 * 7 / 8,  # in two fusions under one channel
    "reduce-scatter": 32 * 8 * 4 * 7 / 8,  # written as an all-reduce and a slice
    "all-reduce": 2 * 6 * 4 * 1 / 2,  # among 2 chips
    "all-to-all": 0,
    "collective-permute": 0,
  }


def test_products_of_a_tpu_are_convolutions():
  module = hlo.Module(TPU)
  assert module.costs().flops == 2 * 4 * 8 * 16
  batched = module.computations["batched"]
  # Two products, the window's other places falling between the values of its dilated operand.
  assert hlo._flops(batched.instructions["convolution.2"], batched) == 2 * (2 * 4 * 8 * 16)


def test_what_lies_beside_the_core_is_no_traffic_and_recomputation_is_seen():
  module = hlo.Module(TPU)
  large = {"a": 4 * 8 * 2, "c": 32 * 8 * 4}
  fusions = large["a"] + 4 * 16 * 4 + large["a"] + 32 * 8 * 2 + large["c"] + 4 * 8 * 4
  rest = large["c"] + 6 * 4 + 2 * (2 * 8 * 4) + 2 * (4 * 8 * 4)  # all-reduce.9, slice and copy
  assert module.costs().bytes == fusions + rest
  assert module.recomputed() == 1
  assert [size for size, *_ in module.largest(1)] == [32 * 8 * 2]
