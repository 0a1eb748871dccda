// The token mixer of one trajectory [L, D], and its gradients.
#pragma once
#include "norms.h"

// Two hidden units of 16 NV channels: pairs of themselves, and (with SAVES) what is saved of them.
template <int NV, bool SAVES>
INLINE void mixer_tile(const bf16* w, const pair* xp, bf16* panel, bf16* hiddens, pair* hp, int i, int d) {
  __m512 acc[4][NV];
  zero(acc);
  const pair* gate = (const pair*)w + i * (T / 2);
  multiply<2, 2, NV, T / 2, 1, D>(gate, gate + HM * (T / 2), xp + d, T / 2, acc);
  UNROLL for (int j = 0; j < NV; j += 2) {
    __m512i h[2];
    UNROLL for (int m = 0; m < 2; m++) {
      __m512 silu[2], hidden[2], slope[2];
      UNROLL for (int e = 0; e < 2; e++) swiglu(acc[m][j + e], acc[m + 2][j + e], silu[e], hidden[e], slope[e]);
      h[m] = narrow(hidden[0], hidden[1]);
      if (!SAVES) continue;
      bf16* to = panel + (i + m) * 32 * NV + 16 * j;
      put<true>(to, narrow(silu[0], silu[1]));
      put<true>(to + 16 * NV, narrow(slope[0], slope[1]));
      put<true>(hiddens + (i + m) * D + d + 16 * j, h[m]);
    }
    put_pairs(hp + i / 2 * D + d + 16 * j, h[0], h[1]);
  }
}
// x [L, D] -> x + mixed, fp32.
template <bool SAVES>
static void mixer_forward(const bf16* w, const bf16* x, bf16* own, float* sum, int g, Scratch& s) {
  pair_rows<D, D>(x, s.mixx, L);
  bf16 *panels = own + SM + g * 2 * HM * D, *hiddens = own + SMH + g * HM * D;
  by_vectors<D, 6>([&](auto nv, int at) {
    for (int i = 0; i < HM; i += 2)
      mixer_tile<nv, SAVES>(w + MGU, s.mixx, panels + 2 * HM * at, hiddens, s.mixh, i, at);
  });
  by_tiles<L, 12>([&](auto m, int t) {
    const pair* a = (const pair*)(w + MDN) + t * (HM / 2);
    for (int d = 0; d < D; d += 32)
      tile_plus<m, 2, HM / 2, 1, D, D>(a, s.mixh + d, HM / 2, x + t * D + d, sum + t * D + d);
  });
}
// Gradients of four hidden units' gates and ups of 16 NV channels: by rows and by pairs of units.
template <int NV>
INLINE void mixer_back_tile(const bf16* w, const pair* dsp, const bf16* panel, const bf16* hiddens, bf16* dgu,
                            pair* dgup, int i, int d) {
  __m512 acc[4][NV];
  zero(acc);
  // Three tiles ahead: memory takes longer than one.
  constexpr int FETCH = (4 * 2 * 32 * NV + T / 2 - 1) / (T / 2);
  const bf16* rows = panel + i * 32 * NV;
  ask<4, 32 * NV, D, false>(hiddens + i * D + d);
  multiply<4, 0, NV, T / 2, 1, D, FETCH>((const pair*)w + i * (T / 2), nullptr, dsp + d, T / 2, acc,
                                         rows + 12 * 32 * NV);
  UNROLL for (int m = 0; m < 4; m += 2) UNROLL for (int j = 0; j < NV; j += 2) {
    __m512i dg[2], du[2];
    int64_t at = (i + m) * D + d + 16 * j;
    UNROLL for (int e = 0; e < 2; e++) {
      const bf16 *silu = rows + (m + e) * 32 * NV + 16 * j, *slope = silu + 16 * NV;
      __m512 first = acc[m + e][j], second = acc[m + e][j + 1];
      dg[e] = narrow(_mm512_mul_ps(first, widen(slope)), _mm512_mul_ps(second, widen(slope + 16)));
      du[e] = narrow(_mm512_mul_ps(first, widen(silu)), _mm512_mul_ps(second, widen(silu + 16)));
      put(dgu + at + e * D, dg[e]);
      put(dgu + (HM + e) * D + at, du[e]);
    }
    pair* to = dgup + (i + m) / 2 * D + d + 16 * j;
    put_pairs(to, dg[0], dg[1]);
    put_pairs(to + HM / 2 * D, du[0], du[1]);
  }
}
// From the gradient of the norm's input (`ds`, and `s.mixds` its pairs): that of x, and the weights'.
static void mixer_backward(const bf16* w, const bf16* x, const bf16* own, const bf16* ds, float* grad, float* grads,
                           int g, Scratch& s) {
  const bf16 *panels = own + SM + g * 2 * HM * D, *hiddens = own + SMH + g * HM * D;
  by_vectors<D, 6>([&](auto nv, int at) {
    for (int i = 0; i < HM; i += 4)
      mixer_back_tile<nv>(w + MDNT, s.mixds, panels + 2 * HM * at, hiddens, s.mixdgu, s.mixp, i, at);
  });
  by_tiles<L, 12>([&](auto m, int t) {
    const pair* a = (const pair*)(w + MGUT) + t * HM;
    for (int d = 0; d < D; d += 32)
      tile_plus<m, 2, HM, 1, D, D>(a, s.mixp + d, HM, ds + t * D + d, grad + t * D + d);
  });
  transpose_pairs(x, s.xt);
  transpose_pairs(ds, s.dst);
  add_product<4, 4, 6, TN, D / 2, 1, TN>(2 * HM, (const pair*)s.mixdgu, s.xt, D / 2, grads + GMGU);
  add_product<4, 4, 6, TN, D / 2, 1, TN>(HM, (const pair*)hiddens, s.dst, D / 2, grads + GMDN);
}
