// The noise of `philox.py` (Philox4x32, Box-Muller), 64 normals at a time.
#pragma once
#include "vectors.h"

// Both halves of the products with one word.
INLINE void wide_product(__m512i a, uint32_t b, __m512i& high, __m512i& low) {
  __m512i m = _mm512_set1_epi32((int)b);
  __m512i even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
// Natural logarithm of numbers in (0, 1), to the last few bits of fp32.
INLINE __m512 logarithm(__m512 x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)): near 1 the logarithm is that of m alone, whose relative error is small.
  __m512 e = _mm512_getexp_ps(_mm512_mul_ps(x, all(1.41421356f))), m = _mm512_scalef_ps(x, _mm512_sub_ps(all(0.f), e));
  __m512 y = _mm512_sub_ps(m, all(1.f)), z = _mm512_mul_ps(y, y);
  const float terms[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f,
                         -1.6668057665e-1f, 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};  // Cephes, logf
  __m512 p = all(terms[0]);
  UNROLL for (int i = 1; i < 9; i++) p = _mm512_fmadd_ps(p, y, all(terms[i]));
  p = _mm512_mul_ps(_mm512_mul_ps(p, z), y);
  p = _mm512_fmadd_ps(e, all(-2.12194440e-4f), p);
  p = _mm512_add_ps(_mm512_fmadd_ps(z, all(-.5f), p), y);
  return _mm512_fmadd_ps(e, all(0.693359375f), p);
}
// Cosine and sine of y turns, y in [0, 1].
INLINE void cosine_sine(__m512 y, __m512& cosine, __m512& sine) {
  __m512i quarter = _mm512_cvtps_epi32(_mm512_mul_ps(y, all(4.f)));
  __m512 x = _mm512_mul_ps(_mm512_fnmadd_ps(_mm512_cvtepi32_ps(quarter), all(.25f), y), all(6.283185307179586f));
  __m512 z = _mm512_mul_ps(x, x);
  __m512 s = _mm512_fmadd_ps(all(-1.9515295891e-4f), z, all(8.3321608736e-3f));  // Cephes, sinf and cosf
  s = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_fmadd_ps(s, z, all(-1.6666654611e-1f)), z), x, x);
  __m512 c = _mm512_fmadd_ps(all(2.443315711809948e-5f), z, all(-1.388731625493765e-3f));
  c = _mm512_fmadd_ps(c, z, all(4.166664568298827e-2f));
  c = _mm512_fmadd_ps(_mm512_mul_ps(c, z), z, _mm512_fnmadd_ps(all(.5f), z, all(1.f)));
  __mmask16 is_turned = _mm512_test_epi32_mask(quarter, _mm512_set1_epi32(1));
  __m512i one = _mm512_set1_epi32(1), two = _mm512_set1_epi32(2);
  __m512i minus_c = _mm512_slli_epi32(_mm512_and_si512(_mm512_add_epi32(quarter, one), two), 30);
  __m512i minus_s = _mm512_slli_epi32(_mm512_and_si512(quarter, two), 30);
  cosine = _mm512_xor_ps(_mm512_mask_blend_ps(is_turned, c, s), _mm512_castsi512_ps(minus_c));
  sine = _mm512_xor_ps(_mm512_mask_blend_ps(is_turned, s, c), _mm512_castsi512_ps(minus_s));
}
INLINE __m512 fraction(__m512i word) {  // (its upper 23 bits + 0.5) / 2^23
  return _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(word, 9)), all(.5f)), all(0x1p-23f));
}
INLINE void box_muller(__m512i first, __m512i second, __m512& a, __m512& b) {
  __m512 radius = _mm512_sqrt_ps(_mm512_mul_ps(all(-2.f), logarithm(fraction(first))));
  cosine_sine(fraction(second), a, b);
  a = _mm512_mul_ps(a, radius);
  b = _mm512_mul_ps(b, radius);
}
// `count` standard normals, in whole blocks of 64, of one counter and key.
static void normals(float* out, int64_t count, uint64_t seed, uint32_t word1, uint32_t word2, uint32_t word3) {
  for (int64_t at = 0; at < count; at += 64) {
    __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i c0 = _mm512_add_epi32(step, _mm512_set1_epi32((int)(at / 4))), c1 = _mm512_set1_epi32((int)word1);
    __m512i c2 = _mm512_set1_epi32((int)word2), c3 = _mm512_set1_epi32((int)word3);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    UNROLL for (int round = 0; round < 10; round++) {
      __m512i high0, low0, high1, low1;
      wide_product(c0, 0xD2511F53u, high0, low0);
      wide_product(c2, 0xCD9E8D57u, high1, low1);
      c0 = _mm512_ternarylogic_epi32(high1, c1, _mm512_set1_epi32((int)k0), 0x96);
      c2 = _mm512_ternarylogic_epi32(high0, c3, _mm512_set1_epi32((int)k1), 0x96);
      c1 = low1, c3 = low0, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    __m512 n0, n1, n2, n3;
    box_muller(c0, c1, n0, n1);
    box_muller(c2, c3, n2, n3);
    // Four adjacent numbers come from one counter: transposed in lanes of four, then the lanes put in order.
    __m512 a = _mm512_unpacklo_ps(n0, n1), b = _mm512_unpackhi_ps(n0, n1);
    __m512 c = _mm512_unpacklo_ps(n2, n3), d = _mm512_unpackhi_ps(n2, n3);
    __m512d quads[4] = {_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)),
                        _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)),
                        _mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)),
                        _mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d))};
    UNROLL for (int lane = 0; lane < 4; lane++) UNROLL for (int i = 0; i < 4; i++) {
      __m512 quad = _mm512_castpd_ps(quads[i]);
      float* to = out + at + 16 * lane + 4 * i;
      if (lane == 0) _mm_storeu_ps(to, _mm512_castps512_ps128(quad));
      if (lane == 1) _mm_storeu_ps(to, _mm512_extractf32x4_ps(quad, 1));
      if (lane == 2) _mm_storeu_ps(to, _mm512_extractf32x4_ps(quad, 2));
      if (lane == 3) _mm_storeu_ps(to, _mm512_extractf32x4_ps(quad, 3));
    }
  }
}
