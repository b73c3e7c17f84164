// What sampling.py decides about logits, for the common case: leads, softmax, draws, and how many drafts of a chain stay.
//
// The same formulas in float64.  Some sums run in another order than NumPy's, so probabilities may differ from there in
// their last bits.  Python draws the random numbers.
//
// Shapes:  l positions, v vocabulary (a multiple of 8), c drafts of a chain.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// e^x for x <= 0 within 2 ulp, 0 below -708; without branches, so that the compiler makes vectors of it.  x = n ln 2 + r, the
// series of e^r, and 2^n put together from its bits.
inline double exponential(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, which its last bits are
  const double bounded = x > -708.0 ? x : -708.0, shifted = bounded * 1.4426950408889634 + magic, n = shifted - magic;
  const double r = (bounded - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double e = 1.0 / 6227020800.0;
  for (double factor : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0})
    e = e * r + 1.0 / factor;
  const uint64_t scale = (std::bit_cast<uint64_t>(shifted) + 1023) << 52;
  return x > -708.0 ? e * std::bit_cast<double>(scale) : 0.0;
}

template <class Value>
double sum(int v, Value value) {
  double part[8] = {};
  for (int i = 0; i < v; i += 8)
    for (int j = 0; j < 8; j++) part[j] += value(i + j);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// In 8 parts, so that the compiler makes vectors of it.
float largest(const float* values, int v) {
  float part[8];
  std::copy(values, values + 8, part);
  for (int i = 8; i < v; i += 8)
    for (int j = 0; j < 8; j++) part[j] = values[i + j] > part[j] ? values[i + j] : part[j];
  return *std::max_element(part, part + 8);
}

// `sample_id`: the id at `uniform` of the cumulative weights, never one of weight 0.
template <class Weight>
int64_t draw(int v, double uniform, Weight weight) {
  double total = 0, below = 0;
  for (int i = 0; i < v; i++) total += weight(i);
  int64_t last = 0;
  for (int i = 0; i < v; i++) {
    const double w = weight(i);
    if (w <= 0) continue;
    last = i, below += w;
    if (below > uniform * total) break;
  }
  return last;
}

}  // namespace

extern "C" {

// best [2, l]: the likeliest ids, and whether their leads are at least `margin` of the largest of the first `real` logits.
void leads(const float* logits, int count, int v, int real, float margin, int64_t* best) {
  for (int l = 0; l < count; l++, logits += v) {
    float top = -std::numeric_limits<float>::infinity(), second = top, largest = 0;
    best[l] = 0;
    for (int i = 0; i < v; i++) {
      const float x = logits[i];
      if (x > top) second = top, top = x, best[l] = i;
      else if (x > second) second = x;
      if (i < real && std::fabs(x) > largest) largest = std::fabs(x);
    }
    best[count + l] = top - second >= margin * largest;
  }
}

// p [l, v]
void softmax(const float* logits, int count, int v, double temperature, double* p) {
  for (int l = 0; l < count; l++, logits += v, p += v) {
    const float top = largest(logits, v);
    for (int i = 0; i < v; i++) p[i] = exponential(((double)logits[i] - top) / temperature);
    const double total = sum(v, [&](int i) { return p[i]; });
    for (int i = 0; i < v; i++) p[i] /= total;
  }
}

// The largest probability of the softmax of logits [v].
double largest_probability(const float* logits, int v) {
  const float top = largest(logits, v);
  return 1 / sum(v, [&](int i) { return exponential((double)logits[i] - top); });
}

// One id from each of q [l, v].
void sample_ids(const double* q, int count, int v, const double* uniforms, int64_t* ids) {
  for (int l = 0; l < count; l++) ids[l] = draw(v, uniforms[l], [&](int i) { return q[(int64_t)l * v + i]; });
}

// How many of the c drafts `ids` stay, and the id after them (`verify_chain`, `chain_laws`), by two random numbers.
// p [c + 1, v]; q [c, v], or null if the drafts were not drawn.
int64_t verify_chain(
    const double* p, int c, int v, const int64_t* ids, const double* q, double first, double second, int64_t* stay) {
  std::vector<double> at_least(c + 1, 1.0), totals(c + 1), lengths(c + 1);
  auto drawn = [&](int i, int id) { return i == c ? 0.0 : q ? q[(int64_t)i * v + id] : double(id == ids[i]); };
  auto rest = [&](int i, int id) {
    const double weight = at_least[i] * p[(int64_t)i * v + id] - drawn(i, id);
    return weight > 0 ? weight : 0.0;
  };
  for (int i = 0; i < c; i++) {
    const double kept = at_least[i] * p[(int64_t)i * v + ids[i]], before = drawn(i, (int)ids[i]);
    at_least[i + 1] = kept < before ? kept / before : 1.0;
  }
  double later = 1.0;  // the chance that no longer chain stays
  for (int i = c; i >= 0; i--) {
    totals[i] = sum(v, [&](int id) { return rest(i, id); });
    const double ends = totals[i] + (1 - at_least[i]), h = ends > 0 ? totals[i] / ends : 1.0;
    lengths[i] = h * later;
    later *= 1 - h;
  }
  const int i = (int)draw(c + 1, first, [&](int i) { return lengths[i]; });
  *stay = i;
  if (totals[i] == 0) return draw(v, second, [&](int id) { return p[(int64_t)i * v + id]; });
  return draw(v, second, [&](int id) { return rest(i, id); });
}

}  // extern "C"
