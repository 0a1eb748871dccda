// Matrix products of pairs of bf16 in tiles whose fp32 sums stay in registers.
#pragma once
#include <type_traits>
#include "vectors.h"

// Asks for the lines of ROWS rows of BYTES, LD elements apart, that a tile will read or write after its product.
template <int ROWS, int BYTES, int LD, bool WRITE>
INLINE void ask(const bf16* p) {
  UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int b = 0; b < BYTES; b += 64)
    __builtin_prefetch((const char*)(p + m * LD) + b, WRITE, 3);
}
// acc += A B over KP pairs: rows of A (M0 from a0, M1 from a1) stand AS pairs apart and their pairs AK; vectors of B in
// rows of BS pairs. Meanwhile it asks for what stands at `soon`, FETCH bytes with each pair: all at once would make the
// product wait for memory.
template <int M0, int M1, int NV, int AS, int AK, int BS, int FETCH = 0>
INLINE void multiply(const pair* a0, const pair* a1, const pair* b, int KP, __m512 (&acc)[M0 + M1][NV],
                     const void* soon = nullptr) {
  for (int k = 0; k < KP; k++) {
    __m512bh v[NV];
    UNROLL for (int j = 0; j < NV; j++) v[j] = (__m512bh)_mm512_loadu_si512(b + 16 * j);
    if (FETCH) __builtin_prefetch((const char*)soon + k * FETCH, 0, 3);
    UNROLL for (int m = 0; m < M0 + M1; m++) {
      __m512bh a = (__m512bh)_mm512_set1_epi32(m < M0 ? a0[m * AS] : a1[(m - M0) * AS]);
      UNROLL for (int j = 0; j < NV; j++) acc[m][j] = _mm512_dpbf16_ps(acc[m][j], a, v[j]);
    }
    a0 += AK, b += BS;
    if (M1) a1 += AK;
  }
}
template <int M, int N>
INLINE void zero(__m512 (&acc)[M][N]) {
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < N; j++) acc[m][j] = _mm512_setzero_ps();
}

// C[M, N] = A B, plus C with ADD, fp32.
template <int M, int NV, int AS, int AK, int BS, int CS, bool ADD>
INLINE void tile_to(const pair* a, const pair* b, int KP, float* c) {
  __m512 acc[M][NV];
  zero(acc);
  ask<M, 64 * NV, 2 * CS, true>((const bf16*)c);
  multiply<M, 0, NV, AS, AK, BS>(a, nullptr, b, KP, acc);
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < NV; j++) {
    float* to = c + m * CS + 16 * j;
    _mm512_storeu_ps(to, ADD ? _mm512_add_ps(_mm512_loadu_ps(to), acc[m][j]) : acc[m][j]);
  }
}
// C[M, N] = A B + plus, fp32, `plus` [M, N] in bf16 with rows as far apart as C's.
template <int M, int NV, int AS, int AK, int BS, int CS>
INLINE void tile_plus(const pair* a, const pair* b, int KP, const bf16* plus, float* c) {
  __m512 acc[M][NV];
  zero(acc);
  ask<M, 64 * NV, 2 * CS, true>((const bf16*)c);
  multiply<M, 0, NV, AS, AK, BS>(a, nullptr, b, KP, acc);
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < NV; j++)
    _mm512_storeu_ps(c + m * CS + 16 * j, _mm512_add_ps(widen(plus + m * CS + 16 * j), acc[m][j]));
}
// Calls `call(rows of a tile, first row)` for ROWS rows, by tiles of MOST, then of less; the rows left are even.
template <int MOST, int LESS, class Call>
INLINE void by_rows(int rows, Call call) {
  int m = 0;
  for (; m + MOST <= rows; m += MOST) call(std::integral_constant<int, MOST>(), m);
  for (; m + LESS <= rows; m += LESS) call(std::integral_constant<int, LESS>(), m);
  for (; m < rows; m += 2) call(std::integral_constant<int, 2>(), m);
}
// The same for a number of rows that is known: one tile of what is left.
template <int ROWS, int MOST, class Call>
INLINE void by_tiles(Call call) {
  constexpr int REST = ROWS % MOST;
  for (int m = 0; m + MOST <= ROWS; m += MOST) call(std::integral_constant<int, MOST>(), m);
  if constexpr (REST > 0) call(std::integral_constant<int, REST>(), ROWS - REST);
}
// Calls `call(number of vectors, first column)` for N columns, MOST vectors at a time.
template <int N, int MOST, class Call>
INLINE void by_vectors(Call call) {
  constexpr int NV = N / 16, REST = NV % MOST;
  for (int j = 0; j + MOST <= NV; j += MOST) call(std::integral_constant<int, MOST>(), 16 * j);
  if constexpr (REST > 0) call(std::integral_constant<int, REST>(), 16 * (NV - REST));
}
// C[M, N] += A B, M even, in tiles of ROWS (and LESS) rows and VECTORS.
template <int ROWS, int LESS, int VECTORS, int N, int AS, int AK, int BS>
static void add_product(int M, const pair* a, const pair* b, int KP, float* c) {
  by_vectors<N, VECTORS>([&](auto nv, int at) {
    by_rows<ROWS, LESS>(M, [&](auto rows, int m) {
      tile_to<rows, nv, AS, AK, BS, N, true>(a + m * AS, b + at, KP, c + m * N + at);
    });
  });
}
// x [rows, N] -> [rows / 2, N] pairs of rows, `out` rows TO apart; an odd last row is paired with zeros.
template <int N, int TO>
static void pair_rows(const bf16* x, pair* out, int rows) {
  for (int t = 0; t < rows; t += 2)
    for (int d = 0; d < N; d += 16) {
      const bf16* from = x + t * N + d;
      __m256i high = t + 1 < rows ? _mm256_loadu_si256((const __m256i*)(from + N)) : _mm256_setzero_si256();
      _mm512_storeu_si512(out + t / 2 * TO + d, interleave(_mm256_loadu_si256((const __m256i*)from), high));
    }
}
