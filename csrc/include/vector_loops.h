// The vector as an array, for compilers without vector types. Part of vector.h.
#pragma once

namespace {

struct Vec {
    float lane[LANES] = {};
};

ADAPTC_INLINE Vec splat(float x) {
    Vec v;
    for (float& lane : v.lane) lane = x;
    return v;
}
ADAPTC_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
    for (int l = 0; l < LANES; ++l) sum.lane[l] += a.lane[l] * b.lane[l];
    return sum;
}
ADAPTC_INLINE Vec add(Vec a, Vec b) { return add_product(a, b, splat(1.0f)); }

template <class T>
ADAPTC_INLINE Vec load(const T* from) {
    Vec v;
    for (int l = 0; l < LANES; ++l) v.lane[l] = widen(from[l]);
    return v;
}
ADAPTC_INLINE void store(float* to, Vec v) { std::memcpy(to, v.lane, sizeof v.lane); }
ADAPTC_INLINE void store(bf16* to, Vec v) {
    for (int l = 0; l < LANES; ++l) {
        std::uint32_t bits;
        std::memcpy(&bits, v.lane + l, 4);
        const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        to[l] = static_cast<bf16>((is_nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}
template <int P, int I>
ADAPTC_INLINE Vec spread(Vec v) {
    Vec r;
    for (int l = 0; l < LANES; ++l) r.lane[l] = v.lane[l / P * P + I];
    return r;
}
template <int S>
ADAPTC_INLINE Vec exchange(Vec v) {
    Vec r;
    for (int l = 0; l < LANES; ++l) r.lane[l] = v.lane[l ^ S];
    return r;
}
ADAPTC_INLINE void transpose(Vec* v) {
    for (int l = 0; l < LANES; ++l) {
        for (int j = 0; j < l; ++j) std::swap(v[l].lane[j], v[j].lane[l]);
    }
}

}  // namespace
