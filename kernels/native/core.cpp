// One core of a token-mixing model, forward and backward, on one thread: bf16 products of AVX-512, fp32 in registers.
#include <cstring>
#include "channel.h"
#include "mixer.h"

// One block of a group of `count` trajectories: x [count * L, D] -> own[SX2].
template <bool SAVES>
static void block_forward(const bf16* w, const bf16* x, bf16* own, float* norms, int count, Scratch& s) {
  int rows = count * L, even = (rows + 1) / 2 * 2;
  for (int g = 0; g < count; g++) mixer_forward<SAVES>(w, x + g * L * D, own, s.sum + g * L * D, g, s);
  norm(s.sum, own + SX1, norms, rows);
  memset(own + SX1 + rows * D, 0, sizeof(bf16) * (even - rows) * D);
  channel_forward<SAVES>(w, own, s.sum, even, s);
  norm(s.sum, own + SX2, norms + GR, rows);
}
// s.grad: gradient of the result, becomes that of x.
static void block_backward(const bf16* w, const bf16* x, bf16* own, const float* norms, float* grads, int count,
                           Scratch& s) {
  int rows = count * L, even = (rows + 1) / 2 * 2;
  norm_back(s.grad, own + SX2, norms + GR, s.ds, s.dsp, rows);
  memset(s.ds + rows * D, 0, sizeof(bf16) * (even - rows) * D);
  pair_rows<D, D>(own + SX1, s.xp, rows);
  channel_backward(w, own, s.grad, grads, even, s);
  for (int g = 0; g < count; g++) {
    int64_t at = g * L * D;
    norm_back(s.grad + at, own + SX1 + at, norms + g * L, s.ds + at, s.mixds, L);
    mixer_backward(w, x + at, own, s.ds + at, s.grad + at, grads, g, s);
  }
}
// Where block `b` of a call found its input; what stands before `own` is the block before.
static const bf16* input_of(const bf16* own, int b, int64_t stride) { return b ? own - stride + SX2 : own + SX; }

// Block by block through all calls of a group; `stride` 0: every block stands in the same place.
template <bool SAVES>
static void group_forward(const bf16* w, const bf16* h, const bf16* l, const bf16* e, bf16* h_out, bf16* l_out,
                          bf16* saved, float* norms, int count, Scratch& s) {
  constexpr int64_t STRIDE = SAVES ? SAVED : 0, NORM_STRIDE = SAVES ? NORMS : 0;
  int64_t size = (int64_t)count * L * D;
  bf16* own = saved;
  for (int call = 0; call < CALLS; call++) {
    const bf16* low = call ? own - STRIDE + SX2 : l;
    bf16* x = own + SX;
    for (int64_t i = 0; i < size; i += 16) {
      __m512 v = widen(h + i);
      if (call < UPDATES) put(x + i, _mm512_add_ps(v, widen(e + i))), v = widen(x + i);
      put(x + i, _mm512_add_ps(v, widen(low + i)));
    }
    for (int b = 0; b < BLOCKS; b++, own += STRIDE, norms += NORM_STRIDE)
      block_forward<SAVES>(w + b * PACKED, input_of(own, b, STRIDE), own, norms, count, s);
    if (call >= UPDATES - 1) memcpy(call == UPDATES ? h_out : l_out, own - STRIDE + SX2, sizeof(bf16) * size);
  }
}

extern "C" {
void sizes(int64_t* out) {
  out[0] = PACKED, out[1] = CALLS * BLOCKS * SAVED, out[2] = CALLS * BLOCKS * NORMS, out[3] = GRADS;
  out[4] = sizeof(Scratch), out[5] = TN, out[6] = GROUP;
}

// mixer gate_up [2 HM, L], down [L, HM]; channel gate_up [2 F, D], down [D, F].
void pack(const bf16* mgu, const bf16* mdn, const bf16* cgu, const bf16* cdn, bf16* out) {
  memset(out, 0, sizeof(bf16) * PACKED);
  for (int i = 0; i < 2 * HM; i++)
    for (int t = 0; t < L; t++) out[MGU + i * T + t] = out[MGUT + t * 2 * HM + i] = mgu[i * L + t];
  for (int t = 0; t < L; t++)
    for (int i = 0; i < HM; i++) out[MDN + t * HM + i] = out[MDNT + i * T + t] = mdn[t * HM + i];
  for (int n = 0; n < 2 * F; n++)
    for (int d = 0; d < D; d++) {
      out[CGU + (n % F / 32 * 32 * D + d / 2 * 64 + n / F * 32 + n % 32) * 2 + d % 2] = cgu[n * D + d];
      out[CGUB + (d / 32 * 32 * F + n / 2 * 32 + d % 32) * 2 + n % 2] = cgu[n * D + d];
    }
  for (int d = 0; d < D; d++)
    for (int f = 0; f < F; f++) {
      out[CDN + (d / 32 * 16 * F + f / 2 * 32 + d % 32) * 2 + f % 2] = cdn[d * F + f];
      out[CDNB + (f / 32 * 16 * D + d / 2 * 32 + f % 32) * 2 + d % 2] = cdn[d * F + f];
    }
}

// h, l, e [rows, L, D] -> h_out, l_out. `saved` [groups or, where nothing is saved, 1; CALLS; BLOCKS; SAVED], `norms`
// alike.
void forward(const bf16* w, const bf16* h, const bf16* l, const bf16* e, bf16* h_out, bf16* l_out, bf16* saved,
             float* norms, int64_t rows, int64_t is_saving, Scratch* s) {
  for (int64_t first = 0; first < rows; first += GROUP) {
    int count = rows - first < GROUP ? rows - first : GROUP;
    int64_t at = first * L * D, kept = first / GROUP * CALLS * BLOCKS;
    if (is_saving)
      group_forward<true>(w, h + at, l + at, e + at, h_out + at, l_out + at, saved + kept * SAVED, norms + kept * NORMS,
                          count, *s);
    else
      group_forward<false>(w, h + at, l + at, e + at, h_out + at, l_out + at, saved, norms, count, *s);
  }
  _mm_sfence();  // what went past the caches may be read by another thread
}
// From dh_out: dh, de (bf16) and the gradients of the weights, which are added to.
void backward(const bf16* w, bf16* saved, const float* norms, const bf16* dh_out, bf16* dh, bf16* de,
              float* grads, int64_t rows, Scratch* s) {
  for (int64_t first = 0; first < rows; first += GROUP) {
    int count = rows - first < GROUP ? rows - first : GROUP;
    int64_t at = first * L * D, size = (int64_t)count * L * D, last = (first / GROUP + 1) * CALLS * BLOCKS - 1;
    bf16* own = saved + last * SAVED;
    const float* norm = norms + last * NORMS;
    memset(s->injected, 0, sizeof s->injected);
    for (int64_t i = 0; i < size; i += 16) _mm512_storeu_ps(s->grad + i, widen(dh_out + at + i));
    for (int call = CALLS - 1; call >= 0; call--) {
      for (int b = BLOCKS - 1; b >= 0; b--, own -= SAVED, norm -= NORMS)
        block_backward(w + b * PACKED, input_of(own, b, SAVED), own, norm, grads + b * GRADS, count, *s);
      if (call == UPDATES) {
        memcpy(s->high, s->grad, sizeof(float) * size);
        continue;
      }
      for (int64_t i = 0; i < size; i += 16) {
        __m512 before = _mm512_loadu_ps(s->injected + i);
        _mm512_storeu_ps(s->injected + i, _mm512_add_ps(before, _mm512_loadu_ps(s->grad + i)));
      }
    }
    for (int64_t i = 0; i < size; i += 16) {
      __m512 v = _mm512_loadu_ps(s->injected + i);
      put(de + at + i, v);
      put(dh + at + i, _mm512_add_ps(v, _mm512_loadu_ps(s->high + i)));
    }
  }
}
}
