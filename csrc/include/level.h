// The kernels of one instruction set: included once by each file in cpu/, which names the set.
#pragma once

#include "blocks.h"
#include "products.h"
#include "copies.h"
#include "random.h"
#include "sampled.h"
#include "small_blocks.h"
#include "solves.h"
#include "steps.h"

namespace {

// Calls F<P, types...>(...) for the size of a small block.
#define ADAPTC_SMALL(P_VALUE, CALL)   \
    switch (P_VALUE) {                \
        case 2: { constexpr int P = 2; CALL; break; } \
        case 4: { constexpr int P = 4; CALL; break; } \
        default: { constexpr int P = 8; CALL; } \
    }

template <class T, class Blocks>
TARGET void pack_typed(const Apply& c, float* packed, Index first, Index last) {
    if (small(c.p, c.q)) {
        ADAPTC_SMALL(c.p, (pack_small<P, Blocks>(c, packed, first, last)))
    } else {
        pack_blocks<T, Blocks>(c, packed, first, last);
    }
}

template <class T, class Blocks>
TARGET void apply_typed(const Apply& c, const float* packed, Index first, Index last) {
    if (small(c.p, c.q)) {
        ADAPTC_SMALL(c.p, (apply_small<P, T>(c, packed, first, last)))
    } else {
        apply_tokens<T, Blocks>(c, packed, first, last);
    }
}

TARGET void pack(const Apply& c, float* packed, Index first, Index last) {
    const bool wide = c.data == Dtype::float32, wide_blocks = c.blocks == Dtype::float32;
    if (wide) return wide_blocks ? pack_typed<float, float>(c, packed, first, last)
                                 : pack_typed<float, bf16>(c, packed, first, last);
    return wide_blocks ? pack_typed<bf16, float>(c, packed, first, last)
                       : pack_typed<bf16, bf16>(c, packed, first, last);
}

TARGET void apply(const Apply& c, const float* packed, Index first, Index last) {
    const bool wide = c.data == Dtype::float32, wide_blocks = c.blocks == Dtype::float32;
    if (wide) return wide_blocks ? apply_typed<float, float>(c, packed, first, last)
                                 : apply_typed<float, bf16>(c, packed, first, last);
    return wide_blocks ? apply_typed<bf16, float>(c, packed, first, last)
                       : apply_typed<bf16, bf16>(c, packed, first, last);
}

TARGET Index packed_items(const Apply& c) {
    if (small(c.p, c.q)) return whole(c.g * c.p) / LANES;
    return as_given(c) ? 0 : c.g;
}

TARGET Index packed_floats(const Apply& c) {
    return packed_items(c) * c.p * (small(c.p, c.q) ? LANES : whole(c.q));
}

TARGET Index strip_width(Index p) { return LANES * (p == 8 ? STRIP<8> : STRIP<4>); }

TARGET Index gradient_items(const Gradient& c) {
    return small(c.p, c.q) ? (c.g * c.p + strip_width(c.p) - 1) / strip_width(c.p) : c.g;
}

template <class T>
TARGET void gradient_typed(const Gradient& c, Index first, Index last) {
    if (small(c.p, c.q)) {
        ADAPTC_SMALL(c.p, (gradient_small<P, T>(c, first, last)))
    } else {
        gradient_blocks<T>(c, first, last);
    }
}

TARGET void gradient(const Gradient& c, Index first, Index last) {
    return c.data == Dtype::float32 ? gradient_typed<float>(c, first, last) : gradient_typed<bf16>(c, first, last);
}

TARGET void draw(const Draw& c, const std::uint32_t* columns, Index first, Index last) {
    return c.data == Dtype::float32 ? draw_rows<float>(c, columns, first, last)
                                    : draw_rows<bf16>(c, columns, first, last);
}

TARGET void columns_of(const Sampled& c, Index first, Index last) {
    return c.data == Dtype::float32 ? columns_typed<float>(c, first, last) : columns_typed<bf16>(c, first, last);
}

TARGET void scatter(const Scatter& c, Index first, Index last) {
    return c.data == Dtype::float32 ? scatter_tokens<float>(c, first, last) : scatter_tokens<bf16>(c, first, last);
}

}  // namespace

const adaptc::Level adaptc::LEVEL = {
    LEVEL_NAME, packed_floats, packed_items, pack, apply, gradient_items, gradient, column_hashes, ::draw, SPAN,
    columns_of, sampled_places, ::scatter, product_items, ::product, ::copy, ::solve,
    run_steps,
};
