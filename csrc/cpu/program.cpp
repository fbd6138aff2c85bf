// Small programs: every step on buffers that are known to be large enough for it.
#include <stdexcept>

#include "native.h"

namespace adaptc {
namespace {

void check(const Step& c, int buffer, Index at, Index Loop::*stride, const std::vector<Index>& sizes) {
    if (buffer < 0 || buffer >= static_cast<int>(sizes.size())) throw std::invalid_argument("no such buffer");
    Index low = at, high = at;
    for (int n = 0; n < c.loops; ++n) {
        if (c.loop[n].extent < 1) throw std::invalid_argument("an empty loop");
        const Index span = (c.loop[n].extent - 1) * (c.loop[n].*stride);
        (span < 0 ? low : high) += span;
    }
    if (low < 0 || high >= sizes[buffer]) throw std::invalid_argument("a step reaches outside of its buffer");
}

}  // namespace

Program::Program(std::vector<Step> steps, std::vector<Index> sizes, Index given, bool wide, int level)
    : steps_(std::move(steps)), sizes_(std::move(sizes)), given_(given), wide_(wide), level_(level) {
    if (given_ < 0 || given_ >= buffers()) throw std::invalid_argument("the last buffer is a one");
    for (Index n = given_; n < buffers(); ++n) room_ += sizes_[n];
    for (const Step& c : steps_) {
        if (c.loops < 1 || c.loops > LOOPS) throw std::invalid_argument("a step has 1 to 12 loops");
        check(c, c.out, c.out_at, &Loop::out, sizes_);
        check(c, c.a, c.a_at, &Loop::a, sizes_);
        check(c, c.b, c.b_at, &Loop::b, sizes_);
    }
}

void Program::run(void** addresses) const {
    const Index item = wide_ ? sizeof(double) : sizeof(float);
    const Buffer<char> room(room_ * item);
    char* next = room.get();
    for (Index n = given_; n < buffers(); ++n, next += sizes_[n - 1] * item) addresses[n] = next;
    if (wide_) {
        *static_cast<double*>(addresses[buffers() - 1]) = 1.0;
    } else {
        *static_cast<float*>(addresses[buffers() - 1]) = 1.0f;
    }
    adaptc::level(level_).run_steps(steps_.data(), static_cast<Index>(steps_.size()), addresses, wide_);
}

}  // namespace adaptc
