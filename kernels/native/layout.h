// The shape that the core is compiled for, and where each thing stands.
// L tokens, D channels, HM and F hidden units of mixer and channel SwiGLU, BLOCKS of a core, UPDATES of the low level.
#pragma once
#include "products.h"

constexpr int T = (L + 1) / 2 * 2, TN = (T + 15) / 16 * 16;  // tokens in pairs, and in vectors
constexpr int GROUP = 4;                                     // trajectories whose channel products are made together
constexpr int GR = (GROUP * L + 1) / 2 * 2;                  // their tokens, one after another, in pairs
constexpr int GP = 2 * F + 16;                               // rows of pairs, apart in the sets of the cache
constexpr int CALLS = UPDATES + 1;

// What a packed block holds, in bf16: the mixer's gate_up [2 HM, T] and down [T, HM], each also transposed; the
// channel's gate_up by panels of 32 units (gates, ups) and, for gradients, of 32 channels; its down by panels of 32
// channels and, for gradients, of 32 units. The innermost index of a panel is a pair of what is summed over.
constexpr int64_t MGU = 0, MGUT = MGU + 2 * HM * T, MDN = MGUT + 2 * HM * T, MDNT = MDN + HM * T, CGU = MDNT + HM * T,
                  CGUB = CGU + 2 * F * D, CDN = CGUB + 2 * F * D, CDNB = CDN + F * D, PACKED = CDNB + F * D;
// What a block saves of a group, in bf16: its input (of the first block) [GR, D]; of the mixer's hidden units
// silu(gate) and what makes their gradient that of the gate ("slope"), by panels of channels [GROUP, panel, HM, 2],
// and themselves [GROUP, HM, D]; the first norm [GR, D]; of the channel's hidden units cells [F / 32, GR / 2, CELL] of
// 32 units and two tokens: silu and slope of each token, and the units as pairs; the result [GR, D]. The gradients read
// panels and cells one after another, which memory does best.
constexpr int CELL = 6 * 32;
constexpr int64_t SX = 0, SM = SX + GR * D, SMH = SM + 2 * GROUP * HM * D, SX1 = SMH + GROUP * HM * D,
                  SC = SX1 + GR * D, SX2 = SC + F / 32 * (GR / 2) * CELL, SAVED = SX2 + GR * D;
constexpr int64_t NORMS = 2 * GR;  // fp32: the factors of both norms
// Gradients of a block, fp32: the mixer's in the shapes that are multiplied ([2 HM, TN], down transposed [HM, TN]);
// the channel's gate_up, and down transposed [F, D].
constexpr int64_t GMGU = 0, GMDN = GMGU + 2 * HM * TN, GCGU = GMDN + HM * TN, GCDN = GCGU + 2 * F * D,
                  GRADS = GCDN + F * D;

// What the passes of one thread work on.
struct alignas(64) Scratch {
  float sum[GR * D], grad[GR * D], high[GR * D], injected[GR * D];
  bf16 ds[GR * D], hidden[GR * F], dgu[GR * 2 * F];         // by tokens
  pair dsp[GR / 2 * D], xp[GR / 2 * D], dgup[GR / 2 * GP];  // by pairs of tokens
  // One trajectory's mixer: input and gradient by pairs of tokens and, transposed, of channels; hidden units.
  pair mixx[T / 2 * D], mixds[T / 2 * D], xt[D / 2 * TN], dst[D / 2 * TN];
  pair mixh[HM / 2 * D], mixp[HM * D];
  bf16 mixdgu[2 * HM * D];
};
