// A decoding step of Llama-like layers on CPU cores: a few ids at a time, against a key/value cache.
//
// A step reads every weight once and does little with it, so it should take as long as that reading.  Three things stand
// in the way when it is made of many small tensor operations: the time between them, matrix products that were tuned for
// other shapes, and threads that wait for one another.  Here one call runs all layers, the matrices lie in the order in
// which they are read, and threads meet at a barrier that costs less than a microsecond.
//
// Every number of an id is computed by the same operations in the same order whatever ids it is computed together with
// (how many, in which rows, on how many threads, as a chain or in a tree).  So a pass that verifies eight drafts gives,
// bit for bit, what eight passes over one id give.
//
// A matrix W [out, in] is packed in panels of p outputs, [out / p, in, p], zeros behind the last output.  The scale of the
// norm in front of a matrix is part of the packed matrix: W (s x / rms(x)) = (W diag(s)) x / rms(x).
//
// Matrices are float32 or bfloat16, the upper half of a float32, which takes half as long to read.  Those are packed by
// pairs of inputs, [out / p, in / 2, p, 2], and what they are multiplied with is rounded to bfloat16 first.  Products of two
// bfloat16 are exact in float32, in which they are summed; all else is float32, too.  A processor that multiplies tiles does
// so for more than a few ids; then sums have its order, in which vectors give the same bits.  One that multiplies pairs and
// no tiles does that for all of them.  Those of layers may also be int8 (`Int8` below), which takes half as long once more.
//
// A row of the cache is a ring: id number n of a text lies in slot n % slots, and what is long past is overwritten.
//
// Shapes:  t ids (tokens), q of them asked for (queries), d width, h heads, g key/value heads, k head width, f inner width.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <sched.h>
#include <thread>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>
#if defined(__AMX_BF16__) && defined(__linux__)
#define TILES  // of matrices, which the processor multiplies (AMX)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__AVX512BF16__)
#define PAIRS  // of bfloat16, likewise
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// LANES: floats of a vector, slots of a block of keys; a panel of gate_up has as many gates and ups.
// ROWS: rows that a panel is multiplied with at once.  Their sums fill the processor's registers and no more: sums that
// have to go to memory and back make a pass over eight ids some thirty times as slow.
#if defined(__AVX512F__)  // 32 registers of 64 bytes
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX2__)  // 16 of 32 bytes
constexpr int LANES = 8, ROWS = 6;
#elif defined(__aarch64__)  // 32 of 16 bytes
constexpr int LANES = 4, ROWS = 8;
#else  // 16 of 16 bytes
constexpr int LANES = 4, ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // outputs of a panel
constexpr int STRETCH = 64;       // slots whose values fit the nearest cache; a row of the cache has a multiple of so many
constexpr int CACHE_LINE = 64;    // bytes
constexpr int AHEAD = 2048;       // bytes: weights so far ahead are fetched; the processor alone begins too late
constexpr float EPSILON = 1e-5f;
constexpr int SPINS_BEFORE_SLEEP = 20000;  // some 300 microseconds: longer than Python takes between two calls

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

float sum(Vector v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

// e^x within 2 ulp, 0 below -87: x = n ln 2 + r, a polynomial for e^r, and 2^n put together from its bits.
Vector exp(Vector x) {
  const Vector magic = Vector{} + 12582912.0f;  // adding it rounds to an integer
  Vector bounded = x > -87.0f ? x : Vector{} - 87.0f;
  bounded = bounded < 88.0f ? bounded : Vector{} + 88.0f;
  Vector n = (bounded * 1.44269504f + magic) - magic;
  Vector r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = Vector{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.0f;
  Integers bits = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x > -87.0f ? p * scale : Vector{};
}

// ---- Threads that work on one step together, as long as the process lives

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { serve(i); });
  }
  // Runs work(argument, member) on all threads; one caller at a time.
  void run(void (*work)(void*, int), void* argument) {
    std::lock_guard<std::mutex> alone(mutex_);
    work_ = work, argument_ = argument;
    call();
    work(argument, 0);
    barrier();
  }
  void barrier() {
    if (size_ == 1) return;
    unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;) pause(spins);
  }
  int size() const { return size_; }

 private:
  static void pause(int& spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (++spins > 2000) sched_yield();  // somebody else needs this core
  }
  void call() {
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
  }
  void serve(int member) {
    for (unsigned seen = 0;; seen++) {
      for (int spins = 0; calls_.load(std::memory_order_acquire) == seen; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins > SPINS_BEFORE_SLEEP) calls_.wait(seen, std::memory_order_acquire);
      }
      work_(argument_, member);
      barrier();
    }
  }

  const int size_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  void (*work_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  std::atomic<unsigned> calls_{0}, phase_{0};
  std::atomic<int> arrived_{0};
};

// ---- Matrix products

// How a matrix lies in memory: `Weight` is one of its numbers, of which INPUTS fill 32 bits; `Input` one of what it is
// multiplied with.
struct Float32 {
  using Weight = float;
  using Input = float;
  static constexpr int INPUTS = 1;
  static Vector weights(const float* panel, int) { return load(panel); }
};

// What a processor multiplies at once with each of a panel's outputs.
inline int32_t word(const void* inputs) {
  int32_t bits;
  std::memcpy(&bits, inputs, sizeof bits);
  return bits;
}

// Widened to float32 by a shift, or multiplied by pairs: of them first the odd one is added, then the even one.  Zen 4 does
// that at twice the rate of float32 products; on a Xeon with tiles it starts once in two cycles, float32 products twice in
// one, and a pass over eight ids took 1.7 times as long as by shifts.
struct Bfloat16 {
  using Weight = uint16_t;
#if defined(PAIRS)
  using Input = uint16_t;
  static Vector add_pairs(Vector total, Vector weights, const uint16_t* x) {
    return (Vector)_mm512_dpbf16_ps((__m512)total, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(word(x)));
  }
#else
  using Input = float;
#endif
  static constexpr int INPUTS = 2;
  static Vector weights(const uint16_t* panel, int input) {
    Integers both = *reinterpret_cast<const Integers*>(panel);
    return (Vector)(input == 0 ? both << 16 : both & ~0xffff);
  }
};

// To the nearest bfloat16, of two equally near to the even one.
Vector rounded(Vector x) {
  Integers bits = (Integers)x;
  return (Vector)((bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff);
}

#if defined(TILES)
constexpr bool BY_TILES = true;
// Of a tile; and rows that vectors multiply as fast.
constexpr int TILE_ROWS = 16, TILE_INPUTS = 32, FEW_ROWS = 4;

// While there is one, this thread may multiply by tiles.  They take numbers below 2^-126 for zero: so do vectors meanwhile.
class Tiles {
 public:
  Tiles() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~Tiles() {
    _mm_setcsr(before_);
    if (shaped_) _tile_release();
  }
  // Whether the system lets this process do so.
  static bool allowed() {
    static const bool allowed = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' data */);
    return allowed;
  }
  // As panel_product, for up to two tiles of rows x [rows, in].  Tiles 0 to 3 are the sums of the first and of the second
  // tile of rows with both halves of the panel, 4 and 5 these rows, 6 and 7 the halves.
  void product(const uint16_t* panel, int in, const uint16_t* x, int rows, float (*out)[PANEL]) {
    if (rows != shaped_) shape(rows);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < in; i += TILE_INPUTS, panel += TILE_INPUTS * PANEL) {
      for (int b = 0; b < TILE_INPUTS * PANEL * 2; b += CACHE_LINE)
        __builtin_prefetch(reinterpret_cast<const char*>(panel) + 2 * AHEAD + b);
      _tile_loadd(6, panel, PANEL * 4);
      _tile_loadd(7, panel + PANEL, PANEL * 4);
      _tile_loadd(4, x + i, in * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (rows <= TILE_ROWS) continue;
      _tile_loadd(5, x + (int64_t)TILE_ROWS * in + i, in * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out[0], PANEL * 4);
    _tile_stored(1, out[0] + LANES, PANEL * 4);
    if (rows <= TILE_ROWS) return;
    _tile_stored(2, out[TILE_ROWS], PANEL * 4);
    _tile_stored(3, out[TILE_ROWS] + LANES, PANEL * 4);
  }

 private:
  void shape(int rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } shape;
    const uint8_t first = (uint8_t)std::min(rows, TILE_ROWS), second = (uint8_t)std::max(rows - TILE_ROWS, 1);
    const uint8_t used[] = {first, first, second, second, first, second, TILE_INPUTS / 2, TILE_INPUTS / 2};
    std::memcpy(shape.rows, used, sizeof used);
    _tile_loadconfig(&shape);
    shaped_ = rows;
  }

  const unsigned before_;
  int shaped_ = 0;
};
#else
constexpr bool BY_TILES = false;
constexpr int TILE_ROWS = 0, TILE_INPUTS = 32, FEW_ROWS = 0;
struct Tiles {
  static bool allowed() { return false; }
  void product(const uint16_t*, int, const uint16_t*, int, float (*)[PANEL]) {}
};
#endif

// out[r][p] = panel [in, p] times the rows x[r][in].  In bfloat16 in the order of tiles, where there are any: the even and
// the odd inputs of a tile are summed apart, from zero on.
template <class Kind, int R>
void panel_product(const typename Kind::Weight* panel, int in, const typename Kind::Input* const* x, float (*out)[PANEL]) {
  constexpr int vectors = PANEL / LANES;
  constexpr bool as_tiles = Kind::INPUTS == 2 && BY_TILES, by_pairs = sizeof(typename Kind::Input) == 2;
  Vector total[R][vectors] = {}, part[R][vectors][2] = {};
  for (int i = 0; i < in; i += Kind::INPUTS, panel += PANEL * Kind::INPUTS) {
    for (int b = 0; b < PANEL * 4; b += CACHE_LINE) __builtin_prefetch(reinterpret_cast<const char*>(panel) + AHEAD + b);
    for (int j = 0; j < (by_pairs ? 1 : Kind::INPUTS); j++) {
      Vector weights[vectors];
      for (int p = 0; p < vectors; p++) {
        const auto* from = panel + p * LANES * Kind::INPUTS;
        weights[p] = by_pairs ? load(reinterpret_cast<const float*>(from)) : Kind::weights(from, j);
      }
      for (int r = 0; r < R; r++)
        for (int p = 0; p < vectors; p++) {
          if constexpr (by_pairs) total[r][p] = Kind::add_pairs(total[r][p], weights[p], x[r] + i);
          else (as_tiles ? part[r][p][j] : total[r][p]) += weights[p] * x[r][i + j];
        }
    }
    if (!as_tiles || ((i + Kind::INPUTS) % TILE_INPUTS && i + Kind::INPUTS < in)) continue;
    for (int r = 0; r < R; r++)
      for (int p = 0; p < vectors; p++) total[r][p] += part[r][p][0] + part[r][p][1], part[r][p][0] = part[r][p][1] = Vector{};
  }
  // Unrolled early, or the sums would go through memory: here and below.
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int p = 0; p < vectors; p++) store(&out[r][p * LANES], total[r][p]);
}

template <class Kind>
using PanelProduct = void (*)(const typename Kind::Weight*, int, const typename Kind::Input* const*, float (*)[PANEL]);

template <class Kind, int... R>
constexpr std::array<PanelProduct<Kind>, sizeof...(R)> by_rows(std::integer_sequence<int, R...>) {
  return {panel_product<Kind, R + 1>...};
}

// Calls part(begin, some) for `count` rows, `most` at most in a part and nearly as many in each: a product of one row takes
// half as long as one of eight.
template <class Part>
void in_parts(int count, int most, Part part) {
  int left = (count + most - 1) / most;
  for (int begin = 0, some; begin < count; begin += some, left--) part(begin, some = (count - begin + left - 1) / left);
}

// Rows [in] that lie one behind another, for matrices of a kind to be multiplied with: as they are, or each of them rounded
// when it is first needed.
template <class Kind>
class Rows {
 public:
  Rows(const float* x, int rows, int in) : x_(x), in_(in) {
    if (!rounds) return;
    done_.resize(rows);
    if (!by_pairs) rounded_.reset(new float[(int64_t)rows * in]);
    if (tiled || by_pairs) halves_.reset(new Line[(int64_t)rows * in / TILE_INPUTS + 1]);
  }
  // Calls use(i, out[p]), i < count, with the products of a matrix's panel and row which(i).
  template <class Which, class Use>
  void times(const void* matrix, int panel, int count, Which which, Use use) {
    const auto* weights = static_cast<const typename Kind::Weight*>(matrix) + (int64_t)panel * in_ * PANEL;
    if constexpr (tiled)
      if (count > FEW_ROWS && in_ % TILE_INPUTS == 0 && Tiles::allowed()) return times_by_tiles(weights, count, which, use);
    constexpr int most = tiled ? FEW_ROWS : ROWS;
    static constexpr auto products = by_rows<Kind>(std::make_integer_sequence<int, most>());
    in_parts(count, most, [&](int begin, int some) {
      float out[most][PANEL];
      const Input* x[most];
      for (int i = 0; i < some; i++) x[i] = input(which(begin + i));
      products[some - 1](weights, in_, x, out);
      for (int i = 0; i < some; i++) use(begin + i, out[i]);
    });
  }

 private:
  using Input = typename Kind::Input;
  static constexpr bool rounds = std::is_same_v<Kind, Bfloat16>, tiled = rounds && BY_TILES, by_pairs = sizeof(Input) == 2;
  template <class Which, class Use>
  void times_by_tiles(const uint16_t* weights, int count, Which which, Use use) {
    constexpr int most = 2 * TILE_ROWS;
    alignas(CACHE_LINE) float out[most][PANEL];
    for (int begin = 0, some; begin < count; begin += some) {
      const int first = which(begin);
      for (some = 0; some < std::min(count - begin, most) && which(begin + some) == first + some; some++) input(first + some);
      tiles_.product(weights, in_, half(first), some, out);
      for (int i = 0; i < some; i++) use(begin + i, out[i]);
    }
  }
  uint16_t* half(int r) { return reinterpret_cast<uint16_t*>(halves_.get()) + (int64_t)r * in_; }
  const Input* input(int r) {
    const int64_t begin = (int64_t)r * in_;
    if constexpr (!rounds) return x_ + begin;
    for (int i = 0; i < in_ && !done_[r]; i += LANES) {
      const Vector value = rounded(load(x_ + begin + i));
      if (!by_pairs) store(&rounded_[begin + i], value);
      if (tiled || by_pairs) *reinterpret_cast<Halves*>(half(r) + i) = __builtin_convertvector((Integers)value >> 16, Halves);
    }
    done_[r] = true;
    if constexpr (by_pairs) return half(r);
    else return &rounded_[begin];
  }

  typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
  struct alignas(CACHE_LINE) Line {
    char bytes[CACHE_LINE];
  };
  const float* x_;
  int in_;
  std::vector<char> done_;
  std::unique_ptr<float[]> rounded_;
  std::unique_ptr<Line[]> halves_;  // the same, for tiles
  std::conditional_t<rounds, Tiles, std::monostate> tiles_;
};

// Whole numbers from -127 to 127, four inputs of an output in 32 bits.  A panel begins with a scale for each of its outputs
// and 128 times the sum of its weights: [p] float32, [p] int32, [in / 4, p, 4].  What it is multiplied with is rounded to
// 127 steps of its row's largest number, and moved up by 128, since processors multiply bytes with a sign by bytes without.
// Sums are of whole numbers, and exact in whatever order.
struct Int8 {};

Integers add_quads(Integers total, const char* weights, const uint8_t* x) {
#if defined(__AVX512VNNI__)
  return (Integers)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi32(word(x)), _mm512_loadu_si512(weights));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
  return (Integers)_mm256_dpbusd_avx_epi32((__m256i)total, _mm256_set1_epi32(word(x)), w);
#else
  const Integers four = *reinterpret_cast<const Integers*>(weights);
  for (int j = 0; j < 4; j++) total += (four << (24 - 8 * j) >> 24) * x[j];
  return total;
#endif
}

struct Quads {
  const uint8_t* bytes;  // [in]
  float scale;
};

template <int R>
void quad_product(const char* panel, int in, const Quads* x, float (*out)[PANEL]) {
  constexpr int vectors = PANEL / LANES;
  const float* scales = reinterpret_cast<const float*>(panel);
  const char *sums = panel + 4 * PANEL, *weights = panel + 8 * PANEL;
  Integers total[R][vectors] = {};
  for (int i = 0; i < in; i += 4, weights += 4 * PANEL) {
    for (int b = 0; b < PANEL * 4; b += CACHE_LINE) __builtin_prefetch(weights + AHEAD + b);
    for (int r = 0; r < R; r++)
      for (int p = 0; p < vectors; p++) total[r][p] = add_quads(total[r][p], weights + 4 * LANES * p, x[r].bytes + i);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int p = 0; p < vectors; p++) {
      const Integers products = total[r][p] - *reinterpret_cast<const Integers*>(sums + 4 * LANES * p);
      store(&out[r][p * LANES], __builtin_convertvector(products, Vector) * load(scales + LANES * p) * x[r].scale);
    }
}

template <int... R>
constexpr std::array<void (*)(const char*, int, const Quads*, float (*)[PANEL]), sizeof...(R)> quads_by_rows(
    std::integer_sequence<int, R...>) {
  return {quad_product<R + 1>...};
}

template <>
class Rows<Int8> {
 public:
  Rows(const float* x, int rows, int in) : x_(x), in_(in), scales_(rows, -1.0f), bytes_(new uint8_t[(int64_t)rows * in]) {}
  template <class Which, class Use>
  void times(const void* matrix, int panel, int count, Which which, Use use) {
    static constexpr auto products = quads_by_rows(std::make_integer_sequence<int, ROWS>());
    const char* weights = static_cast<const char*>(matrix) + (int64_t)panel * PANEL * (8 + in_);
    in_parts(count, ROWS, [&](int begin, int some) {
      float out[ROWS][PANEL];
      Quads x[ROWS];
      for (int i = 0; i < some; i++) x[i] = input(which(begin + i));
      products[some - 1](weights, in_, x, out);
      for (int i = 0; i < some; i++) use(begin + i, out[i]);
    });
  }

 private:
  typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
  Quads input(int r) {
    uint8_t* bytes = &bytes_[(int64_t)r * in_];
    if (scales_[r] < 0) scales_[r] = round_to(x_ + (int64_t)r * in_, bytes);
    return {bytes, scales_[r]};
  }
  float round_to(const float* x, uint8_t* bytes) const {
    Integers most{};
    for (int i = 0; i < in_; i += LANES) {  // as integers sizes are in the same order, and nan is the largest
      const Integers size = (Integers)load(x + i) & 0x7fffffff;
      most = size > most ? size : most;
    }
    int32_t top = 0;
    for (int i = 0; i < LANES; i++) top = std::max(top, most[i]);
    float largest;
    std::memcpy(&largest, &top, sizeof largest);
    const Vector steps = Vector{} + std::min(127.0f / largest, 0x1p120f), magic = Vector{} + 12582912.0f;
    for (int i = 0; i < in_; i += LANES) {  // adding it rounds to an integer, which its last bits are
      const Integers n = (Integers)(load(x + i) * steps + magic) - 0x4b400000 + 128;
      *reinterpret_cast<Bytes*>(bytes + i) = __builtin_convertvector(n, Bytes);
    }
    return std::max(largest / 127.0f, 0x1p-120f);
  }

  const float* x_;
  int in_;
  std::vector<float> scales_;
  std::unique_ptr<uint8_t[]> bytes_;
};

float inverse_rms(const float* x, int dim) {
  Vector total{};
  for (int i = 0; i < dim; i += LANES) total += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(total) / dim + EPSILON);
}

int panels(int outputs) { return (outputs + PANEL - 1) / PANEL; }

// ---- What Python hands over; native/library.py has the same structures

struct Shape {
  int dim, heads, kv_heads, head_dim, ffn;  // head_dim and ffn as they lie in memory: multiples of LANES
  int true_head_dim;
  int slots;     // of a row of the cache
  int bfloat16, int8;  // whether all matrices are, or those of layers; else float32
};

struct Layer {
  const void *qkv, *attention_out, *gate_up, *ffn_out;  // packed; a panel of gate_up has LANES gates, then their ups
  float *k;                                             // [rows, g, slots / LANES, k, LANES]
  float *v;                                             // [rows, g, slots, k]
  const float *q_norm, *k_norm;                         // [true k] scales of a head's norm; null: not normed
};

struct Tokens {
  int count, chunk;                  // t, and the most that a row has
  const int *row, *slot, *position;  // [t]; a row's tokens lie together; `slot` counts from the text's start
  const int* first;                  // [t] its row's first token: what lies before that one's slot is decided
  const int* oldest;                 // [t] first position that it sees
  const uint8_t* above;              // [t, chunk] which tokens of its row it sees; null: those before it, and itself
  const float* angles;               // [n, 2, k] by position: cosines and sines, the first half of the sines negated
};

struct Pass {
  const Shape* shape;
  const Layer* layers;
  int layer_count;
  const Tokens* tokens;
  int query_count;
  const int* queries;  // [q] tokens whose output is asked for
  const float* x;      // [t, d]
  float* y;            // [layers, q, d]
  float *qkv, *attended, *inner, *scores;  // scratch: [layers, t, (h + 2g) k], [layers, q, h k], [layers, q, f], [threads, floats_of_scores]
};

// ---- A layer

// x / rms(x) times the norm's scale, if there is one.  What lies behind the true width is zero and stays so.
void norm_head(float* x, const Shape& shape, const float* scale) {
  if (!scale) return;
  Vector total{};
  for (int i = 0; i < shape.head_dim; i += LANES) total += load(x + i) * load(x + i);
  const float inverse = 1.0f / std::sqrt(sum(total) / shape.true_head_dim + EPSILON);
  for (int i = 0; i < shape.true_head_dim; i++) x[i] *= inverse * scale[i];
}

void rotate(float* x, const Shape& shape, const float* angles) {
  const int half = shape.true_head_dim / 2;
  const float *cos = angles, *sin = angles + shape.true_head_dim;
  for (int i = 0; i < half; i++) {
    float first = x[i], second = x[i + half];
    x[i] = first * cos[i] + second * sin[i];
    x[i + half] = second * cos[i + half] + first * sin[i + half];
  }
}

// A vector of keys or values from memory serves so many queries at once: their sums fill half of the registers.
constexpr int TOGETHER = ROWS / 2;

// Scores -> e^(scale (score - greatest)) in place, for a multiple of LANES of them; returns their sum.
float exponentials(float* scores, int count, float scale) {
  Vector greatest = load(scores);
  for (int i = LANES; i < count; i += LANES) greatest = load(scores + i) > greatest ? load(scores + i) : greatest;
  float top = greatest[0];
  for (int i = 1; i < LANES; i++) top = greatest[i] > top ? greatest[i] : top;
  Vector total{};
  for (int i = 0; i < count; i += LANES) {
    Vector e = exp((load(scores + i) - top) * scale);
    store(scores + i, e);
    total += e;
  }
  return sum(total);
}

// One query of one head.  Its scores, later weights, lie by position: sums then run in the order of positions, whether
// the ids in front of it stand in a chain or in a tree.
struct Query {
  int token, position, oldest, base;  // base: oldest, rounded down to a block
  const float* q;
  float *weights, *out, total;
};

// scores[n] = dot products of query n with the keys of a block, in four sums so that one need not wait for the last.
template <int N>
void block_scores(const Query* queries, const float* keys, int head_dim, float (*scores)[LANES]) {
  Vector part[N][4] = {};
  for (int i = 0; i < head_dim; i += 4)
    for (int j = 0; j < 4; j++) {
      const Vector key = load(keys + (i + j) * LANES);
      for (int n = 0; n < N; n++) part[n][j] += key * queries[n].q[i + j];
    }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) store(scores[n], (part[n][0] + part[n][1]) + (part[n][2] + part[n][3]));
}

// out of N queries += the values v [to - from, width] of the slots from `from` on, each by its weight, for W vectors of columns.
template <int N, int W>
void add_columns(Query* queries, const float* v, int width, int from, int to, int column) {
  Vector sums[N][W];
  const float* weights[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    weights[n] = queries[n].weights - queries[n].base;
#pragma GCC unroll 4
    for (int c = 0; c < W; c++) sums[n][c] = load(queries[n].out + column + c * LANES);
  }
  v += column;
  for (int s = from; s < to; s++, v += width)
    for (int c = 0; c < W; c++) {
      const Vector value = load(v + c * LANES);
      for (int n = 0; n < N; n++) sums[n][c] += value * weights[n][s];
    }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int c = 0; c < W; c++) store(queries[n].out + column + c * LANES, sums[n][c]);
}

// For 1 to TOGETHER queries; the columns of a call are at most four vectors.
constexpr int COLUMNS = 4;
using BlockScores = void (*)(const Query*, const float*, int, float (*)[LANES]);
using AddColumns = void (*)(Query*, const float*, int, int, int, int);

template <int... N>
constexpr std::array<BlockScores, sizeof...(N)> scores_by_queries(std::integer_sequence<int, N...>) {
  return {block_scores<N + 1>...};
}

template <int... I>
constexpr std::array<AddColumns, sizeof...(I)> adds_by_queries(std::integer_sequence<int, I...>) {
  return {add_columns<I / COLUMNS + 1, I % COLUMNS + 1>...};
}

// Queries of one key/value head that take keys and values out of the nearest cache together.
struct Queries {
  const Tokens& tokens;
  const Shape& shape;
  const float *k, *v;
  Query list[ROWS];
  int count;

  bool sees(const Query& query, int j) const {
    int first = tokens.first[query.token];
    if (tokens.above) return tokens.above[(int64_t)query.token * tokens.chunk + j - first];
    return tokens.position[j] >= query.oldest;
  }

  void score() const {
    int from = list[0].base, to = 0;
    for (int n = 0; n < count; n++) {
      from = std::min(from, list[n].base);
      to = std::max(to, tokens.slot[list[n].token]);
    }
    for (int s = from; s <= to; s += LANES)
      for (int n = 0; n < count; n += TOGETHER) score_block(list + n, std::min(count - n, TOGETHER), s);
  }

  // Of some queries with the keys of the block that begins at slot s.
  void score_block(const Query* queries, int some, int s) const {
    static constexpr auto scores = scores_by_queries(std::make_integer_sequence<int, TOGETHER>());
    float result[TOGETHER][LANES];
    scores[some - 1](queries, k + (int64_t)(s % shape.slots) * shape.head_dim, shape.head_dim, result);
    for (int n = 0; n < some; n++)
      if (s >= queries[n].base && s <= tokens.slot[queries[n].token]) store(queries[n].weights + s - queries[n].base, load(result[n]));
  }

  void weigh(Query& query) const {
    const float never = -std::numeric_limits<float>::infinity();
    const int count = query.position - query.base + 1, padded = (count + LANES - 1) / LANES * LANES;
    if (tokens.above)  // from slots to positions, which are never greater
      for (int j = tokens.first[query.token]; j <= query.token; j++)
        if (sees(query, j)) query.weights[tokens.position[j] - query.base] = query.weights[tokens.slot[j] - query.base];
    for (int i = 0; i < query.oldest - query.base; i++) query.weights[i] = never;
    for (int i = count; i < padded; i++) query.weights[i] = never;
    query.total = exponentials(query.weights, padded, 1.0f / std::sqrt((float)shape.true_head_dim));
  }

  const float* value(int slot) const { return v + (int64_t)(slot % shape.slots) * shape.head_dim; }

  // Slots of one stretch, which lie together, for some queries.
  void add(Query* queries, int some, int from, int to) const {
    static constexpr auto adds = adds_by_queries(std::make_integer_sequence<int, TOGETHER * COLUMNS>());
    const int width = shape.head_dim;
    for (int c = 0; c < width; c += COLUMNS * LANES)
      adds[(some - 1) * COLUMNS + std::min(COLUMNS, (width - c) / LANES) - 1](queries, value(from), width, from, to, c);
  }

  // The same, of which each query sees those from its oldest on.
  void add_seen(Query* queries, int some, int from, int to) const {
    int all = from;  // see what comes from here on
    for (int n = 0; n < some; n++) all = std::max(all, queries[n].oldest);
    all = std::min(all, to);
    for (int n = 0; n < some; n++)
      if (const int first = std::max(from, queries[n].oldest); first < all) add(queries + n, 1, first, all);
    if (all < to) add(queries, some, all, to);
  }

  // Where the queries from number n on that are taken together stop to share what they add: behind the first one's own
  // slot, since those of a chain come in its order; in a tree before the chunk.
  int shared_end(int n) const {
    return tokens.slot[tokens.above ? tokens.first[list[n].token] : list[n].token] + !tokens.above;
  }

  // What a query alone sees behind that, in the order of positions.
  void add_rest(Query& query, int end) const {
    const int last = tokens.slot[query.token] + 1, width = shape.head_dim;
    if (!tokens.above) {
      for (int s = end, to; s < last; s = to) add_seen(&query, 1, s, to = std::min(s / STRETCH * STRETCH + STRETCH, last));
      return;
    }
    for (int j = tokens.first[query.token]; j <= query.token; j++) {
      if (!sees(query, j)) continue;
      const float* values = value(tokens.slot[j]);
      const float weight = query.weights[tokens.position[j] - query.base];
      for (int c = 0; c < width; c += LANES) store(query.out + c, load(query.out + c) + load(values + c) * weight);
    }
  }

  void finish() {
    const int width = shape.head_dim, last = shared_end((count - 1) / TOGETHER * TOGETHER);
    int oldest = last;
    for (int n = 0; n < count; n++) {
      std::memset(list[n].out, 0, width * sizeof(float));
      oldest = std::min(oldest, list[n].oldest);
    }
    for (int s = oldest / STRETCH * STRETCH; s < last; s += STRETCH)
      for (int n = 0; n < count; n += TOGETHER)
        add_seen(list + n, std::min(count - n, TOGETHER), s, std::min(s + STRETCH, shared_end(n)));
    for (int n = 0; n < count; n++) {
      Query& query = list[n];
      add_rest(query, shared_end(n / TOGETHER * TOGETHER));
      for (int c = 0; c < width; c += LANES) store(query.out + c, load(query.out + c) / query.total);
    }
  }

  void attend() {
    score();
    for (int n = 0; n < count; n++) weigh(list[n]);
    finish();
  }
};

// Keys and values of one row and key/value head into the cache, then attention of its queries.
void attention(const Pass& pass, int l, int row, int group, float* scratch) {
  const Shape& shape = *pass.shape;
  const Tokens& tokens = *pass.tokens;
  const int width = shape.head_dim, share = shape.heads / shape.kv_heads;
  const int64_t qkv_width = (int64_t)(shape.heads + 2 * shape.kv_heads) * width;
  const int64_t head = (int64_t)(row * shape.kv_heads + group) * shape.slots * width;
  float *k = pass.layers[l].k + head, *v = pass.layers[l].v + head;
  for (int i = 0; i < tokens.count; i++) {
    if (tokens.row[i] != row) continue;
    float* key = pass.qkv + ((int64_t)l * tokens.count + i) * qkv_width + (shape.heads + group) * width;
    const float* value = key + shape.kv_heads * width;
    const int slot = tokens.slot[i] % shape.slots;
    norm_head(key, shape, pass.layers[l].k_norm);
    rotate(key, shape, tokens.angles + (int64_t)tokens.position[i] * 2 * shape.true_head_dim);
    for (int c = 0; c < width; c++) k[((int64_t)(slot / LANES) * width + c) * LANES + slot % LANES] = key[c];
    std::memcpy(v + (int64_t)slot * width, value, width * sizeof(float));
  }
  Queries queries{tokens, shape, k, v, {}, 0};
  for (int n = 0; n < pass.query_count; n++) {
    const int i = pass.queries[n];
    if (tokens.row[i] != row) continue;
    for (int h = group * share; h < (group + 1) * share; h++) {
      float* q = pass.qkv + ((int64_t)l * tokens.count + i) * qkv_width + h * width;
      norm_head(q, shape, pass.layers[l].q_norm);
      rotate(q, shape, tokens.angles + (int64_t)tokens.position[i] * 2 * shape.true_head_dim);
      const int oldest = tokens.oldest[i];
      float* out = pass.attended + (((int64_t)l * pass.query_count + n) * shape.heads + h) * width;
      float* weights = scratch + (int64_t)queries.count * (shape.slots + LANES);
      queries.list[queries.count++] = {i, tokens.position[i], oldest, oldest / LANES * LANES, q, weights, out, 0.0f};
      if (queries.count == ROWS) queries.attend(), queries.count = 0;
    }
  }
  if (queries.count) queries.attend();
}

struct Work {
  Team* team;
  const Pass* pass;
  int rows;
};

// Calls job(l, j) for this thread's share of the jobs j < count of all layers l.
template <class Job>
void share(const Work& work, int member, int count, Job job) {
  const int64_t all = (int64_t)count * work.pass->layer_count, size = work.team->size();
  for (int64_t j = all * member / size; j < all * (member + 1) / size; j++) job((int)(j / count), (int)(j % count));
  work.team->barrier();
}

// x / rms(x) times the q, k, v matrix: keys and values of all tokens, queries of those that are asked for.
template <class Kind>
void project(const Work& work, int member) {
  const Pass& pass = *work.pass;
  const Shape& shape = *pass.shape;
  const int d = shape.dim, t = pass.tokens->count, width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  std::vector<float> scale(t);
  for (int i = 0; i < t; i++) scale[i] = inverse_rms(pass.x + (int64_t)i * d, d);
  Rows<Kind> x(pass.x, t, d);
  share(work, member, panels(width), [&](int l, int panel) {
    const bool only_queries = (panel + 1) * PANEL <= shape.heads * shape.head_dim;
    auto token = [&](int r) { return only_queries ? pass.queries[r] : r; };
    x.times(pass.layers[l].qkv, panel, only_queries ? pass.query_count : t, token, [&](int r, const float* out) {
      float* to = pass.qkv + ((int64_t)l * t + token(r)) * width;
      for (int c = panel * PANEL; c < width && c < (panel + 1) * PANEL; c++) to[c] = out[c - panel * PANEL] * scale[token(r)];
    });
  });
}

// Scratch that a thread needs where a row of the cache has so many slots.
int64_t floats_of_scores(int slots) { return (int64_t)ROWS * (slots + LANES); }

void attend(const Work& work, int member) {
  const Shape& shape = *work.pass->shape;
  float* scratch = work.pass->scores + member * floats_of_scores(shape.slots);
  // A head of all rows after the other, so that threads have as much to do where rows ask for different numbers of ids.
  share(work, member, work.rows * shape.kv_heads, [&](int l, int j) {
    attention(*work.pass, l, j % work.rows, j / work.rows, scratch);
  });
}

// y = x + attention's output times its matrix.
template <class Kind>
void add_attention(const Work& work, int member) {
  const Pass& pass = *work.pass;
  const int d = pass.shape->dim, q = pass.query_count, in = pass.shape->heads * pass.shape->head_dim;
  Rows<Kind> attended(pass.attended, pass.layer_count * q, in);
  share(work, member, panels(d), [&](int l, int panel) {
    attended.times(pass.layers[l].attention_out, panel, q, [&](int r) { return l * q + r; }, [&](int r, const float* out) {
      const float* from = pass.x + (int64_t)pass.queries[r] * d;
      float* to = pass.y + ((int64_t)l * q + r) * d;
      for (int c = panel * PANEL; c < d && c < (panel + 1) * PANEL; c++) to[c] = from[c] + out[c - panel * PANEL];
    });
  });
}

// silu(gate) * up of y / rms(y).
template <class Kind>
void gate(const Work& work, int member) {
  const Pass& pass = *work.pass;
  const int d = pass.shape->dim, f = pass.shape->ffn, q = pass.query_count;
  std::vector<float> scale((size_t)pass.layer_count * q, 0.0f);
  Rows<Kind> y(pass.y, pass.layer_count * q, d);
  share(work, member, f / LANES, [&](int l, int panel) {
    y.times(pass.layers[l].gate_up, panel, q, [&](int r) { return l * q + r; }, [&](int r, const float* out) {
      const int64_t place = (int64_t)l * q + r;
      if (scale[place] == 0.0f) scale[place] = inverse_rms(pass.y + place * d, d);
      Vector gated = load(out) * scale[place], up = load(out + LANES) * scale[place];
      store(pass.inner + place * f + panel * LANES, gated / (1.0f + exp(-gated)) * up);
    });
  });
}

// y += the inner vector times the last matrix.
template <class Kind>
void add_feed_forward(const Work& work, int member) {
  const Pass& pass = *work.pass;
  const int d = pass.shape->dim, f = pass.shape->ffn, q = pass.query_count;
  Rows<Kind> inner(pass.inner, pass.layer_count * q, f);
  share(work, member, panels(d), [&](int l, int panel) {
    inner.times(pass.layers[l].ffn_out, panel, q, [&](int r) { return l * q + r; }, [&](int r, const float* out) {
      float* to = pass.y + ((int64_t)l * q + r) * d;
      for (int c = panel * PANEL; c < d && c < (panel + 1) * PANEL; c++) to[c] += out[c - panel * PANEL];
    });
  });
}

template <class Kind>
void layer_step_of(const Work& work, int member) {
  for (auto part : {project<Kind>, attend, add_attention<Kind>, gate<Kind>, add_feed_forward<Kind>}) part(work, member);
}

void layer_step(void* argument, int member) {
  const Work& work = *static_cast<Work*>(argument);
  const Shape& shape = *work.pass->shape;
  if (shape.int8) layer_step_of<Int8>(work, member);
  else shape.bfloat16 ? layer_step_of<Bfloat16>(work, member) : layer_step_of<Float32>(work, member);
}

struct Stack {
  Work work;
  Pass pass;
  int kept;
};

// Layer after layer, each on the output of the one before: in place, but for the last `kept`, which write one behind another.
void stack_step(void* argument, int member) {
  const Stack& stack = *static_cast<Stack*>(argument);
  const int depth = stack.pass.layer_count;
  Pass pass = stack.pass;
  pass.layer_count = 1;
  float* y = const_cast<float*>(pass.x);
  for (int l = 0; l < depth; l++, pass.layers++) {
    if (l == depth - stack.kept) y = stack.pass.y;
    pass.y = y;
    Work work{stack.work.team, &pass, stack.work.rows};
    layer_step(&work, member);
    pass.x = y;
    if (l >= depth - stack.kept) y += (int64_t)pass.query_count * pass.shape->dim;
  }
}

struct Product {
  Team* team;
  const void* w;
  int bfloat16, in, out, rows, normed, added;
  const float* x;
  float* y;
};

template <class Kind>
void product_step_of(const Product& p, int member) {
  const int all = panels(p.out), size = p.team->size();
  std::vector<float> scale(p.rows, 1.0f);
  for (int r = 0; r < p.rows && p.normed; r++) scale[r] = inverse_rms(p.x + (int64_t)r * p.in, p.in);
  Rows<Kind> x(p.x, p.rows, p.in);
  for (int panel = all * member / size; panel < all * (member + 1) / size; panel++)
    x.times(p.w, panel, p.rows, [](int r) { return r; }, [&](int r, const float* out) {
      float* to = p.y + (int64_t)r * p.out;
      for (int c = panel * PANEL; c < p.out && c < (panel + 1) * PANEL; c++)
        to[c] = (p.added ? to[c] : 0.0f) + out[c - panel * PANEL] * scale[r];
    });
}

void product_step(void* argument, int member) {
  const Product& p = *static_cast<Product*>(argument);
  p.bfloat16 ? product_step_of<Bfloat16>(p, member) : product_step_of<Float32>(p, member);
}

// A pass over chains: in each row the first `lengths` of the ids follow one another from `start` on.
struct Chunk {
  const Shape* shape;
  const Layer* layers;
  int layer_count, kept, threads;
  int window;
  int outputs, vocabulary;               // v, and how many of them are ids: the logits of the others are -infinity
  const float* embed;                    // [v, d]
  const void* unembed;                   // packed
  const float* angles;                   // as in Tokens
  int rows, length;                      // b, c: t is b c at most
  const int64_t *start, *lengths, *ids;  // [b], [b], [b, c]
  float *hidden, *logits;                // [1 + kept, t, d], [t, v] of all ids; `verify_chains`: [.., b, c, ..], 0 between
};

// What a pass over a chunk needs beside the layers: of each id what Tokens says and the vector that `from(row, place)`
// points to, in `x`; and scratch.  One at a time in a thread.
struct Room {
  template <class From>
  Room(const Chunk& c, float* x, From from) : chunk(c) {
    const int size = c.rows * c.length, dim = c.shape->dim;
    numbers.resize(std::max(numbers.size(), (size_t)6 * size));
    for (int i = 0; i < 6; i++) parts[i] = numbers.data() + i * size;
    for (int row = 0; row < c.rows; row++)
      for (int place = 0; place < c.lengths[row]; place++, t++) {
        const int slot = (int)c.start[row] + place;
        const int values[] = {row, slot, slot, t - place, std::max(slot - c.window + 1, 0), t};
        for (int i = 0; i < 6; i++) parts[i][t] = values[i];
        std::memcpy(x + (int64_t)t * dim, from(row, place), dim * sizeof(float));
      }
    tokens = {t, c.length, parts[0], parts[1], parts[2], parts[3], parts[4], nullptr, c.angles};
  }
  // Of these layers, to be run one after the other; null queries are all ids.
  Pass pass(const Layer* layers, int count, int query_count, const int* queries, const float* x, float* y) const {
    const Shape& shape = *chunk.shape;
    const int64_t attended = (int64_t)query_count * shape.heads * shape.head_dim;
    const int64_t qkv = (int64_t)t * (shape.heads + 2 * shape.kv_heads) * shape.head_dim, inner = (int64_t)query_count * shape.ffn;
    const int64_t all = qkv + attended + inner + chunk.threads * floats_of_scores(shape.slots);
    scratch.resize(std::max(scratch.size(), (size_t)all));
    float* room = scratch.data();
    return {&shape, layers, count, &tokens, query_count, queries ? queries : parts[5], x, y,
            room, room + qkv, room + qkv + attended, room + qkv + attended + inner};
  }

  const Chunk& chunk;
  int t = 0;  // how many ids there are
  int* parts[6];
  Tokens tokens;
  static thread_local std::vector<int> numbers;
  static thread_local std::vector<float> scratch;
};
thread_local std::vector<int> Room::numbers;
thread_local std::vector<float> Room::scratch;

// Vectors [t, size] to their rows and places [b, c, size], which begin at the same address or behind it.
void spread(const Chunk& c, int t, const float* from, float* to, int size) {
  for (int row = c.rows - 1; row >= 0; row--)
    for (int place = c.length - 1; place >= 0; place--) {
      float* there = to + ((int64_t)row * c.length + place) * size;
      if (place >= c.lengths[row]) std::memset(there, 0, size * sizeof(float));
      else std::memmove(there, from + (int64_t)--t * size, size * sizeof(float));
    }
}

}  // namespace

extern "C" {

// native/library.py compares the sizes with its own, and reads the two constants.
extern const int64_t layout[] = {sizeof(Shape), sizeof(Layer), sizeof(Tokens), sizeof(Pass), sizeof(Chunk), LANES, PANEL};

void* team_new(int threads) { return new Team(threads); }

int64_t score_floats(int slots) { return floats_of_scores(slots); }

// All layers read x and write y[l].
void run_side_by_side(void* team, const Pass* pass, int rows) {
  Work work{static_cast<Team*>(team), pass, rows};
  work.team->run(layer_step, &work);
}

// Each layer reads what the one before wrote: all write x, but for the last `kept`, which write y[0], y[1], ...
void run_stack(void* team, const Pass* pass, int rows, int kept) {
  Stack stack{{static_cast<Team*>(team), nullptr, rows}, *pass, kept};
  stack.work.team->run(stack_step, &stack);
}

// y [rows, out] (+)= x [rows, in] W^T, of x / rms(x) if `normed`.
void run_product(
    void* team, const void* w, int bfloat16, int in, int out, int rows, int normed, int added, const float* x, float* y) {
  Product product{static_cast<Team*>(team), w, bfloat16, in, out, rows, normed, added, x, y};
  product.team->run(product_step, &product);
}

// From the ids of all rows, t in all, to head 1's logits [t, v]; returns t.  hidden [1 + kept, t, d]
static int verify(void* team, const Chunk& c) {
  const int d = c.shape->dim, v = c.outputs;
  const Room room(c, c.hidden, [&](int row, int place) { return c.embed + c.ids[(int64_t)row * c.length + place] * d; });
  const int t = room.t;
  float* kept = c.hidden + (int64_t)t * d;
  const Pass pass = room.pass(c.layers, c.layer_count, t, nullptr, c.hidden, kept);
  if (t && c.layer_count) run_stack(team, &pass, c.rows, c.kept);
  const float* last = c.kept ? kept + (int64_t)(c.kept - 1) * t * d : c.hidden;
  run_product(team, c.unembed, c.shape->bfloat16, d, v, t, 1, 0, last, c.logits);
  for (int r = 0; r < t; r++) std::fill(c.logits + (int64_t)r * v + c.vocabulary, c.logits + (int64_t)(r + 1) * v, -INFINITY);
  return t;
}

// The same in rows [b, c], 0 where a row has fewer ids.
void verify_chains(void* team, const Chunk* chunk) {
  const Chunk& c = *chunk;
  const int t = verify(team, c), size = c.rows * c.length, d = c.shape->dim;
  if (t == size) return;
  spread(c, t, c.logits, c.logits, c.outputs);
  for (int k = c.kept; k >= 0; k--) spread(c, t, c.hidden + (int64_t)k * t * d, c.hidden + (int64_t)k * size * d, d);
}

// The same for these ids, without gaps: logits [t, v].
void verify_rows(
    void* team, const void* chunk, int rows, int length, const int64_t* start, const int64_t* lengths, const int64_t* ids,
    float* hidden, float* logits) {
  Chunk c = *static_cast<const Chunk*>(chunk);
  c.rows = rows, c.length = length, c.start = start, c.lengths = lengths, c.ids = ids, c.hidden = hidden, c.logits = logits;
  verify(team, c);
}

// What a layer makes of the last of the first `lengths` ids of each row, [rows that have any, d], and of the others keys
// and values; it reads hidden [b] [c, d].
void follow_rows(
    void* team, const void* chunk, const void* layer, int rows, int length, const int64_t* start, const int64_t* lengths,
    const float* const* hidden, float* y) {
  Chunk c = *static_cast<const Chunk*>(chunk);
  c.rows = rows, c.length = length, c.start = start, c.lengths = lengths;
  const int d = c.shape->dim;
  thread_local std::vector<float> x;
  x.resize(std::max(x.size(), (size_t)std::accumulate(lengths, lengths + rows, (int64_t)0) * d));
  const Room room(c, x.data(), [&](int row, int place) { return hidden[row] + (int64_t)place * d; });
  std::vector<int> last;
  for (int row = 0, end = 0; row < rows; row++)
    if (lengths[row]) last.push_back((end += (int)lengths[row]) - 1);
  const Pass pass = room.pass(static_cast<const Layer*>(layer), 1, (int)last.size(), last.data(), x.data(), y);
  run_side_by_side(team, &pass, rows);
}

}  // extern "C"
