// Vectors of 16 fp32 numbers and of bf16 ones: conversions, pairs, exponentials.
#pragma once
#include <immintrin.h>
#include <cstdint>

typedef uint16_t bf16;
typedef uint32_t pair;  // two bf16: the lower one first

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE __m512 all(float x) { return _mm512_set1_ps(x); }
INLINE __m512 widen(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
INLINE void put(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
INLINE __m512i interleave(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}
// 32 numbers in a row; LASTS: past the caches, for what is read much later. `p` is then at a multiple of 64 bytes.
template <bool LASTS = false>
INLINE void put(bf16* p, __m512i x) {
  LASTS ? _mm512_stream_si512((__m512i*)p, x) : _mm512_storeu_si512(p, x);
}
INLINE __m512i narrow(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
// Two rows of 32 numbers as pairs.
template <bool LASTS = false>
INLINE void put_pairs(pair* p, __m512i low, __m512i high) {
  alignas(64) static const uint16_t order[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  put<LASTS>((bf16*)p, _mm512_permutex2var_epi16(low, _mm512_load_si512(order), high));
  put<LASTS>((bf16*)(p + 16), _mm512_permutex2var_epi16(low, _mm512_load_si512(order + 32), high));
}
INLINE __m512 sigmoid(__m512 x) {
  // 1 / (1 + 2^t): 2^t by its whole part and a polynomial of the rest, both good to 13 bits, enough for bf16.
  __m512 t = _mm512_mul_ps(x, all(-1.44269504f));
  __m512 f = _mm512_reduce_ps(t, 1);  // t - floor(t)
  __m512 p = _mm512_fmadd_ps(all(0.07802438f), f, all(0.22606736f));
  p = _mm512_fmadd_ps(p, f, all(0.69583347f));
  p = _mm512_fmadd_ps(p, f, all(0.99992522f));
  return _mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps(p, t), all(1.f)));
}
// e^x to the last few bits of fp32, by its series at most half a binary place from 0.
INLINE __m512 exponential(__m512 x) {
  __m512 t = _mm512_mul_ps(x, all(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_fnmadd_ps(whole, all(-2.12194440e-4f), _mm512_fnmadd_ps(whole, all(0.693359375f), x));
  __m512 p = _mm512_fmadd_ps(all(1.f / 720), f, all(1.f / 120));
  p = _mm512_fmadd_ps(p, f, all(1.f / 24));
  p = _mm512_fmadd_ps(p, f, all(1.f / 6));
  p = _mm512_fmadd_ps(p, f, all(.5f));
  p = _mm512_fmadd_ps(p, f, all(1.f));
  p = _mm512_fmadd_ps(p, f, all(1.f));
  return _mm512_scalef_ps(p, whole);
}
INLINE __m512 tangent(__m512 x) {  // tanh(x)
  return _mm512_sub_ps(all(1.f), _mm512_div_ps(all(2.f), _mm512_add_ps(exponential(_mm512_add_ps(x, x)), all(1.f))));
}
// SwiGLU of gate and up: silu(g), the hidden unit, and what its gradient takes to that of the gate.
INLINE void swiglu(__m512 g, __m512 u, __m512& silu, __m512& hidden, __m512& slope) {
  __m512 s = sigmoid(g);
  silu = _mm512_mul_ps(g, s);
  hidden = _mm512_mul_ps(silu, u);
  // silu' = s + g s (1 - s) = s + silu - silu s
  slope = _mm512_mul_ps(u, _mm512_fnmadd_ps(silu, s, _mm512_add_ps(s, silu)));
}
