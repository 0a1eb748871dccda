// Norms of rows of D channels and their gradients; transposition of a trajectory.
#pragma once
#include <cmath>
#include "layout.h"

// y = rmsnorm(s): bf16, and its factor. Of rows that are there alone, not of padding: EPS may be 0.
static void norm(const float* s, bf16* y, float* r, int rows) {
  for (int t = 0; t < rows; t++, s += D, y += D) {
    __m512 v[D / 16], sum = _mm512_setzero_ps();
    UNROLL for (int j = 0; j < D / 16; j++) {
      v[j] = _mm512_loadu_ps(s + 16 * j);
      sum = _mm512_fmadd_ps(v[j], v[j], sum);
    }
    float f = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / D + EPS);
    r[t] = f;
    UNROLL for (int j = 0; j < D / 16; j += 2)
      put(y + 16 * j, narrow(_mm512_mul_ps(v[j], all(f)), _mm512_mul_ps(v[j + 1], all(f))));
  }
}
// ds of y = rmsnorm(s) from dy, fp32: bf16 by rows and by pairs of rows; an odd last row is paired with zeros.
static void norm_back(const float* dy, const bf16* y, const float* r, bf16* ds, pair* dsp, int rows) {
  for (int t = 0; t < rows; t += 2, dsp += D) {
    bool is_alone = t + 1 == rows;
    __m512 mean[2], factor[2];
    for (int e = 0; e < 2 - is_alone; e++) {
      const float* g = dy + (t + e) * D;
      const bf16* z = y + (t + e) * D;
      __m512 sum = _mm512_setzero_ps();
      UNROLL for (int j = 0; j < D / 16; j++)
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(g + 16 * j), widen(z + 16 * j), sum);
      mean[e] = all(-_mm512_reduce_add_ps(sum) / D), factor[e] = all(r[t + e]);
    }
    UNROLL for (int j = 0; j < D; j += 32) {
      __m512i d[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      for (int e = 0; e < 2 - is_alone; e++) {
        const float* g = dy + (t + e) * D + j;
        const bf16* z = y + (t + e) * D + j;
        d[e] = narrow(_mm512_mul_ps(factor[e], _mm512_fmadd_ps(widen(z), mean[e], _mm512_loadu_ps(g))),
                      _mm512_mul_ps(factor[e], _mm512_fmadd_ps(widen(z + 16), mean[e], _mm512_loadu_ps(g + 16))));
        put(ds + (t + e) * D + j, d[e]);
      }
      put_pairs(dsp + j, d[0], d[1]);
    }
  }
}

// 16 x 16 pairs; rows LD and TO apart.
INLINE void transpose16(const pair* p, int ld, pair* out, int to) {
  __m512i r[16], q[16];
  UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(p + i * ld);
  UNROLL for (int i = 0; i < 16; i += 2) {
    q[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    q[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int e = 0; e < 2; e++) {
    r[i + 2 * e] = _mm512_unpacklo_epi64(q[i + e], q[i + 2 + e]);
    r[i + 2 * e + 1] = _mm512_unpackhi_epi64(q[i + e], q[i + 2 + e]);
  }
  // r[4 i + c]: column 4 l + c of rows 4 i to 4 i + 3 in lane l.
  UNROLL for (int c = 0; c < 4; c++) {
    __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88), e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    _mm512_storeu_si512(out + c * to, _mm512_shuffle_i32x4(a, d, 0x88));
    _mm512_storeu_si512(out + (4 + c) * to, _mm512_shuffle_i32x4(b, e, 0x88));
    _mm512_storeu_si512(out + (8 + c) * to, _mm512_shuffle_i32x4(a, d, 0xdd));
    _mm512_storeu_si512(out + (12 + c) * to, _mm512_shuffle_i32x4(b, e, 0xdd));
  }
}
static void transpose_pairs(const bf16* x, pair* out) {  // [L, D / 2] pairs of channels -> [D / 2, TN]
  const pair* p = (const pair*)x;
  constexpr int WHOLE = L / 16 * 16;
  for (int d = 0; d + 16 <= D / 2; d += 16)
    for (int t = 0; t < WHOLE; t += 16) transpose16(p + t * (D / 2) + d, D / 2, out + d * TN + t, TN);
  for (int d = 0; d < D / 2; d++)
    for (int t = d < D / 2 / 16 * 16 ? WHOLE : 0; t < L; t++) out[d * TN + t] = p[t * (D / 2) + d];
}
