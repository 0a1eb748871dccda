// The channel SwiGLU of a group's tokens [rows, D], rows even, and its gradients.
#pragma once
#include "norms.h"

constexpr int AT_ONCE = 96;  // rows of a long matrix that meet all of another before the next: few stay in cache

INLINE int least(int a, int b) { return a < b ? a : b; }
// c = a w + plus [rows, D], of weights by panels of 32 channels over KP pairs.
template <int KP>
static void by_channels(const pair* a, const bf16* w, int rows, const bf16* plus, float* c) {
  for (int first = 0; first < rows; first += AT_ONCE)
    for (int d = 0; d < D; d += 32)
      by_rows<12, 6>(least(AT_ONCE, rows - first), [&](auto m, int row) {
        int t = first + row;
        tile_plus<m, 2, KP, 1, 32, D>(a + t * KP, (const pair*)w + d * KP, KP, plus + t * D + d, c + t * D + d);
      });
}
// 32 hidden units of M tokens: by tokens, and (with SAVES) what is saved of them.
template <int M, bool SAVES>
INLINE void channel_tile(const bf16* x, const pair* w, bf16* cell, bf16* hidden) {
  __m512 acc[M][4];
  zero(acc);
  multiply<M, 0, 4, D / 2, 1, 64>((const pair*)x, nullptr, w, D / 2, acc);
  UNROLL for (int m = 0; m < M; m += 2, cell += CELL) {
    __m512i h[2];
    UNROLL for (int e = 0; e < 2; e++) {
      __m512 silu[2], each[2], slope[2];
      UNROLL for (int j = 0; j < 2; j++) swiglu(acc[m + e][j], acc[m + e][2 + j], silu[j], each[j], slope[j]);
      h[e] = narrow(each[0], each[1]);
      put(hidden + (m + e) * F, h[e]);
      if (!SAVES) continue;
      put<true>(cell + 64 * e, narrow(silu[0], silu[1]));
      put<true>(cell + 64 * e + 32, narrow(slope[0], slope[1]));
    }
    if (SAVES) put_pairs<true>((pair*)(cell + 128), h[0], h[1]);
  }
}
// What is saved of 32 hidden units, `f` and on, of the tokens `t` and `t + 1`.
INLINE bf16* cell_at(bf16* own, int f, int t) { return own + SC + (f / 32 * (GR / 2) + t / 2) * CELL; }
// The first norm [rows, D] -> it + what the SwiGLU says, fp32.
template <bool SAVES>
static void channel_forward(const bf16* w, bf16* own, float* sum, int rows, Scratch& s) {
  for (int f = 0; f < F; f += 32)
    by_rows<6, 4>(rows, [&](auto m, int t) {
      channel_tile<m, SAVES>(own + SX1 + t * D, (const pair*)(w + CGU) + f * D, cell_at(own, f, t),
                             s.hidden + t * F + f);
    });
  by_channels<F / 2>((const pair*)s.hidden, w + CDN, rows, own + SX1, sum);
}
// Gradients of 32 hidden units' gates and ups of M tokens: by tokens and by pairs of tokens.
template <int M>
INLINE void channel_back_tile(const bf16* ds, const pair* w, const bf16* cell, bf16* dgu, pair* dgup) {
  __m512 acc[M][2];
  zero(acc);
  // Two tiles ahead: memory takes longer than one.
  constexpr int FETCH = (CELL * M + D / 2 - 1) / (D / 2);
  multiply<M, 0, 2, D / 2, 1, 32, FETCH>((const pair*)ds, nullptr, w, D / 2, acc, cell + CELL * M);
  UNROLL for (int m = 0; m < M; m += 2, cell += CELL) {
    __m512i dg[2], du[2];
    UNROLL for (int e = 0; e < 2; e++) {
      const bf16 *silu = cell + 64 * e, *slope = silu + 32;
      __m512 first = acc[m + e][0], second = acc[m + e][1];
      dg[e] = narrow(_mm512_mul_ps(first, widen(slope)), _mm512_mul_ps(second, widen(slope + 16)));
      du[e] = narrow(_mm512_mul_ps(first, widen(silu)), _mm512_mul_ps(second, widen(silu + 16)));
      put(dgu + (m + e) * 2 * F, dg[e]);
      put(dgu + (m + e) * 2 * F + F, du[e]);
    }
    put_pairs(dgup + m / 2 * GP, dg[0], dg[1]);
    put_pairs(dgup + m / 2 * GP + F, du[0], du[1]);
  }
}
// From the gradient of the second norm's input (`s.ds`, `s.dsp`): that of the first norm's result, and the weights'.
static void channel_backward(const bf16* w, bf16* own, float* grad, float* grads, int rows, Scratch& s) {
  for (int f = 0; f < F; f += 32)
    by_rows<12, 6>(rows, [&](auto m, int t) {
      channel_back_tile<m>(s.ds + t * D, (const pair*)(w + CDNB) + f * (D / 2), cell_at(own, f, t),
                           s.dgu + t * 2 * F + f, s.dgup + t / 2 * GP + f);
    });
  by_channels<F>((const pair*)s.dgu, w + CGUB, rows, s.ds, grad);
  for (int f = 0; f < 2 * F; f += AT_ONCE)
    add_product<12, 6, 2, D, 1, GP, D>(least(AT_ONCE, 2 * F - f), s.dgup + f, s.xp, rows / 2, grads + GCGU + f * D);
  for (int f = 0; f < F; f += 32)
    add_product<8, 8, 2, D, 1, CELL / 2, D>(32, (const pair*)(cell_at(own, f, 0) + 128), s.dsp, rows / 2,
                                            grads + GCDN + f * D);
}
