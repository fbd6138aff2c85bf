// A tensor with its axes in another order, written without gaps.
#pragma once

#include "vector.h"

namespace {

using adaptc::Copy;

// to[i][l] = from[l][i]; from goes on by 1 in i and by `from_step` in l, to by `to_step` in i and by 1 in l.
TARGET void turn(float* to, Index to_step, const float* from, Index from_step, Index columns, Index rows) {
    for (Index i = 0; i < columns; i += LANES) {
        const Index wide = columns - i < LANES ? columns - i : LANES;
        for (Index l = 0; l < rows; l += LANES) {
            const Index high = rows - l < LANES ? rows - l : LANES;
            Vec v[LANES];
            for (Index j = 0; j < LANES; ++j) {
                v[j] = j < high ? load_part(from + (l + j) * from_step + i, wide) : splat(0.0f);
            }
            transpose(v);
            for (Index j = 0; j < wide; ++j) store_part(to + (i + j) * to_step + l, v[j], high);
        }
    }
}

TARGET void copy(const Copy& c, Index first, Index last) {
    const int inner = c.turned ? 2 : 1;
    const Loop* l = c.loop + c.loops - inner;
    Position at(c.loop, c.loops - inner, first);
    for (Index item = first; item < last; ++item, at.next()) {
        const float* from = static_cast<const float*>(c.from) + at.a;
        float* to = static_cast<float*>(c.to) + at.out;
        if (c.turned) {
            turn(to, l[0].out, from, l[1].a, l[0].extent, l[1].extent);
        } else if (l->a == 1 && l->out == 1) {
            std::memcpy(to, from, sizeof(float) * l->extent);
        } else {
            for (Index i = 0; i < l->extent; ++i) to[i * l->out] = from[i * l->a];
        }
    }
}

}  // namespace
