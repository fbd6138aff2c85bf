// A^-1 B for many small matrices: elimination with the largest pivot of each column.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace {

using adaptc::Solves;

// to -= the sum of weights[p] times the rows `at`, at + width, ...: summed apart, so that small terms are not lost one
// by one in a large entry.
ADAPTC_INLINE void subtract(float* to, const float* weights, const float* at, Index count, Index width, Index columns,
                            float* __restrict sums) {
    for (Index c = 0; c < columns; ++c) sums[c] = 0.0f;
    for (Index p = 0; p < count; ++p) {
        for (Index c = 0; c < columns; ++c) sums[c] += weights[p] * at[p * width + c];
    }
    for (Index c = 0; c < columns; ++c) to[c] -= sums[c];
}

struct Spare {
    float* lower;  // n rows: the columns of the lower factor
    float* column;
    float* weights;
    float* sums;  // n + q
};

// Rows of n + q: A and B side by side, in place; then the last q are A^-1 B. False where a pivot is zero.
TARGET bool eliminate(float* both, Index n, Index q, const Spare& spare) {
    const Index width = n + q;
    for (Index j = 0; j < n; ++j) {
        for (Index p = 0; p < j; ++p) spare.weights[p] = both[p * width + j];
        for (Index i = j; i < n; ++i) spare.column[i] = both[i * width + j];
        subtract(spare.column + j, spare.weights, spare.lower + j, j, n, n - j, spare.sums);
        Index best = j;
        for (Index i = j + 1; i < n; ++i) {
            if (std::fabs(spare.column[i]) > std::fabs(spare.column[best])) best = i;
        }
        float* const row = both + j * width;
        if (best != j) {
            std::swap_ranges(row, row + width, both + best * width);
            std::swap(spare.column[j], spare.column[best]);
            for (Index p = 0; p < j; ++p) std::swap(spare.lower[p * n + j], spare.lower[p * n + best]);
        }
        const float pivot = row[j] = spare.column[j];
        if (pivot == 0.0f) return false;
        for (Index i = j + 1; i < n; ++i) spare.lower[j * n + i] = spare.column[i] / pivot;
        for (Index p = 0; p < j; ++p) spare.weights[p] = spare.lower[p * n + j];
        subtract(row + j + 1, spare.weights, both + j + 1, j, width, width - j - 1, spare.sums);
    }
    for (Index j = n - 1; j >= 0; --j) {
        float* const row = both + j * width;
        subtract(row + n, row + j + 1, row + width + n, n - j - 1, width, q, spare.sums);
        for (Index c = n; c < width; ++c) row[c] /= row[j];
    }
    return true;
}

TARGET bool solve(const Solves& c, Index first, Index last) {
    const Index n = c.n, q = c.q, width = n + q;
    const Buffer<float> both(n * width), lower(n * n), column(n), weights(n), sums(width);
    const Spare spare{lower.get(), column.get(), weights.get(), sums.get()};
    bool regular = true;
    for (Index g = first; g < last; ++g) {
        const float* A = c.A + g * c.A_stride[0];
        const float* B = c.B + g * c.B_stride[0];
        for (Index i = 0; i < n; ++i) {
            float* const row = both.get() + i * width;
            for (Index j = 0; j < n; ++j) row[j] = A[i * c.A_stride[1] + j * c.A_stride[2]];
            for (Index j = 0; j < q; ++j) row[n + j] = B[i * c.B_stride[1] + j * c.B_stride[2]];
        }
        regular &= eliminate(both.get(), n, q, spare);
        for (Index i = 0; i < n; ++i) {
            std::memcpy(c.out + (g * n + i) * q, both.get() + i * width + n, sizeof(float) * q);
        }
    }
    return regular;
}

}  // namespace
