// Inner products of rows of two matrices, for pairs of rows.
#pragma once

#include "vector.h"

namespace {

constexpr Index SPAN = 128;  // tokens at a time: some thousand rows of it stay in the cache

template <class T>
ADAPTC_INLINE float inner(const T* a, const T* b, Index n) {
    Vec s0 = splat(0.0f), s1 = s0, s2 = s0, s3 = s0;
    Index i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 = add_product(s0, load(a + i), load(b + i));
        s1 = add_product(s1, load(a + i + LANES), load(b + i + LANES));
        s2 = add_product(s2, load(a + i + 2 * LANES), load(b + i + 2 * LANES));
        s3 = add_product(s3, load(a + i + 3 * LANES), load(b + i + 3 * LANES));
    }
    for (; i < n; i += LANES) s0 = add_product(s0, load_part(a + i, n - i), load_part(b + i, n - i));
    float lanes[LANES], sum = 0.0f;
    store(lanes, add(add(s0, s1), add(s2, s3)));
    for (float lane : lanes) sum += lane;
    return sum;
}

template <class T>
TARGET void sampled_rows(const Sampled& c, Index first, Index last) {
    const T* a = static_cast<const T*>(c.a);
    const T* b = static_cast<const T*>(c.b);
    for (Index t = first; t < last; ++t) c.out[t] = 0.0f;
    for (Index m = 0; m < c.m; m += SPAN) {
        const Index n = c.m - m < SPAN ? c.m - m : SPAN;
        for (Index t = first; t < last; ++t) c.out[t] += inner(a + c.rows[t] * c.m + m, b + c.cols[t] * c.m + m, n);
    }
}

}  // namespace
