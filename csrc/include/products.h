// The product of two tensors by their strides, where it is bound by memory: elementwise, with sums over any axes.
#pragma once

#include "sampled.h"

namespace {

using adaptc::Product;
using adaptc::Loop;

constexpr Index TILE = 4096;  // sums that are held at a time, twice: they stay in the first cache
constexpr Index PASS = 64;    // products that are summed before their sum is added to the others'

// Offsets of a position in some nested loops, the last of them fastest.
struct Position {
    const Loop* loops;
    int count;
    Index at[adaptc::LOOPS], out = 0, a = 0, b = 0;

    TARGET Position(const Loop* first, int n, Index index) : loops(first), count(n) {
        for (int d = n - 1; d >= 0; --d) {
            at[d] = index % first[d].extent;
            index /= first[d].extent;
            out += at[d] * first[d].out, a += at[d] * first[d].a, b += at[d] * first[d].b;
        }
    }
    ADAPTC_INLINE void next() {
        for (int d = count - 1; d >= 0; --d) {
            const Loop& l = loops[d];
            out += l.out, a += l.a, b += l.b;
            if (++at[d] < l.extent) return;
            out -= l.out * l.extent, a -= l.a * l.extent, b -= l.b * l.extent;
            at[d] = 0;
        }
    }
};

TARGET Index volume(const Loop* loops, int count) {
    Index total = 1;
    for (int d = 0; d < count; ++d) total *= loops[d].extent;
    return total;
}

struct Complex {
    float re, im;
};

template <class T>
constexpr Index PARTS = 1;  // floats that an entry is summed in
template <>
constexpr Index PARTS<Complex> = 2;

// sum[i] += a[i] b[i], or a[i] b[0].
template <bool BOTH, class A, class B>
ADAPTC_INLINE void add_row(float* sum, const A* a, const B* b, Index n, const Vec*) {
    const Vec one = splat(widen(*b));
    Index i = 0;
    for (; i + LANES <= n; i += LANES) store(sum + i, add_product(load(sum + i), load(a + i), BOTH ? load(b + i) : one));
    if (const Index left = n - i) {
        const Vec right = BOTH ? load_part(b + i, left) : one;
        store_part(sum + i, add_product(load_part(sum + i, left), load_part(a + i, left), right), left);
    }
}

// x y of pairs (re, im). signs: of x's lanes, and of those in each other's place.
ADAPTC_INLINE Vec add_pairs(Vec sum, Vec x, Vec y, const Vec* signs) {
    const Vec zero = splat(0.0f);
    const Vec straight = add_product(zero, spread<2, 0>(y), signs[0]);
    const Vec crossed = add_product(zero, spread<2, 1>(y), signs[1]);
    return add_product(add_product(sum, x, straight), exchange<1>(x), crossed);
}

// The same for complex numbers: even lanes are real parts.
template <bool BOTH>
ADAPTC_INLINE void add_row(float* sum, const Complex* a, const Complex* b, Index n, const Vec* signs) {
    const float *x = &a->re, *y = &b->re;
    float pair[LANES];
    for (Index l = 0; l < LANES; ++l) pair[l] = y[l % 2];
    const Vec one = load(pair);
    Index i = 0;
    for (; i + LANES <= 2 * n; i += LANES) {
        store(sum + i, add_pairs(load(sum + i), load(x + i), BOTH ? load(y + i) : one, signs));
    }
    if (const Index left = 2 * n - i) {
        const Vec right = BOTH ? load_part(y + i, left) : one;
        store_part(sum + i, add_pairs(load_part(sum + i, left), load_part(x + i, left), right, signs), left);
    }
}

ADAPTC_INLINE void write_row(Complex* out, const float* sum, float scale, Index n) {
    for (Index i = 0; i < n; ++i) out[i] = {sum[2 * i] * scale, sum[2 * i + 1] * scale};
}

template <class O>
ADAPTC_INLINE void write_row(O* out, const float* sum, float scale, Index n) {
    const Vec zero = splat(0.0f), factor = splat(scale);
    Index i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, add_product(zero, load(sum + i), factor));
    if (i < n) store_part(out + i, add_product(zero, load_part(sum + i, n - i), factor), n - i);
}

// Tiles of sums: outer loops, then summed ones, then those of a tile, of which the last goes along vectors.
template <class A, class B, class O, bool BOTH>
TARGET void product_tiles(const Product& c, Index first, Index last) {
    const Loop *summed = c.loop + c.outer, *inner = summed + c.summed;
    const Loop& along = inner[c.inner - 1];
    const Index chunks = (along.extent + TILE - 1) / TILE;
    const Index rows = volume(inner, c.inner - 1), steps = volume(summed, c.summed);
    constexpr Index parts = PARTS<A>;
    const Buffer<float> room(2 * parts * TILE);
    float *const total = room.get(), *const part = total + parts * TILE;
    float sign[2][LANES];
    for (Index l = 0; l < LANES; ++l) {
        sign[0][l] = l % 2 ? c.a_sign : 1.0f;
        sign[1][l] = l % 2 ? c.b_sign : -c.a_sign * c.b_sign;
    }
    const Vec signs[] = {load(sign[0]), load(sign[1])};
    for (Index item = first; item < last; ++item) {
        const Index from = item % chunks * TILE, n = along.extent - from < TILE ? along.extent - from : TILE;
        const Position tile(c.loop, c.outer, item / chunks);
        const A* a = static_cast<const A*>(c.a) + tile.a + from;
        const B* b = static_cast<const B*>(c.b) + tile.b + (BOTH ? from : 0);
        Position s(summed, c.summed, 0);
        for (Index i = 0; i < parts * rows * n; ++i) total[i] = 0.0f;
        for (Index done = 0; done < steps; done += PASS) {
            float* const sum = steps > PASS ? part : total;
            for (Index i = 0; sum == part && i < parts * rows * n; ++i) part[i] = 0.0f;
            for (Index j = done; j < steps && j < done + PASS; ++j, s.next()) {
                if (rows == 1) {
                    add_row<BOTH>(sum, a + s.a, b + s.b, n, signs);
                    continue;
                }
                Position row(inner, c.inner - 1, 0);
                for (Index r = 0; r < rows; ++r, row.next()) {
                    add_row<BOTH>(sum + parts * r * n, a + s.a + row.a, b + s.b + row.b, n, signs);
                }
            }
            for (Index i = 0; sum == part && i < parts * rows * n; ++i) total[i] += part[i];
        }
        Position row(inner, c.inner - 1, 0);
        O* out = static_cast<O*>(c.out) + tile.out + from;
        for (Index r = 0; r < rows; ++r, row.next()) write_row(out + row.out, total + parts * r * n, c.scale, n);
    }
}

// Inner products: outer loops, then summed ones, of which the last goes along vectors.
template <class A, class B, class O>
TARGET void product_sums(const Product& c, Index first, Index last) {
    const Loop *summed = c.loop + c.outer, &along = summed[c.summed - 1];
    const Index steps = volume(summed, c.summed - 1);
    Position at(c.loop, c.outer, first);
    for (Index item = first; item < last; ++item, at.next()) {
        double sum = 0;
        Position s(summed, c.summed - 1, 0);
        for (Index j = 0; j < steps; ++j, s.next()) {
            const A* a = static_cast<const A*>(c.a) + at.a + s.a;
            const B* b = static_cast<const B*>(c.b) + at.b + s.b;
            sum += inner(a, b, along.extent);
        }
        O value[LANES];
        store(value, splat(static_cast<float>(sum) * c.scale));
        static_cast<O*>(c.out)[at.out] = value[0];
    }
}

template <class A, class B, class O>
TARGET void product_typed(const Product& c, Index first, Index last) {
    if (!c.inner) return product_sums<A, B, O>(c, first, last);
    if (c.loop[c.outer + c.summed + c.inner - 1].b) return product_tiles<A, B, O, true>(c, first, last);
    return product_tiles<A, B, O, false>(c, first, last);
}

template <class A, class B>
TARGET void product_to(const Product& c, Index first, Index last) {
    return c.out_type == Dtype::float32 ? product_typed<A, B, float>(c, first, last)
                                        : product_typed<A, B, bf16>(c, first, last);
}

TARGET void product(const Product& c, Index first, Index last) {
    if (c.a_type == Dtype::complex64) {
        return c.loop[c.outer + c.summed + c.inner - 1].b
                   ? product_tiles<Complex, Complex, Complex, true>(c, first, last)
                   : product_tiles<Complex, Complex, Complex, false>(c, first, last);
    }
    const bool wide = c.a_type == Dtype::float32, wide_b = c.b_type == Dtype::float32;
    if (wide) return wide_b ? product_to<float, float>(c, first, last) : product_to<float, bf16>(c, first, last);
    return wide_b ? product_to<bf16, float>(c, first, last) : product_to<bf16, bf16>(c, first, last);
}

TARGET Index product_items(const Product& c) {
    const Index outer = volume(c.loop, c.outer);
    if (!c.inner) return outer;
    return outer * ((c.loop[c.outer + c.summed + c.inner - 1].extent + TILE - 1) / TILE);
}

}  // namespace
