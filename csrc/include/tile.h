// A small product in registers: C (rows, q) = A (rows, k) B (k, q), a sum of at most DEPTH terms per pass.
#pragma once

#include "vector.h"

namespace {

constexpr Index DEPTH = 64;

// Plain floats: one element of A meets one row of B.
struct Floats {
    using Element = float;
    static constexpr Index terms = 1;
    ADAPTC_INLINE static Vec step(Vec sum, float a, const float* b) { return add_product(sum, splat(a), load(b)); }
};

#ifdef ADAPTC_PAIRS
// Two bfloat16 of neighbouring k in 32 bits: one instruction multiplies and adds both into a float.
struct Pairs {
    using Element = std::uint32_t;
    static constexpr Index terms = 2;
    ADAPTC_INLINE static Vec step(Vec sum, std::uint32_t a, const std::uint32_t* b) {
        const __m512i left = _mm512_set1_epi32(static_cast<int>(a)), right = _mm512_loadu_si512(b);
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
    }
};
#endif

// A by its address, with a compile-time step from row to row: an address per row would take all registers.
template <class Kind, Index ROW_STEP>
struct Operands {
    const typename Kind::Element* a;
    Index a_step;  // from k to k + 1
    const typename Kind::Element* b;
    Index b_step, k;
};

// C = A B + carry, where carry may be null; ROWS x VECS accumulators.
template <int ROWS, int VECS, class Kind, Index ROW_STEP, class Out>
ADAPTC_INLINE void tile(Operands<Kind, ROW_STEP> o, const float* carry, Index carry_step, Out* out, Index out_step) {
    Vec sum[ROWS][VECS] = {};
    for (Index k = 0; k < o.k; ++k, o.a += o.a_step, o.b += o.b_step) {
        ADAPTC_UNROLL for (int r = 0; r < ROWS; ++r) {
            ADAPTC_UNROLL for (int v = 0; v < VECS; ++v) {
                sum[r][v] = Kind::step(sum[r][v], o.a[r * ROW_STEP], o.b + v * LANES);
            }
        }
    }
    ADAPTC_UNROLL for (int r = 0; r < ROWS; ++r) {
        ADAPTC_UNROLL for (int v = 0; v < VECS; ++v) {
            const Vec whole_sum = carry ? add(sum[r][v], load(carry + r * carry_step + v * LANES)) : sum[r][v];
            store(out + r * out_step + v * LANES, whole_sum);
        }
    }
}

template <int ROWS, int VECS, class Kind, Index ROW_STEP, class Out>
ADAPTC_INLINE Index tiles(Operands<Kind, ROW_STEP> o, Index from, Index rows, const float* carry, Index carry_step,
                          Out* out, Index out_step) {
    for (; from + ROWS <= rows; from += ROWS) {
        const Operands<Kind, ROW_STEP> part{o.a + from * ROW_STEP, o.a_step, o.b, o.b_step, o.k};
        const float* add = carry ? carry + from * carry_step : nullptr;
        tile<ROWS, VECS>(part, add, carry_step, out + from * out_step, out_step);
    }
    return from;
}

template <int VECS, class Kind, Index ROW_STEP, class Out>
TARGET void strip(Operands<Kind, ROW_STEP> o, Index rows, const float* carry, Index carry_step, Out* out, Index step) {
    Index done = tiles<REGISTERS / VECS, VECS>(o, 0, rows, carry, carry_step, out, step);
    if constexpr (8 * VECS <= REGISTERS) done = tiles<8, VECS>(o, done, rows, carry, carry_step, out, step);
    done = tiles<4, VECS>(o, done, rows, carry, carry_step, out, step);
    tiles<1, VECS>(o, done, rows, carry, carry_step, out, step);
}

// All of q, which is whole vectors.
template <class Kind, Index ROW_STEP, class Out>
TARGET void product(Operands<Kind, ROW_STEP> o, Index rows, Index q, const float* carry, Index carry_step, Out* out,
                    Index out_step) {
    for (Index j = 0; j < q;) {
        const Operands<Kind, ROW_STEP> part{o.a, o.a_step, o.b + j, o.b_step, o.k};
        const float* add = carry ? carry + j : nullptr;
        const Index vecs = (q - j) / LANES;
        if (vecs >= 4) {
            strip<4>(part, rows, add, carry_step, out + j, out_step);
            j += 4 * LANES;
        } else if (vecs >= 2) {
            strip<2>(part, rows, add, carry_step, out + j, out_step);
            j += 2 * LANES;
        } else {
            strip<1>(part, rows, add, carry_step, out + j, out_step);
            j += LANES;
        }
    }
}

}  // namespace
