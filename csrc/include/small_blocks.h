// Square blocks smaller than a vector: a vector holds several of them, and each input is spread over its block.
#pragma once

#include "vector.h"

namespace {

TARGET bool small(Index p, Index q) { return p == q && p < LANES && (p == 2 || p == 4 || p == 8); }

// packed[v][i][l]: what lane l of vector v multiplies input i of its block with.
template <int P, class Blocks>
TARGET void pack_small(const Apply& c, float* packed, Index first, Index last) {
    const Index columns = c.g * P, row_step = c.transposed ? 1 : P, step = c.transposed ? P : 1;
    for (Index v = first; v < last; ++v) {
        for (Index i = 0; i < P; ++i) {
            for (Index l = 0; l < LANES; ++l) {
                const Index column = v * LANES + l;
                const auto* R = static_cast<const Blocks*>(c.R) + column / P * P * P;
                const float value = column < columns ? widen(R[i * row_step + l % P * step]) : 0.0f;
                packed[(v * P + i) * LANES + l] = value;
            }
        }
    }
}

template <int P, int... I>
ADAPTC_INLINE Vec times_blocks(Vec x, const float* R, std::integer_sequence<int, I...>) {
    Vec sum = splat(0.0f);
    ((sum = add_product(sum, spread<P, I>(x), load(R + I * LANES))), ...);
    return sum;
}

template <int P, int ROWS, class T>
TARGET void small_tokens(const Apply& c, const float* packed, const T* x, T* out) {
    const auto inputs = std::make_integer_sequence<int, P>{};
    const Index columns = c.g * P, full = columns / LANES * LANES;
    for (Index j = 0; j < full; j += LANES, packed += P * LANES) {
        ADAPTC_UNROLL for (int r = 0; r < ROWS; ++r) {
            store(out + r * columns + j, times_blocks<P>(load(x + r * c.x_stride + j), packed, inputs));
        }
    }
    const Index left = columns - full;
    for (int r = 0; left && r < ROWS; ++r) {
        const Vec part = load_part(x + r * c.x_stride + full, left);
        store_part(out + r * columns + full, times_blocks<P>(part, packed, inputs), left);
    }
}

template <int P, class T>
TARGET void apply_small(const Apply& c, const float* packed, Index first, Index last) {
    const T* x = static_cast<const T*>(c.x);
    T* out = static_cast<T*>(c.out);
    Index t = first;
    for (; t + 4 <= last; t += 4) small_tokens<P, 4>(c, packed, x + t * c.x_stride, out + t * c.g * P);
    for (; t < last; ++t) small_tokens<P, 1>(c, packed, x + t * c.x_stride, out + t * c.g * P);
}

template <int P>
constexpr int STRIP = P == 8 ? 2 : 4;  // vectors beside each other, STRIP * P accumulators

template <int P, int... I>
ADAPTC_INLINE void add_outer(Vec* sum, Vec x, Vec gy, std::integer_sequence<int, I...>) {
    ((sum[I] = add_product(sum[I], spread<P, I>(x), gy)), ...);
}

// total[v][i][l] += the sum over some tokens, for the strip's first n columns.
template <int P, bool FULL, class T>
TARGET void outer_tokens(const T* x, Index x_step, const T* gy, Index gy_step, Index tokens, Index n, float* total) {
    Vec sum[STRIP<P>][P] = {};
    for (Index t = 0; t < tokens; ++t, x += x_step, gy += gy_step) {
        ADAPTC_UNROLL for (int v = 0; v < STRIP<P>; ++v) {
            const Index at = v * LANES;
            if (!FULL && at >= n) continue;
            const Vec left = FULL ? load(x + at) : load_part(x + at, n - at);
            const Vec right = FULL ? load(gy + at) : load_part(gy + at, n - at);
            add_outer<P>(sum[v], left, right, std::make_integer_sequence<int, P>{});
        }
    }
    ADAPTC_UNROLL for (int v = 0; v < STRIP<P>; ++v) {
        ADAPTC_UNROLL for (int i = 0; i < P; ++i) {
            float* to = total + (v * P + i) * LANES;
            store(to, add(load(to), sum[v][i]));
        }
    }
}

template <int P, class T>
TARGET void gradient_small(const Gradient& c, Index first, Index last) {
    constexpr Index width = STRIP<P> * LANES, pass = 64;
    for (Index s = first; s < last; ++s) {
        const Index n = c.g * P - s * width;
        const T* x = static_cast<const T*>(c.x) + s * width;
        const T* gy = static_cast<const T*>(c.gy) + s * width;
        float total[width * P] = {};
        for (Index t = 0; t < c.m; t += pass) {
            const Index tokens = c.m - t < pass ? c.m - t : pass;
            const T *some_x = x + t * c.x_stride, *some_gy = gy + t * c.gy_stride;
            if (n >= width) {
                outer_tokens<P, true>(some_x, c.x_stride, some_gy, c.gy_stride, tokens, width, total);
            } else {
                outer_tokens<P, false>(some_x, c.x_stride, some_gy, c.gy_stride, tokens, n, total);
            }
        }
        for (Index j = 0; j < width && j < n; ++j) {
            float* out = c.out + (s * width + j) / P * P * P + j % P;
            for (Index i = 0; i < P; ++i) out[i * P] = total[(j / LANES * P + i) * LANES + j % LANES];
        }
    }
}

}  // namespace
