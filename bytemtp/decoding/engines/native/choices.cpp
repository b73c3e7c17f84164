// What copies.py, corpus_index.py and chooser.py do for a text, in a hundredth of the time: copied drafts, and mode "auto".
//
// The same results to the last bit: the same formulas in float64, in the same order, and no product and sum made one.
//
// Shapes:  n bytes of a corpus, v vocabulary.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

extern "C" double largest_probability(const float* logits, int v);  // draws.cpp

namespace {

// ---- copies.py

constexpr int MAX_MATCH = 32, CANDIDATES = 16, VOTERS = 4;
constexpr int GRAMS[] = {10, 4, 2};

// Where the runs of `size` bytes end in a text that grows; 0: nowhere.
class Places {
 public:
  explicit Places(int size) : size_(size), latest_(64), before_(1) {}
  void extend(const std::vector<uint8_t>& text) {
    for (uint32_t end = (uint32_t)before_.size(); end <= text.size(); end++) {
      if ((int)end < size_) {
        before_.push_back(0);
        continue;
      }
      if (2 * ++used_ > latest_.size()) grow(text);
      uint32_t& latest = find(text, end);
      before_.push_back(latest);
      used_ -= latest != 0;
      latest = end;
    }
  }
  uint32_t before(uint32_t end) const { return before_[end]; }

 private:
  // The entry of the run that ends there: an open hash table.
  uint32_t& find(const std::vector<uint8_t>& text, uint32_t end) {
    const uint8_t* run = text.data() + end - size_;
    uint64_t hash = 0;
    for (int i = 0; i < size_; i++) hash = (hash + run[i] + 1) * 0x9e3779b97f4a7c15;
    const size_t mask = latest_.size() - 1;
    for (size_t i = hash >> 32 & mask;; i = (i + 1) & mask)
      if (!latest_[i] || !std::memcmp(text.data() + latest_[i] - size_, run, size_)) return latest_[i];
  }
  void grow(const std::vector<uint8_t>& text) {
    std::vector<uint32_t> old(2 * latest_.size());
    old.swap(latest_);
    for (uint32_t end : old)
      if (end) find(text, end) = end;
  }

  int size_;
  size_t used_ = 0;
  std::vector<uint32_t> latest_, before_;
};

struct Corpus {
  const uint32_t* places;  // [n]
  const uint8_t* text;     // [n], and zeros behind it
  int64_t size;
  int separator;
};

struct Found {
  int length, count;  // of the match, of the bytes that followed
};

// `CorpusIndex.continuation` of a file whose places may be damaged.
class Lookup {
 public:
  Lookup(const Corpus& corpus, const std::vector<uint8_t>& text) : corpus_(corpus) {
    const int most = (int)std::min<size_t>(text.size(), MAX_MATCH);
    while (size_ < most && text[text.size() - 1 - size_] != corpus.separator) tail_[size_] = text[text.size() - 1 - size_], size_++;
  }
  Found continuation(int count, uint8_t* out) const {
    const int64_t rank = first_not_before();
    int length = 0;
    for (int64_t i = std::max<int64_t>(rank - 1, 0); i < std::min(rank + 1, corpus_.size); i++) length = std::max(length, same(i));
    if (!length) return {0, 0};
    int votes = 0, first[2 * VOTERS], best = 0;
    int64_t voter[2 * VOTERS];
    for (int64_t i = std::max<int64_t>(rank - VOTERS, 0); i < std::min(rank + VOTERS, corpus_.size); i++) {
      uint8_t next;
      if (same(i) >= length) voter[votes] = i, first[votes++] = following(i, std::min(count, 1), &next) ? next : -1;
    }
    if (!votes) return {0, 0};  // the file has changed meanwhile
    for (int i = 0; i < votes; i++)
      if (std::count(first, first + votes, first[i]) > std::count(first, first + votes, first[best])) best = i;
    return {length, following(voter[best], count, out)};
  }

 private:
  int64_t end_of_file() const { return corpus_.size + MAX_MATCH - 1; }
  int run_size(int64_t i) const { return (int)std::clamp<int64_t>(end_of_file() - corpus_.places[i], 0, MAX_MATCH); }
  const uint8_t* run(int64_t i) const { return corpus_.text + corpus_.places[i]; }
  int same(int64_t i) const {
    const int most = std::min(size_, run_size(i));
    int count = 0;
    while (count < most && run(i)[count] == tail_[count]) count++;
    return count;
  }
  bool is_before(int64_t i) const {
    const int count = same(i);
    if (count == size_) return false;
    return count == run_size(i) || run(i)[count] < tail_[count];
  }
  // As bisect_left.
  int64_t first_not_before() const {
    int64_t low = 0, high = corpus_.size;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      // Whichever half comes next: the text that a place leads to is waited for, the place need not be.
      __builtin_prefetch(corpus_.places + (low + middle) / 2);
      __builtin_prefetch(corpus_.places + (middle + high) / 2);
      if (is_before(middle)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
  int following(int64_t i, int count, uint8_t* out) const {
    const int64_t place = corpus_.places[i], end = std::min(place, end_of_file()), begin = std::max<int64_t>(place - count, 0);
    int found = 0;
    for (int64_t at = end - 1; at >= begin && corpus_.text[at] != corpus_.separator; at--) out[found++] = corpus_.text[at];
    return found;
  }

  const Corpus& corpus_;
  int size_ = 0;
  uint8_t tail_[MAX_MATCH];
};

struct Copies {
  std::vector<uint8_t> text;
  Places places[3] = {Places(GRAMS[0]), Places(GRAMS[1]), Places(GRAMS[2])};
  Corpus corpus;  // of no size: none
  int is_from_index = 0;
  uint32_t junk = 0;  // if not 0, it finds random bytes: to measure what passes cost

  void extend(const uint8_t* data, int64_t size) {
    text.insert(text.end(), data, data + size);
    for (Places& one : places) one.extend(text);
  }
  Found continuation(int count, uint8_t* out) {
    if (junk) {
      for (int i = 0; i < count; i++) out[i] = (junk = junk * 1664525 + 1013904223) >> 24;
      return {count, count};
    }
    uint32_t place = 0;
    const int length = match(place);
    is_from_index = 0;
    if (corpus.size) {
      const Found found = Lookup(corpus, text).continuation(count, out);
      is_from_index = found.length > length;
      if (is_from_index) return found;
    }
    if (!length) return {0, 0};
    for (int i = 0; i < count; i++) out[i] = place + i < text.size() ? text[place + i] : out[i - (text.size() - place)];
    return {length, count};
  }

 private:
  int match(uint32_t& at) const {
    const uint32_t end = (uint32_t)text.size();
    for (const Places& one : places) {
      int best = 0;
      uint32_t place = one.before(end);
      for (int i = 0; place && i < CANDIDATES && best < MAX_MATCH; i++, place = one.before(place)) {
        const int length = agreeing(place, end);
        if (length > best) best = length, at = place;
      }
      if (best) return best;
    }
    return 0;
  }
  int agreeing(uint32_t place, uint32_t end) const {
    const int most = (int)std::min<uint32_t>(place, MAX_MATCH);
    int length = 0;
    while (length < most && text[place - 1 - length] == text[end - 1 - length]) length++;
    return length;
  }
};

// ---- chooser.py

constexpr double KEPT = 1 - 1.0 / 64, UNTRIED = 0.5;
constexpr int FIRST_REST = 6, LONGEST_REST = 64;
constexpr double COPY_CHANCES[] = {0.0, 0.3, 0.4, 0.55, 0.65, 0.75, 0.93};
constexpr int CHANCES = sizeof COPY_CHANCES / sizeof *COPY_CHANCES;

struct Mean {
  double total, weight;
  Mean(double value, double weight = 4) : total(value * weight), weight(weight) {}
  void add(double value, double times = 1) { total = KEPT * total + value, weight = KEPT * weight + times; }
  double value() const { return total / weight; }
};

struct Habit {
  Mean gain{UNTRIED};
  int rested = 0, rest = FIRST_REST;
  bool pays() const { return gain.value() > 0; }
  bool is_due() const { return pays() || rested >= rest; }
  void rested_once() { rested++; }
  void learn(double value) {
    if (rested >= rest && value > 0) gain = Mean(0), rest = FIRST_REST;
    else if (rested >= rest) rest = std::min(2 * rest, LONGEST_REST);
    gain.add(value);
    rested = 0;
  }
};

struct Chooser {
  Copies& text;
  std::vector<double> passes, places;
  double head_ask, head_draft, look;
  bool may_rest;
  Mean bytes_a_second;
  std::vector<Mean> copies_right[2], heads_right;
  Habit drafting, heads;
  bool looks = false, asks = false;
  int copied = 0, match = 0;
  double chance = 1;
  std::vector<double> probabilities;

  Chooser(Copies& text, const double* passes, int ids, const double* places, int depth, const double* costs, bool may_rest)
      : text(text), passes(passes, passes + ids), places(places, places + depth), head_ask(costs[0]), head_draft(costs[1]),
        look(costs[2]), may_rest(may_rest), bytes_a_second(1 / passes[0], 4 * passes[0]), heads_right(depth, Mean(1)) {
    for (auto& means : copies_right) means.assign(COPY_CHANCES, COPY_CHANCES + CHANCES);
  }
  double rate() const { return bytes_a_second.value(); }
  double extra(int drafts) const { return passes[drafts] - passes[0]; }
  Mean& copy_right(int length) { return copies_right[text.is_from_index][std::min<int>(std::bit_width((unsigned)length), CHANCES - 1)]; }

  // Bit 0: the heads are asked; bit 1: they read on in any case.
  int begin(int accepted, const uint8_t* data, int64_t size, int most, uint8_t* out) {
    learn(accepted);
    text.extend(data, size);
    chance = 1, probabilities.clear();
    looks = drafting.is_due(), copied = 0;
    if (looks) {
      const Found found = text.continuation(most, out);
      match = found.length, copied = number(found.count);
    }
    const bool wanted = !places.empty() && (may_rest ? heads.is_due() : heads.pays());
    asks = looks && !copied && wanted;
    return asks + 2 * (wanted && !may_rest);
  }
  int number(int count) {
    double chance = 1, kept = 0, best = expected_of_heads();
    int number = 0;
    for (int drafts = 1; drafts <= std::min(count, (int)passes.size() - 1); drafts++) {
      chance *= copy_right(match + drafts - 1).value();
      kept += chance;
      const double gain = kept - rate() * extra(drafts);
      if (gain > best) best = gain, number = drafts;
    }
    return number;
  }
  double expected_of_heads() const {
    return places.empty() ? 0 : std::max(0.0, heads.gain.value());
  }
  template <class Probability>
  int worth(int depth, int count, Probability probability) {
    for (int i = 0; i < count; i++) {
      const int place = depth + i - 1;
      const double top = probability(i);
      chance *= std::min(1.0, top * heads_right[place].value());
      if (!(chance > rate() * places[place])) return i;
      probabilities.push_back(top);
    }
    return count;
  }
  void learn(int accepted) {
    const int by_heads = (int)probabilities.size(), drafts = copied ? copied : by_heads;
    const double cost = extra(drafts) + asks * head_ask + by_heads * head_draft, gain = accepted - rate() * cost;
    for (int i = 0; i < std::min(accepted + 1, copied); i++) copy_right(match + i).add(i < accepted);
    for (int i = 0; i < std::min(accepted + 1, by_heads); i++) heads_right[i].add(i < accepted, probabilities[i]);
    if (!copied) asks ? heads.learn(gain) : heads.rested_once();
    looks ? drafting.learn(gain - rate() * look) : drafting.rested_once();
    bytes_a_second.add(accepted + 1, passes[0] + cost + looks * look);
  }
};

}  // namespace

extern "C" {

Copies* copies_new(const uint32_t* places, const uint8_t* text, int64_t size, int separator) {
  auto* copies = new Copies;
  copies->corpus = {places, text, size, separator};
  return copies;
}
void copies_free(Copies* copies) { delete copies; }
void copies_junk(Copies* copies, uint32_t seed) { copies->junk = seed; }
void copies_extend(Copies* copies, const uint8_t* data, int64_t size) { copies->extend(data, size); }

// found [3]: length of the match, bytes that followed (into `out`), whether they are from the index.
void copies_continuation(Copies* copies, int count, uint8_t* out, int* found) {
  const Found it = copies->continuation(count, out);
  found[0] = it.length, found[1] = it.count, found[2] = copies->is_from_index;
}

// passes [ids]; places [depth]; costs: to ask the heads, to take a draft from one, to look.
Chooser* chooser_new(
    Copies* copies, const double* passes, int ids, const double* places, int depth, const double* costs, int may_rest) {
  return new Chooser(*copies, passes, ids, places, depth, costs, may_rest);
}
void chooser_free(Chooser* chooser) { delete chooser; }

// Copied bytes into `out`; returns how many, times 4, and the bits of `Chooser::begin`.
int chooser_begin(Chooser* chooser, int accepted, const uint8_t* data, int64_t size, int most, uint8_t* out) {
  const int bits = chooser->begin(accepted, data, size, most, out);
  return 4 * chooser->copied + bits;
}
// from [count, v]: float32 logits or float64 laws.
int chooser_worth(Chooser* chooser, int depth, const void* from, int count, int v, int are_logits) {
  const auto* logits = static_cast<const float*>(from);
  const auto* laws = static_cast<const double*>(from);
  if (are_logits) return chooser->worth(depth, count, [&](int i) { return largest_probability(logits + (int64_t)i * v, v); });
  return chooser->worth(depth, count, [&](int i) { return *std::max_element(laws + (int64_t)i * v, laws + (int64_t)(i + 1) * v); });
}

}  // extern "C"
