// One core of a token-mixing model, forward and backward, on one thread: bf16 products of AVX-512, fp32 in registers.
// Compiled for one shape (L, D, HM, F, BLOCKS). T is L rounded up to even: tokens are multiplied in pairs.
#include <cmath>
#include <cstring>
#include "products.h"

constexpr int T = (L + 1) / 2 * 2, TN = (T + 15) / 16 * 16;
constexpr int GROUP = 4;  // trajectories whose channel products are made together

// What a packed block holds, in bf16.
constexpr int64_t MGU = 0, MGUT = MGU + 2 * HM * T, MDN = MGUT + 2 * HM * T, MDNT = MDN + HM * T, CGU = MDNT + HM * T,
                  CGUB = CGU + 2 * F * D, CDN = CGUB + 2 * F * D, CDNB = CDN + F * D, PACKED = CDNB + F * D;
// What a block saves of one trajectory, in bf16; and its norms, in fp32.
constexpr int64_t SX = 0, SM = SX + T * D, SX1 = SM + 2 * HM * D, SC = SX1 + T * D, SX2 = SC + 2 * T * F,
                  SAVED = SX2 + T * D;
constexpr int64_t NORMS = 2 * T;
constexpr int64_t CALLS = UPDATES + 1, STRIDE = CALLS * BLOCKS * SAVED, NORM_STRIDE = CALLS * BLOCKS * NORMS;
// Gradients of a block, fp32: the mixer's in the shapes that are multiplied ([2 HM, TN], down transposed [HM, TN]).
constexpr int64_t GMGU = 0, GMDN = GMGU + 2 * HM * TN, GCGU = GMDN + HM * TN, GCDN = GCGU + 2 * F * D,
                  GRADS = GCDN + F * D;

// 16 x 16 pairs; rows LD and TO apart.
INLINE void transpose16(const pair* p, int ld, pair* out, int to) {
  __m512i r[16], q[16];
  UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(p + i * ld);
  UNROLL for (int i = 0; i < 16; i += 2) q[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), q[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int e = 0; e < 2; e++)
    r[i + 2 * e] = _mm512_unpacklo_epi64(q[i + e], q[i + 2 + e]), r[i + 2 * e + 1] = _mm512_unpackhi_epi64(q[i + e], q[i + 2 + e]);
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
static void transpose_pairs(const bf16* x, pair* out) {  // [T, D / 2] pairs -> [D / 2, TN]
  const pair* p = (const pair*)x;
  for (int d = 0; d + 16 <= D / 2; d += 16)
    for (int t = 0; t + 16 <= T; t += 16) transpose16(p + t * (D / 2) + d, D / 2, out + d * TN + t, TN);
  for (int d = 0; d < D / 2; d++)
    for (int t = d < D / 2 / 16 * 16 ? T / 16 * 16 : 0; t < T; t++) out[d * TN + t] = p[t * (D / 2) + d];
}

// y = rmsnorm(x + s): bf16, and its factor.
static void norm(const bf16* x, const float* s, bf16* y, float* r, int rows) {
  for (int t = 0; t < rows; t++, x += D, s += D, y += D) {
    __m512 v[D / 16], sum = _mm512_setzero_ps();
    UNROLL for (int j = 0; j < D / 16; j++) {
      v[j] = _mm512_add_ps(widen(x + 16 * j), _mm512_loadu_ps(s + 16 * j));
      sum = _mm512_fmadd_ps(v[j], v[j], sum);
    }
    float f = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / D + EPS);
    r[t] = f;
    UNROLL for (int j = 0; j < D / 16; j++) put(y + 16 * j, _mm512_mul_ps(v[j], _mm512_set1_ps(f)));
  }
}
// ds of y = rmsnorm(s) from dy [rows, D] fp32: bf16 by rows and by pairs of rows.
static void norm_back(const float* dy, const bf16* y, const float* r, bf16* ds, pair* dsp, int rows) {
  for (int t = 0; t < rows; t++) {
    const float* g = dy + t * D; const bf16* z = y + t * D;
    __m512 sum = _mm512_setzero_ps();
    UNROLL for (int j = 0; j < D / 16; j++) sum = _mm512_fmadd_ps(_mm512_loadu_ps(g + 16 * j), widen(z + 16 * j), sum);
    __m512 mean = _mm512_set1_ps(-_mm512_reduce_add_ps(sum) / D), f = _mm512_set1_ps(r[t]);
    UNROLL for (int j = 0; j < D / 16; j++)
      put(ds + t * D + 16 * j, _mm512_mul_ps(f, _mm512_fmadd_ps(widen(z + 16 * j), mean, _mm512_loadu_ps(g + 16 * j))));
  }
  pair_rows<D, D>(ds, dsp, rows);
}

struct Scratch {
  float sum[GROUP * T * D], grad[GROUP * T * D], high[GROUP * T * D], injected[GROUP * T * D];
  bf16 hidden[GROUP * T * F], ds[GROUP * T * D], dgu[GROUP * T * 2 * F];
  pair dsp[GROUP * T / 2 * D], xp[GROUP * T / 2 * D], hp[GROUP * T / 2 * F], dgup[GROUP * T / 2 * 2 * F];
  pair mixp[HM * D], mixh[HM / 2 * D];
  bf16 mixdgu[2 * HM * D], mixhidden[HM * D];
  pair xt[D / 2 * TN], dst[D / 2 * TN];
};

// The mixer's gate and up, and its hidden units by pairs.
template <int NV>
INLINE void mixer_tile(const bf16* w, const pair* xp, bf16* gu, pair* hp, int i, int d) {
  __m512 acc[4][NV]; zero(acc);
  ask<2, 32 * NV, D, true>(gu + i * D + d); ask<2, 32 * NV, D, true>(gu + (HM + i) * D + d);
  multiply<2, 2, NV, 0, T / 2, 1, D>((const pair*)w + i * (T / 2), (const pair*)w + (HM + i) * (T / 2), xp + d, xp, T / 2, acc);
  UNROLL for (int j = 0; j < NV; j++) {
    __m256i h[2];
    UNROLL for (int m = 0; m < 2; m++) {
      put(gu + (i + m) * D + d + 16 * j, acc[m][j]);
      put(gu + (HM + i + m) * D + d + 16 * j, acc[m + 2][j]);
      h[m] = narrow(_mm512_mul_ps(_mm512_mul_ps(acc[m][j], sigmoid(acc[m][j])), acc[m + 2][j]));
    }
    _mm512_storeu_si512(hp + i / 2 * D + d + 16 * j, interleave(h[0], h[1]));
  }
}
// 32 hidden channels of M tokens, whose gates and ups stand side by side in `gu [M, 64]`.
template <int M>
INLINE void channel_tile(const bf16* x, const pair* w, bf16* gu, bf16* hidden) {
  __m512 acc[M][4]; zero(acc);
  ask<1, 128 * M, 0, true>(gu + 64 * M);
  multiply<M, 0, 4, 0, D / 2, 1, 64>((const pair*)x, nullptr, w, nullptr, D / 2, acc);
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < 2; j++) {
    __m512 g = acc[m][j], u = acc[m][2 + j];
    put(gu + m * 64 + 16 * j, g);
    put(gu + m * 64 + 32 + 16 * j, u);
    put(hidden + m * F + 16 * j, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u));
  }
}
// From dh, gate and up: their gradients and the hidden unit.
INLINE void swiglu_back(__m512 dh, __m512 g, __m512 u, __m512& dg, __m512& du, __m512& h) {
  __m512 s = sigmoid(g), a = _mm512_mul_ps(g, s), one = _mm512_set1_ps(1.f);
  h = _mm512_mul_ps(a, u);
  du = _mm512_mul_ps(dh, a);
  // silu' = s + g s (1 - s) = s + a (1 - s)
  dg = _mm512_mul_ps(_mm512_mul_ps(dh, u), _mm512_fmadd_ps(a, _mm512_sub_ps(one, s), s));
}
// P panels of 32 hidden channels each; `gu` as `channel_tile` leaves it, panels T tokens apart.
template <int M, int P>
INLINE void channel_back_tile(const bf16* ds, const pair* w, const bf16* gu, bf16* dgu, pair* dgup, pair* hp) {
  __m512 acc[M][2 * P]; zero(acc);
  UNROLL for (int p = 0; p < P; p++) ask<1, 128 * M, 0, false>(gu + p * 64 * T + 64 * M);
  multiply<M, 0, 2, 2 * P - 2, D / 2, 1, 32>((const pair*)ds, nullptr, w, w + 16 * D, D / 2, acc);
  UNROLL for (int m = 0; m < M; m += 2) UNROLL for (int j = 0; j < 2 * P; j++) {
    __m256i dg[2], du[2], hidden[2];
    UNROLL for (int e = 0; e < 2; e++) {
      const bf16* from = gu + j / 2 * 64 * T + (m + e) * 64 + j % 2 * 16;
      __m512 a, b, h;
      swiglu_back(acc[m + e][j], widen(from), widen(from + 32), a, b, h);
      dg[e] = narrow(a), du[e] = narrow(b), hidden[e] = narrow(h);
      bf16* q = dgu + (m + e) * 2 * F + 16 * j;
      _mm256_storeu_si256((__m256i*)q, dg[e]);
      _mm256_storeu_si256((__m256i*)(q + F), du[e]);
    }
    pair* q = dgup + m / 2 * 2 * F + 16 * j;
    _mm512_storeu_si512(q, interleave(dg[0], dg[1]));
    _mm512_storeu_si512(q + F, interleave(du[0], du[1]));
    _mm512_storeu_si512(hp + m / 2 * F + 16 * j, interleave(hidden[0], hidden[1]));
  }
}
template <int P>
static void channel_back(const bf16* w, const bf16* saved, int count, Scratch& s, int f) {
  for (int g = 0; g < count; g++) {
    const bf16* gu = saved + g * STRIDE + SC + f * 2 * T;
    const pair* panel = (const pair*)(w + CDNB) + f * (D / 2);
    int t = 0;
    for (; t + 4 <= T; t += 4) channel_back_tile<4, P>(s.ds + (g * T + t) * D, panel, gu + t * 64, s.dgu + (g * T + t) * 2 * F + f, s.dgup + (g * T + t) / 2 * 2 * F + f, s.hp + (g * T + t) / 2 * F + f);
    for (; t < T; t += 2) channel_back_tile<2, P>(s.ds + (g * T + t) * D, panel, gu + t * 64, s.dgu + (g * T + t) * 2 * F + f, s.dgup + (g * T + t) / 2 * 2 * F + f, s.hp + (g * T + t) / 2 * F + f);
  }
}
template <int NV>
INLINE void mixer_back_tile(const bf16* w, const pair* dsp, const bf16* gu, bf16* dgu, pair* dgup, bf16* hidden, int i, int d) {
  __m512 acc[4][NV]; zero(acc);
  ask<4, 32 * NV, D, false>(gu + (i + 4) * D + d); ask<4, 32 * NV, D, false>(gu + (HM + i + 4) * D + d);
  multiply<4, 0, NV, 0, T / 2, 1, D>((const pair*)w + i * (T / 2), nullptr, dsp + d, nullptr, T / 2, acc);
  UNROLL for (int m = 0; m < 4; m += 2) UNROLL for (int j = 0; j < NV; j++) {
    __m256i dg[2], du[2];
    UNROLL for (int e = 0; e < 2; e++) {
      int64_t at = (i + m + e) * D + d + 16 * j;
      __m512 a, b, h;
      swiglu_back(acc[m + e][j], widen(gu + at), widen(gu + HM * D + at), a, b, h);
      dg[e] = narrow(a), du[e] = narrow(b);
      _mm256_storeu_si256((__m256i*)(dgu + at), dg[e]);
      _mm256_storeu_si256((__m256i*)(dgu + HM * D + at), du[e]);
      put(hidden + at, h);
    }
    _mm512_storeu_si512(dgup + (i + m) / 2 * D + d + 16 * j, interleave(dg[0], dg[1]));
    _mm512_storeu_si512(dgup + (HM + i + m) / 2 * D + d + 16 * j, interleave(du[0], du[1]));
  }
}
// One block of a group of trajectories: x in saved[SX], result in saved[SX2].
static void block_forward(const bf16* w, bf16* saved, float* norms, int count, Scratch& s) {
  for (int g = 0; g < count; g++) {
    bf16* own = saved + g * STRIDE;
    
    pair_rows<D, D>(own + SX, s.xp, T);
    by_vectors<D, 5>([&](auto nv, int at) { for (int i = 0; i < HM; i += 2) mixer_tile<nv>(w + MGU, s.xp, own + SM, s.mixh, i, at); });
    product<D, 5, HM / 2, 1, D, D, false>(T, (const pair*)(w + MDN), s.mixh, HM / 2, s.sum);
    norm(own + SX, s.sum, own + SX1, norms + g * NORM_STRIDE, T);
  }
  // All rows of a trajectory are next to each other; trajectories are STRIDE apart.
  for (int f = 0; f < F; f += 32) for (int g = 0; g < count; g++) {
    const bf16* x = saved + g * STRIDE + SX1;
    const pair* panel = (const pair*)(w + CGU) + f * D;
    bf16 *gu = saved + g * STRIDE + SC + f * 2 * T, *hidden = s.hidden + g * T * F + f;
    int t = 0;
    for (; t + 6 <= T; t += 6) channel_tile<6>(x + t * D, panel, gu + t * 64, hidden + t * F);
    for (; t < T; t += 2) channel_tile<2>(x + t * D, panel, gu + t * 64, hidden + t * F);
  }
  product<D, 5, F / 2, 1, D, D, false>(count * T, (const pair*)s.hidden, (const pair*)(w + CDN), F / 2, s.sum);
  for (int g = 0; g < count; g++) norm(saved + g * STRIDE + SX1, s.sum + g * T * D, saved + g * STRIDE + SX2, norms + g * NORM_STRIDE + T, T);
}
// s.grad: gradient of the result, becomes that of x.
static void block_backward(const bf16* w, const bf16* saved, const float* norms, float* grads, int count, Scratch& s) {
  for (int g = 0; g < count; g++) {
    const bf16* own = saved + g * STRIDE;
    norm_back(s.grad + g * T * D, own + SX2, norms + g * NORM_STRIDE + T, s.ds + g * T * D, s.dsp + g * T / 2 * D, T);
    pair_rows<D, D>(own + SX1, s.xp + g * T / 2 * D, T);
  }
  
  int f = 0;
  for (; f + 64 <= F; f += 64) channel_back<2>(w, saved, count, s, f);
  if (f < F) channel_back<1>(w, saved, count, s, f);
  product<D, 5, F, 1, D, D, false>(count * T, (const pair*)s.dgu, (const pair*)(w + CGUB), F, s.sum);
  product<D, 5, 1, 2 * F, D, D, true>(2 * F, s.dgup, s.xp, count * T / 2, grads + GCGU);
  product<F, 6, 1, D, F, F, true>(D, s.dsp, s.hp, count * T / 2, grads + GCDN);
  for (int64_t i = 0; i < (int64_t)count * T * D; i += 16)
    _mm512_storeu_ps(s.grad + i, _mm512_add_ps(_mm512_loadu_ps(s.sum + i), widen(s.ds + i)));
  for (int g = 0; g < count; g++) {
    const bf16* own = saved + g * STRIDE; float* grad = s.grad + g * T * D;
    norm_back(grad, own + SX1, norms + g * NORM_STRIDE, s.ds, s.dsp, T);
    by_vectors<D, 5>([&](auto nv, int at) { for (int i = 0; i < HM; i += 4) mixer_back_tile<nv>(w + MDNT, s.dsp, own + SM, s.mixdgu, s.mixp, s.mixhidden, i, at); });
    product<D, 5, HM, 1, D, D, false>(T, (const pair*)(w + MGUT), s.mixp, HM, s.sum);
    transpose_pairs(own + SX, s.xt);
    transpose_pairs(s.ds, s.dst);
    product<TN, 6, D / 2, 1, TN, TN, true>(2 * HM, (const pair*)s.mixdgu, s.xt, D / 2, grads + GMGU);
    product<TN, 6, D / 2, 1, TN, TN, true>(HM, (const pair*)s.mixhidden, s.dst, D / 2, grads + GMDN);
    for (int64_t i = 0; i < T * D; i += 16) _mm512_storeu_ps(grad + i, _mm512_add_ps(_mm512_loadu_ps(s.sum + i), widen(s.ds + i)));
  }
}

extern "C" {
void sizes(int64_t* out) { out[0] = PACKED; out[1] = SAVED; out[2] = NORMS; out[3] = GRADS; out[4] = sizeof(Scratch); out[5] = TN; out[6] = GROUP; }

// mixer gate_up [2 HM, L], down [L, HM]; channel gate_up [2 F, D], down [D, F].
void pack(const bf16* mgu, const bf16* mdn, const bf16* cgu, const bf16* cdn, bf16* out) {
  memset(out, 0, sizeof(bf16) * PACKED);
  for (int i = 0; i < 2 * HM; i++) for (int t = 0; t < L; t++) out[MGU + i * T + t] = out[MGUT + t * 2 * HM + i] = mgu[i * L + t];
  for (int t = 0; t < L; t++) for (int i = 0; i < HM; i++) out[MDN + t * HM + i] = out[MDNT + i * T + t] = mdn[t * HM + i];
  for (int n = 0; n < 2 * F; n++) for (int d = 0; d < D; d++) {
    out[CGU + (n % F / 32 * 32 * D + d / 2 * 64 + n / F * 32 + n % 32) * 2 + d % 2] = cgu[n * D + d];
    out[CGUB + (n / 2 * D + d) * 2 + n % 2] = cgu[n * D + d];
  }
  for (int d = 0; d < D; d++) for (int f = 0; f < F; f++) {
    out[CDN + (f / 2 * D + d) * 2 + f % 2] = cdn[d * F + f];
    out[CDNB + (f / 32 * 16 * D + d / 2 * 32 + f % 32) * 2 + d % 2] = cdn[d * F + f];
  }
}

// h, l, e [rows, L, D] -> h_out, l_out. `all_saved` is [rows or, where nothing is saved, GROUP; CALLS; BLOCKS; SAVED],
// `all_norms` alike.
void forward(const bf16* w, const bf16* h, const bf16* l, const bf16* e, bf16* h_out, bf16* l_out, bf16* all_saved,
             float* all_norms, int64_t rows, int64_t is_saving, Scratch* s) {
  for (int64_t first = 0; first < rows; first += GROUP) {
    int count = rows - first < GROUP ? rows - first : GROUP;
    bf16* saved = all_saved + (is_saving ? first * STRIDE : 0);
    float* norms = all_norms + (is_saving ? first * NORM_STRIDE : 0);
    for (int call = 0; call < CALLS; call++) {
      for (int g = 0; g < count; g++) {
        bf16* x = saved + g * STRIDE + call * BLOCKS * SAVED + SX;
        const bf16* low = call ? x - SX - SAVED + SX2 : l + (first + g) * L * D;
        const bf16 *high = h + (first + g) * L * D, *in = e + (first + g) * L * D;
        for (int i = 0; i < L * D; i += 16) {
          __m512 v = widen(high + i);
          if (call < UPDATES) put(x + i, _mm512_add_ps(v, widen(in + i))), v = widen(x + i);
          put(x + i, _mm512_add_ps(v, widen(low + i)));
        }
        memset(x + L * D, 0, sizeof(bf16) * (T - L) * D);
      }
      for (int b = 0; b < BLOCKS; b++) {
        bf16* own = saved + (call * BLOCKS + b) * SAVED;
        if (b)
          for (int g = 0; g < count; g++)
            memcpy(own + g * STRIDE + SX, own + g * STRIDE - SAVED + SX2, sizeof(bf16) * T * D);
        block_forward(w + b * PACKED, own, norms + (call * BLOCKS + b) * NORMS, count, *s);
      }
    }
    for (int g = 0; g < count; g++) {
      const bf16* end = saved + g * STRIDE + (CALLS * BLOCKS - 1) * SAVED + SX2;
      memcpy(h_out + (first + g) * L * D, end, sizeof(bf16) * L * D);
      if (UPDATES) memcpy(l_out + (first + g) * L * D, end - BLOCKS * SAVED, sizeof(bf16) * L * D);
    }
  }
}
// From dh_out: dh, de (bf16) and the gradients of the weights, which are added to.
void backward(const bf16* w, const bf16* saved, const float* norms, const bf16* dh_out, bf16* dh, bf16* de,
              float* grads, int64_t rows, Scratch* s) {
  memset(s->xt, 0, sizeof s->xt); memset(s->dst, 0, sizeof s->dst);
  for (int64_t first = 0; first < rows; first += GROUP) {
    int count = rows - first < GROUP ? rows - first : GROUP;
    memset(s->injected, 0, sizeof s->injected);
    memset(s->grad, 0, sizeof s->grad);
    for (int g = 0; g < count; g++)
      for (int i = 0; i < L * D; i += 16)
        _mm512_storeu_ps(s->grad + g * T * D + i, widen(dh_out + (first + g) * L * D + i));
    for (int call = CALLS - 1; call >= 0; call--) {
      for (int b = BLOCKS - 1; b >= 0; b--)
        block_backward(w + b * PACKED, saved + first * STRIDE + (call * BLOCKS + b) * SAVED,
                       norms + first * NORM_STRIDE + (call * BLOCKS + b) * NORMS, grads + b * GRADS, count, *s);
      if (call == UPDATES) {
        memcpy(s->high, s->grad, sizeof s->high);
        continue;
      }
      for (int i = 0; i < GROUP * T * D; i += 16)
        _mm512_storeu_ps(s->injected + i, _mm512_add_ps(_mm512_loadu_ps(s->injected + i), _mm512_loadu_ps(s->grad + i)));
    }
    for (int g = 0; g < count; g++)
      for (int i = 0; i < L * D; i += 16) {
        __m512 v = _mm512_loadu_ps(s->injected + g * T * D + i);
        put(de + (first + g) * L * D + i, v);
        put(dh + (first + g) * L * D + i, _mm512_add_ps(v, _mm512_loadu_ps(s->high + g * T * D + i)));
      }
  }
}
}
