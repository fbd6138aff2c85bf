// The vector of a compiler that has vector types. Part of vector.h.
#pragma once

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef std::int32_t Signed __attribute__((vector_size(4 * LANES)));
typedef bf16 Halves __attribute__((vector_size(2 * LANES)));

ADAPTC_INLINE Vec splat(float x) { return x - Vec{}; }
ADAPTC_INLINE Vec add(Vec a, Vec b) { return a + b; }
ADAPTC_INLINE Vec add_product(Vec sum, Vec a, Vec b) { return sum + a * b; }

ADAPTC_INLINE Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
ADAPTC_INLINE Vec load(const bf16* from) {
    Halves h;
    std::memcpy(&h, from, sizeof h);
    return (Vec)(__builtin_convertvector(h, Bits) << 16);
}
ADAPTC_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
#ifdef ADAPTC_PAIRS
ADAPTC_INLINE void store(bf16* to, Vec v) {
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &h, sizeof h);
}
#else
ADAPTC_INLINE void store(bf16* to, Vec v) {  // to nearest, ties to even; a NaN stays one and is quiet
    const Bits bits = (Bits)v;
    const Bits is_nan = (Bits)((Signed)(bits & 0x7fffffffu) > 0x7f800000);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Halves h = __builtin_convertvector((rounded & ~is_nan) | (((bits >> 16) | 0x40u) & is_nan), Halves);
    std::memcpy(to, &h, sizeof h);
}
#endif

template <int P, int I, int... L>
ADAPTC_INLINE Vec spread(Vec v, std::integer_sequence<int, L...>) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, (L / P * P + I)...);
#else
    return __builtin_shuffle(v, Signed{(L / P * P + I)...});
#endif
}
// Lane l takes element I of its group of P lanes.
template <int P, int I>
ADAPTC_INLINE Vec spread(Vec v) {
    return spread<P, I>(v, std::make_integer_sequence<int, LANES>{});
}
template <int S, int... L>
ADAPTC_INLINE Vec exchange(Vec v, std::integer_sequence<int, L...>) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, (L ^ S)...);
#else
    return __builtin_shuffle(v, Signed{(L ^ S)...});
#endif
}
// Lanes l and l ^ S change places; S is a power of two.
template <int S>
ADAPTC_INLINE Vec exchange(Vec v) { return exchange<S>(v, std::make_integer_sequence<int, LANES>{}); }
// Of two vectors, in turn, groups of S lanes: the even ones of both, or the odd ones.
template <int S, bool ODD, int... L>
ADAPTC_INLINE Vec groups(Vec a, Vec b, std::integer_sequence<int, L...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (L / S % 2 ? L - (ODD ? 0 : S) + LANES : L + (ODD ? S : 0))...);
#else
    return __builtin_shuffle(a, b, Signed{(L / S % 2 ? L - (ODD ? 0 : S) + LANES : L + (ODD ? S : 0))...});
#endif
}
template <int S>
ADAPTC_INLINE void transpose_groups(Vec* v) {
    const auto all = std::make_integer_sequence<int, LANES>{};
    ADAPTC_UNROLL for (int l = 0; l < LANES; ++l) {
        if (l / S % 2) continue;
        const Vec a = v[l], b = v[l + S];
        v[l] = groups<S, false>(a, b, all);
        v[l + S] = groups<S, true>(a, b, all);
    }
    if constexpr (2 * S < LANES) transpose_groups<2 * S>(v);
}
// Lane j of v[l] and lane l of v[j] change places.
ADAPTC_INLINE void transpose(Vec* v) { transpose_groups<1>(v); }

}  // namespace
