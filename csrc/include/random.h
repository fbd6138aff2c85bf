// Counter-based random bits: a hash of the seed, the stream, the row and the column.
#pragma once

#include "vector.h"

namespace {

ADAPTC_INLINE std::uint32_t mix(std::uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
}

TARGET void column_hashes(std::uint32_t* hashes, Index k) {
    for (Index j = 0; j < k; ++j) hashes[j] = mix(static_cast<std::uint32_t>(j) + 0x9e3779b9u);
}

ADAPTC_INLINE std::uint32_t row_hash(const Draw& c, Index i) {
    const std::uint32_t low = static_cast<std::uint32_t>(*c.seed), high = static_cast<std::uint32_t>(*c.seed >> 32);
    return mix(mix(mix(static_cast<std::uint32_t>(i) ^ low) + high) + c.stream);
}

ADAPTC_INLINE void narrow(float* to, float value) { *to = value; }
ADAPTC_INLINE void narrow(bf16* to, float value) {  // never a NaN here
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    *to = static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <class T>
TARGET void draw_rows(const Draw& c, const std::uint32_t* columns, Index first, Index last) {
    for (Index i = first; i < last; ++i) {
        T* out = static_cast<T*>(c.out) + i * c.k;
        const std::uint32_t row = row_hash(c, i);
        if (c.threshold < 0) {
            for (Index j = 0; j < c.k; ++j) {
                const auto bits = static_cast<std::int32_t>(mix(row ^ columns[j]) >> 8);  // 24 bits: exact in a float
                narrow(out + j, static_cast<float>(bits) * 0x1p-24f);
            }
        } else {
            const auto threshold = static_cast<std::uint32_t>(c.threshold);
            for (Index j = 0; j < c.k; ++j) {
                narrow(out + j, (mix(row ^ columns[j]) >> 8) >= threshold ? 1.0f : 0.0f);
            }
        }
    }
}

}  // namespace
