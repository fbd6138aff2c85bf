// The operands of a product, copied to where its loops read them one after the other.
#pragma once

#include "tile.h"

namespace {

template <class T, class Blocks>
using KindOf =
#ifdef ADAPTC_PAIRS
    std::conditional_t<std::is_same_v<T, bf16> && std::is_same_v<Blocks, bf16>, Pairs, Floats>;
#else
    Floats;
#endif

// Blocks that already lie as the product wants them are read where they are.
TARGET bool as_given(const Apply& c) {
    return c.blocks == Dtype::float32 && !c.transposed && c.q % LANES == 0;
}

#ifdef ADAPTC_PAIRS
// Two rows as one row of pairs, zero after column n and where there is no second row.
TARGET void zip(const bf16* low, const bf16* high, Index step, Index n, Index width, std::uint32_t* to) {
    if (step == 1) {
        for (Index j = 0; j < width; j += LANES) {
            const Bits first = (Bits)load_part(low + j, n - j) >> 16;
            const Bits second = high ? (Bits)load_part(high + j, n - j) : Bits{};
            const Bits both = first | second;
            std::memcpy(to + j, &both, sizeof both);
        }
        return;
    }
    for (Index j = 0; j < n; ++j) to[j] = low[j * step] | static_cast<std::uint32_t>(high ? high[j * step] : 0) << 16;
    for (Index j = n; j < width; ++j) to[j] = 0;
}

// n numbers as pairs, zero after the last.
TARGET void copy_pairs(const bf16* from, Index n, std::uint32_t* to) {
    for (Index i = 0; i < n; i += 2 * LANES) {
        const Index left = n - i;
        const auto mask = static_cast<__mmask32>(left < 2 * LANES ? (std::uint32_t{1} << left) - 1u : ~0u);
        _mm512_storeu_si512(to + i / 2, _mm512_maskz_loadu_epi16(mask, from + i));
    }
}
#endif

template <class T>
TARGET void widen_row(const T* from, Index step, Index n, Index width, float* to) {
    if (step == 1) {
        for (Index j = 0; j < width; j += LANES) store(to + j, load_part(from + j, n - j));
        return;
    }
    for (Index j = 0; j < n; ++j) to[j] = widen(from[j * step]);
    for (Index j = n; j < width; ++j) to[j] = 0;
}

// Rows of a (k, n) matrix as the right or left operand of a product over k; returns how many rows that makes.
template <class Kind, class T>
TARGET Index pack_rows(const T* from, Index row_step, Index step, Index k, Index n, Index width,
                       typename Kind::Element* to) {
    const Index rows = (k + Kind::terms - 1) / Kind::terms;
    for (Index r = 0; r < rows; ++r) {
        const T* row = from + r * Kind::terms * row_step;
        if constexpr (Kind::terms == 1) {
            widen_row(row, step, n, width, to + r * width);
        } else {
            zip(row, 2 * r + 1 < k ? row + row_step : nullptr, step, n, width, to + r * width);
        }
    }
    return rows;
}

// Rows of x, each DEPTH elements apart, as the left operand of a product along the row.
template <class Kind, class T>
TARGET void copy_tokens(const T* from, Index row_step, Index rows, Index n, typename Kind::Element* to) {
    for (Index r = 0; r < rows; ++r, from += row_step, to += DEPTH) {
        if constexpr (Kind::terms == 1) {
            for (Index i = 0; i < n; i += LANES) store(to + i, load_part(from + i, n - i));
        } else {
            copy_pairs(from, n, to);
        }
    }
}

template <class T, class Blocks>
TARGET void pack_blocks(const Apply& c, float* packed, Index first, Index last) {
    using Kind = KindOf<T, Blocks>;
    const Index width = whole(c.q), rows = (c.p + Kind::terms - 1) / Kind::terms;
    const Index row_step = c.transposed ? 1 : c.q, step = c.transposed ? c.p : 1;
    for (Index b = first; b < last; ++b) {
        auto* to = reinterpret_cast<typename Kind::Element*>(packed) + b * rows * width;
        pack_rows<Kind>(static_cast<const Blocks*>(c.R) + b * c.p * c.q, row_step, step, c.p, c.q, width, to);
    }
}

}  // namespace
