// Sparse matrices: inner products of columns of two matrices for pairs of columns, and products with rows of tokens.
#pragma once

#include "vector.h"

namespace {

constexpr Index SPAN = 128;  // tokens at a time: some thousand rows of it stay in the cache

template <class A, class B>
ADAPTC_INLINE float inner(const A* a, const B* b, Index n) {
    Vec s0 = splat(0.0f), s1 = s0, s2 = s0, s3 = s0;
    Index i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 = add_product(s0, load(a + i), load(b + i));
        s1 = add_product(s1, load(a + i + LANES), load(b + i + LANES));
        s2 = add_product(s2, load(a + i + 2 * LANES), load(b + i + 2 * LANES));
        s3 = add_product(s3, load(a + i + 3 * LANES), load(b + i + 3 * LANES));
    }
    for (; i < n; i += LANES) s0 = add_product(s0, load_part(a + i, n - i), load_part(b + i, n - i));
    return first_lane(sum_lanes(add(add(s0, s1), add(s2, s3))));
}

// to[i][l] = from[l][i] for LANES rows, those from `rows` on zero, and n columns. step: from to[i] to to[i + 1].
template <class T>
TARGET void lay_columns(float* to, Index step, const T* from, Index stride, Index rows, Index n) {
    for (Index i = 0; i < n; i += LANES) {
        const Index some = n - i < LANES ? n - i : LANES;
        Vec v[LANES];
        for (Index l = 0; l < LANES; ++l) v[l] = l < rows ? load_part(from + l * stride + i, some) : splat(0.0f);
        transpose(v);
        for (Index l = 0; l < some; ++l) store(to + (i + l) * step, v[l]);
    }
}

template <class T>
TARGET void rows_of(T* to, const float* from, Index stride, Index rows, Index n) {
    for (Index i = 0; i < n; i += LANES) {
        const Index some = n - i < LANES ? n - i : LANES;
        Vec v[LANES];
        for (Index l = 0; l < LANES; ++l) v[l] = l < some ? load(from + (i + l) * LANES) : splat(0.0f);
        transpose(v);
        for (Index l = 0; l < rows; ++l) store_part(to + l * stride + i, v[l], some);
    }
}

// Columns of a and b, for SPAN tokens from c.token on; tokens that are missing are zero. first, last: of those tokens.
template <class T>
TARGET void columns_typed(const Sampled& c, Index first, Index last) {
    for (Index l = first; l < last; l += LANES) {
        const Index t = c.token + l, left = c.m - t, tokens = left < 0 ? 0 : left < LANES ? left : LANES;
        const Index from = tokens ? t : 0;
        lay_columns(c.columns + l, SPAN, static_cast<const T*>(c.a) + from * c.a_stride, c.a_stride, tokens, c.n);
        lay_columns(c.columns + c.n * SPAN + l, SPAN, static_cast<const T*>(c.b) + from * c.b_stride, c.b_stride,
                    tokens, c.k);
    }
}

TARGET void sampled_places(const Sampled& c, Index first, Index last) {
    const float *a = c.columns, *b = a + c.n * SPAN;
    for (Index j = first; j < last; ++j) {
        const float sum = inner(a + c.order[j].row * SPAN, b + c.order[j].col * SPAN, SPAN);
        c.sums[j] = c.token ? c.sums[j] + sum : sum;
    }
}

template <class T>
TARGET void scatter_tokens(const Scatter& c, Index first, Index last) {
    const Buffer<float> room((c.k + c.n) * LANES);
    float *const x = room.get(), *const y = x + c.k * LANES;
    for (Index t = first; t < last; t += LANES) {
        const Index tokens = last - t < LANES ? last - t : LANES;
        lay_columns(x, LANES, static_cast<const T*>(c.x) + t * c.x_stride, c.x_stride, tokens, c.k);
        for (Index i = 0; i < c.n * LANES; ++i) y[i] = 0.0f;
        for (Index j = 0; j < c.places; ++j) {
            float* const to = y + c.rows[j] * LANES;
            store(to, add_product(load(to), load(x + c.cols[j] * LANES), splat(c.c[j])));
        }
        rows_of(static_cast<T*>(c.out) + t * c.n, y, c.n, tokens, c.n);
    }
}

}  // namespace
