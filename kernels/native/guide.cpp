// The learned noise of training, forward and backward, on one thread: prior and posterior Gaussians of a state that
// takes no gradient, their KL, and the state moved by what is drawn from one of them.
// Compiled for one shape: L tokens, D channels, G hidden units. Two Gaussians ("sides"): the prior, then the posterior.
#include <cstring>
#include "normals.h"
#include "products.h"

constexpr int GROUP = 2;                                  // trajectories that go together
constexpr int MOST = (GROUP * L + 1) / 2 * 2;             // their tokens, even
constexpr int NOISE = (L * D + 63) / 64 * 64;             // normals of a trajectory, in whole blocks
constexpr int WIDE = 2 * 2 * D, HIDDEN = 2 * G;           // of both sides: means and deviations; hidden units
constexpr int WP = WIDE + 16, GP = 2 * HIDDEN + 16, HP = HIDDEN + 16;  // rows of pairs, apart in the cache's sets

// What the packed weights hold, in bf16: by panels of 32 hidden units (gates, then ups) over pairs of channels; by 16
// channels (mean, then deviation) over pairs of hidden units; and by panels of 32 hidden units over pairs of outputs.
constexpr int64_t GU = 0, DN = GU + 2 * 2 * G * D, DNB = DN + 2 * 2 * D * G, PACKED = DNB + 2 * 2 * D * G;
// What is saved of a token, in bf16: the KL's gradients of means and of both raw deviations, that of the raw deviation
// by the state's; and of the hidden units silu(gate), hidden, and what makes their gradient that of the gate.
constexpr int64_t SA = 0, SBP = SA + D, SBQ = SBP + D, SS = SBQ + D, SILU = SS + D, SH = SILU + HIDDEN,
                  SV = SH + HIDDEN, SAVED = SV + HIDDEN;
// Gradients, fp32: of gates and ups [side, (gate, up), G, D]; down transposed [side, G, 2 D].
constexpr int64_t GGU = 0, GDN = GGU + 2 * 2 * G * D, GRADS = GDN + 2 * G * 2 * D;

struct Scratch {
  float noise[GROUP * NOISE], kl[MOST][16];
  bf16 u[MOST * D], saved[MOST * SAVED], d[MOST * WIDE], hidden[MOST * HIDDEN];
  pair up[MOST / 2 * D], dp[MOST / 2 * WP], dgup[MOST / 2 * GP], hp[MOST / 2 * HP];
  int64_t index[MOST];
  float dkl[MOST];
  int64_t row[GROUP];  // the trajectories of this group
};
struct Options {  // as `guide.py` fills it
  float center, width, balance, temperature;
};

// 32 hidden units of M tokens of one side.
template <int M>
INLINE void hidden_tile(const bf16* u, const pair* w, const float* table, const int64_t* index, bf16* hidden,
                        bf16* saved) {
  __m512 acc[M][4];
  zero(acc);
  if (table)
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < 4; j++)
      acc[m][j] = _mm512_loadu_ps(table + index[m] * 2 * G + j / 2 * G + j % 2 * 16);
  multiply<M, 0, 4, D / 2, 1, 64>((const pair*)u, nullptr, w, D / 2, acc);
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < 2; j++) {
    __m512 silu, h, slope;
    swiglu(acc[m][j], acc[m][2 + j], silu, h, slope);
    put(hidden + m * HIDDEN + 16 * j, h);
    if (!saved) continue;
    put(saved + m * SAVED + SILU + 16 * j, silu);
    put(saved + m * SAVED + SH + 16 * j, h);
    put(saved + m * SAVED + SV + 16 * j, slope);
  }
}
// 16 channels of M tokens under the prior alone.
template <int M>
INLINE void prior_tile(const bf16* hidden, const pair* w, const bf16* u, const float* noise, bf16* out,
                       const Options& o) {
  __m512 acc[M][2];
  zero(acc);
  multiply<M, 0, 2, HIDDEN / 2, 1, 32>((const pair*)hidden, nullptr, w, G / 2, acc);
  UNROLL for (int m = 0; m < M; m++) {
    __m512 log_sigma = _mm512_fmadd_ps(all(o.width), tangent(_mm512_div_ps(acc[m][1], all(o.width))), all(o.center));
    __m512 sigma = _mm512_mul_ps(all(o.temperature), exponential(log_sigma));
    __m512 moved = _mm512_fmadd_ps(sigma, _mm512_loadu_ps(noise + m * D), acc[m][0]);
    put(out + m * D, _mm512_add_ps(widen(u + m * D), moved));
  }
}
// 16 channels of M tokens under both; the state takes the noise of the prior where `is_prior`.
template <int M>
INLINE void both_tile(const bf16* hidden, const pair* w, const bf16* u, const float* noise, bool is_prior, bf16* out,
                      float (*kl)[16], bf16* saved, const Options& o) {
  __m512 p[M][2], q[M][2], width = all(o.width), one = all(1.f);
  zero(p), zero(q);
  multiply<M, 0, 2, HIDDEN / 2, 1, 32>((const pair*)hidden, nullptr, w, G / 2, p);
  multiply<M, 0, 2, HIDDEN / 2, 1, 32>((const pair*)(hidden + G), nullptr, w + 16 * G, G / 2, q);
  for (int m = 0; m < M; m++) {
    __m512 tp = tangent(_mm512_div_ps(p[m][1], width)), tq = tangent(_mm512_div_ps(q[m][1], width));
    __m512 sp = _mm512_fmadd_ps(width, tp, all(o.center)), sq = _mm512_fmadd_ps(width, tq, all(o.center));
    __m512 sigma = _mm512_mul_ps(all(o.temperature), exponential(is_prior ? sp : sq));
    __m512 drawn = _mm512_mul_ps(sigma, _mm512_loadu_ps(noise + m * D));
    put(out + m * D, _mm512_add_ps(widen(u + m * D), _mm512_add_ps(is_prior ? p[m][0] : q[m][0], drawn)));
    __m512 apart = _mm512_sub_ps(q[m][0], p[m][0]), wider = _mm512_sub_ps(sq, sp);
    __m512 ratio = exponential(_mm512_add_ps(wider, wider));
    __m512 pull = _mm512_mul_ps(apart, exponential(_mm512_mul_ps(sp, all(-2.f))));
    __m512 distance = _mm512_mul_ps(apart, pull);
    __m512 excess = _mm512_sub_ps(_mm512_add_ps(ratio, distance), one);
    _mm512_storeu_ps(kl[m], _mm512_add_ps(_mm512_loadu_ps(kl[m]), _mm512_fmsub_ps(excess, all(.5f), wider)));
    if (!saved) continue;
    // tanh' = 1 - tanh^2
    __m512 slope_p = _mm512_fnmadd_ps(tp, tp, one), slope_q = _mm512_fnmadd_ps(tq, tq, one);
    bf16* own = saved + m * SAVED;
    put(own + SA, pull);
    put(own + SBP, _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), excess), slope_p));
    put(own + SBQ, _mm512_mul_ps(_mm512_sub_ps(ratio, one), slope_q));
    put(own + SS, _mm512_mul_ps(drawn, is_prior ? slope_p : slope_q));
  }
}
// Gradients of 16 channels' means and raw deviations of a token on both sides, from those of its state and its KL.
INLINE void side_gradients(const bf16* dh, float dkl, const bf16* saved, bool is_prior, const Options& o,
                           __m512 (&d)[4]) {
  __m512 g = widen(dh), theirs = all(dkl * o.balance), ours = all(dkl * (1 - o.balance)), none = _mm512_setzero_ps();
  __m512 pull = widen(saved + SA), drawn = _mm512_mul_ps(g, widen(saved + SS));
  d[0] = _mm512_fnmadd_ps(theirs, pull, is_prior ? g : none);
  d[1] = _mm512_fmadd_ps(theirs, widen(saved + SBP), is_prior ? drawn : none);
  d[2] = _mm512_fmadd_ps(ours, pull, is_prior ? none : g);
  d[3] = _mm512_fmadd_ps(ours, widen(saved + SBQ), is_prior ? none : drawn);
}
// Gradients of 32 hidden units' gates and ups of M tokens, as pairs of tokens; of the posterior also to `table`.
template <int M>
INLINE void hidden_back_tile(const bf16* d, const pair* w, const bf16* saved, pair* dgup, float* table,
                             const int64_t* index) {
  __m512 acc[M][2];
  zero(acc);
  multiply<M, 0, 2, WIDE / 2, 1, 32>((const pair*)d, nullptr, w, D, acc);
  UNROLL for (int m = 0; m < M; m += 2) {
    __m512i dg[2], du[2];
    UNROLL for (int e = 0; e < 2; e++) {
      __m512 gates[2], ups[2];
      UNROLL for (int j = 0; j < 2; j++) {
        const bf16* from = saved + (m + e) * SAVED + 16 * j;
        gates[j] = _mm512_mul_ps(acc[m + e][j], widen(from + SV));
        ups[j] = _mm512_mul_ps(acc[m + e][j], widen(from + SILU));
        if (!table) continue;
        float* to = table + index[m + e] * 2 * G + 16 * j;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), gates[j]));
        _mm512_storeu_ps(to + G, _mm512_add_ps(_mm512_loadu_ps(to + G), ups[j]));
      }
      dg[e] = narrow(gates[0], gates[1]), du[e] = narrow(ups[0], ups[1]);
    }
    put_pairs(dgup + m / 2 * GP, dg[0], dg[1]);
    put_pairs(dgup + m / 2 * GP + G, du[0], du[1]);
  }
}

// The next trajectories from `at` on that take noise; returns their number.
static int next_group(const uint8_t* is_noisy, int64_t rows, int64_t& at, Scratch& s) {
  int count = 0;
  for (; at < rows && count < GROUP; at++)
    if (is_noisy[at]) s.row[count++] = at;
  return count;
}

extern "C" {
void sizes(int64_t* out) { out[0] = PACKED, out[1] = SAVED, out[2] = GRADS, out[3] = sizeof(Scratch), out[4] = GROUP; }

// Of each side gate_up [2 G, D] and down [2 D, G].
void pack(const bf16* const* gate_up, const bf16* const* down, bf16* out) {
  for (int side = 0; side < 2; side++) {
    for (int n = 0; n < 2 * G; n++)
      for (int d = 0; d < D; d++)
        out[GU + side * 2 * G * D + (n % G / 32 * 32 * D + d / 2 * 64 + n / G * 32 + n % 32) * 2 + d % 2] =
            gate_up[side][n * D + d];
    for (int c = 0; c < 2 * D; c++)
      for (int g = 0; g < G; g++) {
        bf16 each = down[side][c * G + g];
        out[DN + ((c % D / 16 * 2 + side) * 16 * G + g / 2 * 32 + c / D * 16 + c % 16) * 2 + g % 2] = each;
        out[DNB + side * 2 * D * G + (g / 32 * 32 * D + c / 2 * 32 + g % 32) * 2 + c % 2] = each;
      }
  }
}

// u [rows, L, D] -> h, and kl [rows, L]. Without `table` [tokens, 2 G], whose rows `index` [rows, L] names, by the
// prior alone. `all_saved` [rows, L, SAVED] or null. `words` [3, rows]: of each trajectory's counter.
void forward(const bf16* w, const bf16* u, const float* table, const int64_t* index, const uint8_t* is_noisy,
             const uint8_t* is_prior, const int64_t* words, int64_t seed, bf16* h, float* kl, bf16* all_saved,
             int64_t first, int64_t rows, int64_t all_rows, const Options* o, Scratch* s) {
  memcpy(h + first * L * D, u + first * L * D, sizeof(bf16) * rows * L * D);
  if (kl) memset(kl + first * L, 0, sizeof(float) * rows * L);
  memset(s, 0, sizeof *s);
  int64_t at = first;
  while (int count = next_group(is_noisy, first + rows, at, *s)) {
    int tokens = (count * L + 1) / 2 * 2;
    memset(s->kl, 0, sizeof s->kl);
    for (int g = 0; g < count; g++) {
      int64_t row = s->row[g];
      memcpy(s->u + g * L * D, u + row * L * D, sizeof(bf16) * L * D);
      if (table) memcpy(s->index + g * L, index + row * L, sizeof(int64_t) * L);
      normals(s->noise + g * NOISE, L * D, seed, words[row], words[all_rows + row], words[2 * all_rows + row]);
    }
    for (int side = 0; side < (table ? 2 : 1); side++)
      for (int f = 0; f < G; f += 32)
        by_rows<6, 4>(tokens, [&](auto m, int t) {
          hidden_tile<m>(s->u + t * D, (const pair*)(w + GU) + side * G * D + f * D, side ? table + f : nullptr,
                         s->index + t, s->hidden + t * HIDDEN + side * G + f,
                         all_saved ? s->saved + t * SAVED + side * G + f : nullptr);
        });
    for (int g = 0; g < count; g++) {
      int64_t row = s->row[g];
      bf16* saved = all_saved ? s->saved + g * L * SAVED : nullptr;
      for (int d = 0; d < D; d += 16) {
        const pair* own = (const pair*)(w + DN) + d / 16 * 2 * 16 * G;
        auto tile = [&](auto m, int t) {
          const bf16* hidden = s->hidden + (g * L + t) * HIDDEN;
          const float* noise = s->noise + g * NOISE + t * D + d;
          bf16* to = h + (row * L + t) * D + d;
          if (table)
            both_tile<m>(hidden, own, s->u + (g * L + t) * D + d, noise, is_prior[row], to, s->kl + g * L + t,
                         saved ? saved + t * SAVED + d : nullptr, *o);
          else
            prior_tile<m>(hidden, own, s->u + (g * L + t) * D + d, noise, to, *o);
        };
        int t = 0;
        for (; t + 6 <= L; t += 6) tile(std::integral_constant<int, 6>(), t);
        for (; t + 3 <= L; t += 3) tile(std::integral_constant<int, 3>(), t);
        for (; t < L; t++) tile(std::integral_constant<int, 1>(), t);
      }
      if (saved) memcpy(all_saved + row * L * SAVED, saved, sizeof(bf16) * L * SAVED);
      if (kl)
        for (int t = 0; t < L; t++) kl[row * L + t] = _mm512_reduce_add_ps(_mm512_loadu_ps(s->kl[g * L + t]));
    }
  }
}
// From the gradients of h and kl: those of the weights and of the table, which are added to.
void backward(const bf16* w, const bf16* u, const int64_t* index, const uint8_t* is_noisy, const uint8_t* is_prior,
              const bf16* all_saved, const bf16* dh, const float* dkl, float* grads, float* table, int64_t first,
              int64_t rows, const Options* o, Scratch* s) {
  int64_t at = first;
  while (int count = next_group(is_noisy, first + rows, at, *s)) {
    int tokens = (count * L + 1) / 2 * 2;
    memset(s->u + count * L * D, 0, sizeof(bf16) * (tokens - count * L) * D);
    memset(s->saved + count * L * SAVED, 0, sizeof(bf16) * (tokens - count * L) * SAVED);
    memset(s->d + count * L * WIDE, 0, sizeof(bf16) * (tokens - count * L) * WIDE);
    memset(s->index, 0, sizeof s->index);
    for (int g = 0; g < count; g++) {
      int64_t row = s->row[g];
      memcpy(s->u + g * L * D, u + row * L * D, sizeof(bf16) * L * D);
      memcpy(s->saved + g * L * SAVED, all_saved + row * L * SAVED, sizeof(bf16) * L * SAVED);
      memcpy(s->index + g * L, index + row * L, sizeof(int64_t) * L);
      for (int t = 0; t < L; t++)
        for (int d = 0; d < D; d += 16) {
          __m512 each[4];
          int64_t from = row * L + t;
          side_gradients(dh + from * D + d, dkl[from], s->saved + (g * L + t) * SAVED + d, is_prior[row], *o, each);
          UNROLL for (int i = 0; i < 4; i++) put(s->d + (g * L + t) * WIDE + i * D + d, each[i]);
        }
    }
    pair_rows<WIDE, WP>(s->d, s->dp, tokens);
    pair_rows<D, D>(s->u, s->up, tokens);
    for (int t = 0; t < tokens; t++) memcpy(s->hidden + t * HIDDEN, s->saved + t * SAVED + SH, sizeof(bf16) * HIDDEN);
    pair_rows<HIDDEN, HP>(s->hidden, s->hp, tokens);
    for (int side = 0; side < 2; side++)
      for (int f = 0; f < G; f += 32)
        by_rows<12, 6>(tokens, [&](auto m, int t) {
          hidden_back_tile<m>(s->d + t * WIDE + side * 2 * D, (const pair*)(w + DNB) + side * D * G + f * D,
                              s->saved + t * SAVED + side * G + f, s->dgup + t / 2 * GP + side * 2 * G + f,
                              side ? table + f : nullptr, s->index + t);
        });
    add_product<12, 6, 2, D, 1, GP, D>(2 * HIDDEN, s->dgup, s->up, tokens / 2, grads + GGU);
    for (int side = 0; side < 2; side++)
      add_product<12, 6, 2, 2 * D, 1, HP, WP>(G, s->hp + side * G, s->dp + side * 2 * D, tokens / 2,
                                                grads + GDN + side * G * 2 * D);
  }
}
}
