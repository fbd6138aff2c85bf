// A vector of LANES floats. Included once by each instruction set, after TARGET, LANES and REGISTERS are defined;
// without a compiler that knows vector types, an array and loops.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "native.h"

#ifdef ADAPTC_MASKS
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define ADAPTC_INLINE TARGET inline __attribute__((always_inline))
#define ADAPTC_UNROLL _Pragma("GCC unroll 32")
#else
#define ADAPTC_INLINE inline
#define ADAPTC_UNROLL
#endif

namespace {

using adaptc::Apply;
using adaptc::Buffer;
using adaptc::Draw;
using adaptc::Dtype;
using adaptc::Gradient;
using adaptc::Index;
using adaptc::Sampled;
using adaptc::Scatter;
using bf16 = std::uint16_t;

ADAPTC_INLINE float widen(float x) { return x; }
ADAPTC_INLINE float widen(bf16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

#if (defined(__GNUC__) || defined(__clang__)) && !defined(ADAPTC_PLAIN_LOOPS)
#include "vector_builtin.h"
#else
#include "vector_loops.h"
#endif

namespace {

// The first n lanes; the others are zero, or not written.
#ifdef ADAPTC_MASKS
ADAPTC_INLINE __mmask16 lanes(Index n) { return static_cast<__mmask16>(n < LANES ? (1u << n) - 1u : 0xffffu); }
ADAPTC_INLINE Vec load_part(const float* from, Index n) { return (Vec)_mm512_maskz_loadu_ps(lanes(n), from); }
ADAPTC_INLINE Vec load_part(const bf16* from, Index n) {
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n), from)), 16);
}
ADAPTC_INLINE void store_part(float* to, Vec v, Index n) { _mm512_mask_storeu_ps(to, lanes(n), (__m512)v); }
ADAPTC_INLINE void store_part(bf16* to, Vec v, Index n) {
    bf16 all[LANES];
    store(all, v);
    _mm256_mask_storeu_epi16(to, lanes(n), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(all)));
}
#else
template <class T>
ADAPTC_INLINE Vec load_part(const T* from, Index n) {
    if (n >= LANES) return load(from);
    T some[LANES] = {};
    std::memcpy(some, from, sizeof(T) * n);
    return load(some);
}
template <class T>
ADAPTC_INLINE void store_part(T* to, Vec v, Index n) {
    if (n >= LANES) return store(to, v);
    T some[LANES];
    store(some, v);
    std::memcpy(to, some, sizeof(T) * n);
}
#endif

// The sum of all lanes, in every lane.
template <int S = LANES / 2>
ADAPTC_INLINE Vec sum_lanes(Vec v) {
    v = add(v, exchange<S>(v));
    if constexpr (S > 1) return sum_lanes<S / 2>(v);
    return v;
}
ADAPTC_INLINE float first_lane(Vec v) {
    float lane;
    std::memcpy(&lane, &v, sizeof lane);
    return lane;
}

ADAPTC_INLINE Index whole(Index n) { return (n + LANES - 1) / LANES * LANES; }

}  // namespace
