// Products with blocks along the diagonal, for blocks of any size.
#pragma once

#include "pack.h"

namespace {

constexpr Index TOKENS = 48;  // a whole number of every height of a tile

// One block for some tokens, along p in passes; sums wait in `carry` unless whole vectors of them fit into `out`.
template <class T, class Kind>
TARGET void apply_block(const Apply& c, const T* x, Index rows, const typename Kind::Element* b,
                        typename Kind::Element* tokens, float* carry, T* out) {
    const Index width = whole(c.q), pass = DEPTH * Kind::terms;
    for (Index i = 0; i < c.p; i += pass, b += DEPTH * width) {
        const Index n = c.p - i < pass ? c.p - i : pass;
        copy_tokens<Kind>(x + i, c.x_stride, rows, n, tokens);
        const Operands<Kind, DEPTH> o{tokens, 1, b, width, (n + Kind::terms - 1) / Kind::terms};
        const float* before = i ? carry : nullptr;
        if (i + n == c.p && width == c.q) {
            product(o, rows, width, before, width, out, c.g * c.q);
        } else {
            product(o, rows, width, before, width, carry, width);
        }
    }
    if (width == c.q) return;
    for (Index r = 0; r < rows; ++r) {
        for (Index j = 0; j < c.q; j += LANES) {
            store_part(out + r * c.g * c.q + j, load(carry + r * width + j), c.q - j);
        }
    }
}

template <class T, class Blocks>
TARGET void apply_tokens(const Apply& c, const float* packed, Index first, Index last) {
    using Kind = KindOf<T, Blocks>;
    using Element = typename Kind::Element;
    const Index width = whole(c.q), size = (c.p + Kind::terms - 1) / Kind::terms * width;
    const Buffer<Element> tokens(TOKENS * DEPTH);
    const Buffer<float> carry(TOKENS * width);
    const auto* b = reinterpret_cast<const Element*>(as_given(c) ? c.R : packed);
    for (Index t = first; t < last; t += TOKENS) {
        const Index rows = last - t < TOKENS ? last - t : TOKENS;
        const T* x = static_cast<const T*>(c.x) + t * c.x_stride;
        T* out = static_cast<T*>(c.out) + t * c.g * c.q;
        for (Index n = 0; n < c.g; ++n) {
            apply_block<T, Kind>(c, x + n * c.p, rows, b + n * size, tokens.get(), carry.get(), out + n * c.q);
        }
    }
}

template <class T>
TARGET void gradient_blocks(const Gradient& c, Index first, Index last) {
    using Kind = KindOf<T, T>;
    const Index height = whole(c.p), width = whole(c.q), pass = DEPTH * Kind::terms;
    const Buffer<typename Kind::Element> a(DEPTH * height), b(DEPTH * width);
    const Buffer<float> sum(c.p * width);
    for (Index n = first; n < last; ++n) {
        const T* x = static_cast<const T*>(c.x) + n * c.p;
        const T* gy = static_cast<const T*>(c.gy) + n * c.q;
        for (Index t = 0; t < c.m; t += pass) {
            const Index tokens = c.m - t < pass ? c.m - t : pass;
            pack_rows<Kind>(x + t * c.x_stride, c.x_stride, 1, tokens, c.p, height, a.get());
            const Index k = pack_rows<Kind>(gy + t * c.gy_stride, c.gy_stride, 1, tokens, c.q, width, b.get());
            const Operands<Kind, 1> o{a.get(), height, b.get(), width, k};
            product(o, c.p, width, t ? sum.get() : nullptr, width, sum.get(), width);
        }
        for (Index i = 0; i < c.p; ++i) {
            float* out = c.out + (n * c.p + i) * c.q;
            for (Index j = 0; j < c.q; ++j) out[j] = c.m ? sum.get()[i * width + j] : 0.0f;
        }
    }
}

}  // namespace
