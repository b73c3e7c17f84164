// Passes of decoding one behind another without Python between them: what loop.py does where it needs no host.
//
// verify, accept, draft, as there, with the functions of step.cpp, draws.cpp and choices.cpp that Python calls as well, so
// everything is decided alike.  A pass in which a greedy row meets a near tie is given up before it has changed anything:
// Python runs it again and asks the judge.  What a pass decides behind the end of a document is for Python to drop.
//
// Shapes:  b rows, c ids of a pass, h drafting heads, d width, v vocabulary (padded).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

extern "C" {
struct Chooser;
struct Copies;
// step.cpp
void verify_rows(
    void* team, const void* chunk, int rows, int length, const int64_t* start, const int64_t* lengths, const int64_t* ids,
    float* hidden, float* logits);
void follow_rows(
    void* team, const void* chunk, const void* layer, int rows, int length, const int64_t* start, const int64_t* lengths,
    const float* const* hidden, float* y);
void run_product(
    void* team, const void* w, int bfloat16, int in, int out, int rows, int normed, int added, const float* x, float* y);
// draws.cpp
void leads(const float* logits, int count, int v, int real, float margin, int64_t* best);
void softmax(const float* logits, int count, int v, double temperature, double* p);
void sample_ids(const double* q, int count, int v, const double* uniforms, int64_t* ids);
int64_t verify_chain(
    const double* p, int c, int v, const int64_t* ids, const double* q, double first, double second, int64_t* stay);
// choices.cpp
void copies_extend(Copies* copies, const uint8_t* data, int64_t size);
void copies_continuation(Copies* copies, int count, uint8_t* out, int* found);
int chooser_begin(Chooser* chooser, int accepted, const uint8_t* data, int64_t size, int most, uint8_t* out);
int chooser_worth(Chooser* chooser, int depth, const void* from, int count, int v, int are_logits);

// native/library.py has the same structures.

struct LoopRow {
  Chooser* chooser;        // null: as many drafts as there can be
  Copies* copies;          // null: none are copied, or the chooser does
  const double* uniforms;  // random numbers for all passes
  int64_t* ids;            // [1 + most] the last decided id, which the engine has not read yet, then the drafts
  double* laws;            // [most, v] what each draft was drawn from, if they are `drawn`
  int64_t* decided;        // [passes (1 + most)] the ids of all passes, one behind another
  int* passes;             // [passes, 4] drafts, how many of them stayed, whether they were copied, `used` then
  int64_t start, left;     // ids that the engine has read; bytes that may still come
  double temperature;
  int copied, depth;  // most drafts: copied, and of the heads
  int drafts, are_copied, drawn;
  int used, count, done, ended;  // uniforms, decided ids, passes
};

struct Loop {
  void* team;
  const void* chunk;
  const void* layer;         // that all drafting heads read; null if they read the trunk
  const void* heads;         // packed [h v, d]
  const float* transitions;  // [h, v, v] by the id before a draft; null without
  LoopRow* row;
  int bfloat16, rows, most, passes;
  int dim, kept, head_count, outputs, vocabulary;  // d, hidden states kept beside the trunk's, h, v, ids among v
  int window;                                      // ids that one sees, itself included
  int refills;                                     // whether to return as soon as a row has ended
  float margin;                                    // 0: no lead is too small
};
}

namespace {

using std::vector;

constexpr int MOST_UNREAD = 128;  // ids of a row: more of them would not be read faster, and take memory

struct Verdict {
  int64_t stay, next;
};

// What is accepted of a row's drafts, and the id behind it; false at a near tie.
bool judge_greedily(const Loop& loop, const LoopRow& row, const float* logits, Verdict& verdict) {
  for (int64_t& stay = verdict.stay = 0;; stay++) {
    int64_t best[2];
    leads(logits + stay * loop.outputs, 1, loop.outputs, loop.vocabulary, loop.margin, best);
    if (!best[1]) return false;
    verdict.next = best[0];
    if (stay == row.drafts || row.ids[1 + stay] != best[0]) return true;
  }
}

// Whether no logit that a row is to draw from is inf or nan, and no law that its drafts were drawn from nan.
bool are_finite(const Loop& loop, const LoopRow& row, const float* logits) {
  for (int place = 0; place <= row.drafts; place++)
    for (int i = 0; i < loop.vocabulary; i++)
      if (!std::isfinite(logits[(int64_t)place * loop.outputs + i])) return false;
  for (int place = 0; row.drawn && place < row.drafts; place++)
    if (!std::isfinite(row.laws[(int64_t)place * loop.outputs])) return false;  // of one logit that is not all are nan
  return true;
}

Verdict judge_by_drawing(const Loop& loop, LoopRow& row, const float* logits, vector<double>& p) {
  const double* uniforms = row.uniforms + row.used;
  Verdict verdict{0, 0};
  p.resize((size_t)(1 + row.drafts) * loop.outputs);
  softmax(logits, 1 + row.drafts, loop.outputs, row.temperature, p.data());
  row.used += row.drafts ? 2 : 1;
  if (!row.drafts) sample_ids(p.data(), 1, loop.outputs, uniforms, &verdict.next);
  else verdict.next = verify_chain(p.data(), row.drafts, loop.outputs, row.ids + 1, row.drawn ? row.laws : nullptr,
                                   uniforms[0], uniforms[1], &verdict.stay);
  return verdict;
}

// Appends what was decided.
void append(const Loop& loop, LoopRow& row, const Verdict& verdict) {
  const int count = (int)verdict.stay + 1, counted[] = {row.drafts, (int)verdict.stay, row.are_copied, row.used};
  int64_t* to = row.decided + row.count;
  std::copy_n(row.ids + 1, verdict.stay, to);
  to[verdict.stay] = row.ids[0] = verdict.next;
  std::copy_n(counted, 4, row.passes + 4 * row.done++);
  row.count += count, row.start += count, row.left -= count;
  row.ended = row.left == 0 || std::find(to, to + count, loop.vocabulary - 1) != to + count;
  row.drafts = 0;
}

struct Wish {
  bool asks, follows;  // whether the heads are to draft; whether they may be asked later if they are not
};

// Copies drafts for the next pass.
Wish begin(LoopRow& row, int accepted, const int64_t* ids, int count, vector<uint8_t>& bytes, vector<uint8_t>& out) {
  bytes.assign(ids, ids + count);
  const int most = (int)std::min<int64_t>(row.copied, row.left - 1);
  bool asks = row.depth > 0, follows = false;
  int copied = 0;
  out.resize(std::max<size_t>(out.size(), row.copied));
  if (row.chooser) {
    const int done = chooser_begin(row.chooser, accepted, bytes.data(), count, most, out.data());
    copied = done >> 2, asks = done & 1, follows = done & 2;
  } else if (row.copies) {
    int found[3];
    copies_extend(row.copies, bytes.data(), count);
    copies_continuation(row.copies, most, out.data(), found);
    copied = found[1];
  }
  std::copy_n(out.data(), copied, row.ids + 1);
  row.drafts = copied, row.are_copied = copied > 0, row.drawn = 0;
  return {asks && row.left > 1, follows};
}

// Drafts of `count` heads from number `first` on, as far as they are worth their places; returns how many.
int draft_together(const Loop& loop, LoopRow& row, float* from, int first, int count) {
  const int v = loop.outputs;
  double* laws = row.laws + (int64_t)first * v;
  int64_t* ids = row.ids + 1 + first;
  for (int i = 0; i < count; i++) std::fill(from + i * v + loop.vocabulary, from + (i + 1) * v, -INFINITY);
  if (row.temperature > 0) softmax(from, count, v, row.temperature, laws);
  const void* law = row.temperature > 0 ? static_cast<const void*>(laws) : from;
  const int worth = row.chooser ? chooser_worth(row.chooser, 1 + first, law, count, v, row.temperature == 0) : count;
  if (row.temperature > 0) {
    sample_ids(laws, worth, v, row.uniforms + row.used, ids);
    row.used += worth;
  } else {
    for (int i = 0; i < worth; i++) ids[i] = std::max_element(from + i * v, from + (i + 1) * v) - (from + i * v);
  }
  row.drafts = first + worth, row.drawn = row.temperature > 0 && row.drafts > 0;
  return worth;
}

// The same from number `first` on, `end` not included; logits [h, v].  With transitions one at a time, for each follows
// from the id before it.
void draft(const Loop& loop, LoopRow& row, float* logits, int first, int end) {
  const int v = loop.outputs, together = loop.transitions ? 1 : end - first;
  for (int head = first, worth = 1; head < end && worth; head += together) {
    float* from = logits + (int64_t)head * v;
    if (loop.transitions) {
      const float* added = loop.transitions + ((int64_t)head * v + row.ids[head]) * v;
      for (int i = 0; i < v; i++) from[i] += added[i];
    }
    worth = draft_together(loop, row, from, head, together);
  }
}

// A pass of all rows at work.
class Step {
 public:
  explicit Step(const Loop& loop) : loop_(loop), expected_(loop.rows, 0), unread_(loop.rows) {}
  // False at a near tie, and where there is nothing to draw from: then nothing has changed.
  bool run() {
    verify();
    verdicts_.resize(loop_.rows);
    for (int r = 0; r < loop_.rows; r++)
      if (LoopRow& row = loop_.row[r]; !row.ended && !(row.temperature == 0 ? judge_greedily(loop_, row, logits(r), verdicts_[r])
                                                                             : are_finite(loop_, row, logits(r))))
        return false;
    asking_.clear(), reading_.clear();
    for (int r = 0; r < loop_.rows; r++)
      if (LoopRow& row = loop_.row[r]; !row.ended) {
        if (row.temperature > 0) verdicts_[r] = judge_by_drawing(loop_, row, logits(r), p_);
        const int before = row.count;
        append(loop_, row, verdicts_[r]);
        if (row.ended) continue;
        const Wish wish = begin(row, (int)verdicts_[r].stay, row.decided + before, row.count - before, bytes_, out_);
        if (wish.asks) asking_.push_back(r);
        // Heads that are not asked and need not be kept up are never asked again: nothing of theirs is unread then.
        if (loop_.layer && (wish.asks || wish.follows)) keep_unread(r, wish.asks);
      }
    follow();
    ask_heads();
    return true;
  }
  // The layer that the heads share reads what it has left: outside of here it has read all that rows may ask about.
  void catch_up() {
    reading_.clear();
    for (int r = 0; r < loop_.rows; r++)
      if (!loop_.row[r].ended && !unread_[r].empty()) reading_.push_back(r);
    follow();
  }

 private:
  const float* logits(int r) const { return logits_.data() + first_[r] * loop_.outputs; }
  void verify() {
    int longest = 0;
    size_t count = 0;
    lengths_.assign(loop_.rows, 0), start_.resize(loop_.rows), first_.resize(loop_.rows);
    for (int r = 0; r < loop_.rows; r++) {
      const LoopRow& row = loop_.row[r];
      if (!row.ended) lengths_[r] = 1 + row.drafts;
      start_[r] = row.start, first_[r] = count, count += lengths_[r], longest = std::max(longest, (int)lengths_[r]);
    }
    ids_.resize((size_t)loop_.rows * longest);
    for (int r = 0; r < loop_.rows; r++) std::copy_n(loop_.row[r].ids, lengths_[r], ids_.data() + (size_t)r * longest);
    hidden_.resize(std::max(hidden_.size(), (1 + loop_.kept) * count * loop_.dim));
    logits_.resize(std::max(logits_.size(), count * loop_.outputs));
    verify_rows(loop_.team, loop_.chunk, loop_.rows, longest, start_.data(), lengths_.data(), ids_.data(), hidden_.data(),
                logits_.data());
  }
  // A row's accepted ids wait for the layer that the heads share until these are asked: many cost it hardly more than one.
  void keep_unread(int r, bool asks) {
    const float* last = last_state(r);
    unread_[r].insert(unread_[r].end(), last - verdicts_[r].stay * loop_.dim, last + loop_.dim);
    if (asks || unread_[r].size() >= (size_t)MOST_UNREAD * loop_.dim) reading_.push_back(r);
  }
  // The layer reads what these rows have kept for it, as far as it is seen later; what it makes of the last id takes the
  // place of the trunk's state there.
  void follow() {
    if (reading_.empty()) return;
    vector<const float*> from(loop_.rows, nullptr);
    int longest = 0;
    lengths_.assign(loop_.rows, 0);
    for (int r : reading_) {
      lengths_[r] = std::min<int64_t>(unread_[r].size() / loop_.dim, loop_.window);
      start_[r] = loop_.row[r].start - lengths_[r];
      from[r] = unread_[r].data() + unread_[r].size() - lengths_[r] * loop_.dim;
      longest = std::max(longest, (int)lengths_[r]);
    }
    followed_.resize(reading_.size() * loop_.dim);
    follow_rows(loop_.team, loop_.chunk, loop_.layer, loop_.rows, longest, start_.data(), lengths_.data(), from.data(),
                followed_.data());
    const float* made = followed_.data();
    for (int r : reading_) std::copy_n(made, loop_.dim, last_state(r)), made += loop_.dim, unread_[r].clear();
  }
  // Of a row's last accepted id: what its heads read.
  float* last_state(int r) { return hidden_.data() + (first_[r] + verdicts_[r].stay) * loop_.dim; }
  // First those heads that had drafts worth their places the last time, and the next; the others where these have, too.
  void ask_heads() {
    if (asking_.empty()) return;
    int some = 1;
    for (int r : asking_) some = std::max(some, loop_.row[r].chooser ? 1 + expected_[r] : most(r));
    for (int first = 0; !asking_.empty() && first < loop_.head_count; first = some, some = loop_.head_count) {
      some = std::min(some, loop_.head_count);
      product(some);
      for (size_t i = 0; i < asking_.size(); i++)
        draft(loop_, loop_.row[asking_[i]], drafts_.data() + i * some * loop_.outputs, first, std::min(most(asking_[i]), some));
      std::erase_if(asking_, [&](int r) { return (expected_[r] = loop_.row[r].drafts) < some || most(r) <= some; });
    }
  }
  int most(int r) const { return (int)std::min<int64_t>(loop_.row[r].depth, loop_.row[r].left - 1); }
  // Of the first heads, for each row that asks.
  void product(int heads) {
    const int d = loop_.dim, wide = heads * loop_.outputs;
    const size_t rows = asking_.size();
    x_.resize(rows * d), drafts_.resize(std::max(drafts_.size(), rows * wide));
    for (size_t i = 0; i < rows; i++) std::copy_n(last_state(asking_[i]), d, x_.data() + i * d);
    run_product(loop_.team, loop_.heads, loop_.bfloat16, d, wide, (int)rows, 1, 0, x_.data(), drafts_.data());
  }

  const Loop& loop_;
  vector<int64_t> start_, lengths_, first_, ids_;  // first_: of a row's ids among those of all
  inline static thread_local vector<float> hidden_, followed_, logits_, x_, drafts_;  // large: kept from burst to burst
  vector<double> p_;
  vector<Verdict> verdicts_;
  vector<int> asking_, reading_;   // rows that ask their heads; whose hidden states the shared layer is to read now
  vector<int> expected_;           // by row, how many drafts its heads had the last time
  vector<vector<float>> unread_;   // by row, hidden states [ids, d] up to its last id
  vector<uint8_t> bytes_, out_;
};

}  // namespace

extern "C" {

extern const int64_t loop_layout[] = {sizeof(LoopRow), sizeof(Loop)};

// Up to loop->passes of them; returns how many: fewer if all rows have ended, or any and it `refills`, or at a near tie.
int run_passes(const Loop* loop) {
  Step step(*loop);
  int done = 0;
  while (done < loop->passes) {
    if (!step.run()) break;
    done++;
    const auto ended = std::count_if(loop->row, loop->row + loop->rows, [](const LoopRow& row) { return row.ended; });
    if (ended == loop->rows || (ended && loop->refills)) break;
  }
  step.catch_up();
  return done;
}

}  // extern "C"
