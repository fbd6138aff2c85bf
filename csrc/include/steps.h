// Products of two small tensors by their strides, and elementwise functions, one after the other.
#pragma once

#include <cmath>

#include "vector.h"

namespace {

using adaptc::Loop;
using adaptc::Op;
using adaptc::Step;

// The strides of the inner loop: known to be 0 or 1, so that the compiler makes vectors of it, or ANY.
constexpr int ANY = 2;

template <int S>
ADAPTC_INLINE Index stride(Index s) {
    return S == ANY ? s : S;
}

template <class T, int A, int B>
ADAPTC_INLINE void sum_row(const Step& c, const Loop& l, T* out, const T* a, const T* b) {
    const Index n = l.extent, sa = stride<A>(l.a), sb = stride<B>(l.b);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < n; ++i) sum += a[i * sa] * b[i * sb];
    sum *= static_cast<T>(c.scale);
    *out = c.add ? *out + sum : sum;
}

template <class T, int O, int A, int B>
ADAPTC_INLINE void write_row(const Step& c, const Loop& l, T* out, const T* a, const T* b) {
    const Index n = l.extent, so = stride<O>(l.out), sa = stride<A>(l.a), sb = stride<B>(l.b);
    const T scale = static_cast<T>(c.scale);
    if (B == 0) {
        const T factor = scale * *b;
        if (c.add) {
#pragma omp simd
            for (Index i = 0; i < n; ++i) out[i * so] += a[i * sa] * factor;
        } else {
#pragma omp simd
            for (Index i = 0; i < n; ++i) out[i * so] = a[i * sa] * factor;
        }
    } else if (c.add) {
#pragma omp simd
        for (Index i = 0; i < n; ++i) out[i * so] += scale * a[i * sa] * b[i * sb];
    } else {
#pragma omp simd
        for (Index i = 0; i < n; ++i) out[i * so] = scale * a[i * sa] * b[i * sb];
    }
}

// All loops but the inner one, the last of them fastest.
template <class T, class Row>
ADAPTC_INLINE void each_row(const Step& c, T* out, const T* a, const T* b, Row row) {
    const int outer = c.loops - 1;
    Index at[adaptc::LOOPS] = {};
    while (true) {
        row(out, a, b);
        int d = outer - 1;
        for (; d >= 0; --d) {
            const Loop& l = c.loop[d];
            out += l.out, a += l.a, b += l.b;
            if (++at[d] < l.extent) break;
            out -= l.out * l.extent, a -= l.a * l.extent, b -= l.b * l.extent;
            at[d] = 0;
        }
        if (d < 0) return;
    }
}

// NaN stays NaN, as in torch.
template <class T>
ADAPTC_INLINE T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

template <class T>
ADAPTC_INLINE T power(T a, T exponent) {
    if (exponent == T(-1)) return T(1) / a;
    if (exponent == T(0.5)) return std::sqrt(a);
    if (exponent == T(-0.5)) return T(1) / std::sqrt(a);
    if (exponent == T(2)) return a * a;
    return std::pow(a, exponent);
}

template <class T, class Function>
ADAPTC_INLINE void map_rows(const Step& c, T* out, const T* a, const T* b, Function function) {
    const Loop& l = c.loop[c.loops - 1];
    each_row<T>(c, out, a, b, [&](T* o, const T* p, const T* q) TARGET {
        for (Index i = 0; i < l.extent; ++i) o[i * l.out] = function(p[i * l.a], q[i * l.b], o[i * l.out]);
    });
}

template <class T>
TARGET void run_map(const Step& c, T* out, const T* a, const T* b) {
    const T scale = static_cast<T>(c.scale);
#define ADAPTC_MAP(NAME, VALUE) \
    case Op::NAME: return map_rows<T>(c, out, a, b, [=](T p, T q, T o) TARGET { (void)q, (void)o; return VALUE; })
    switch (c.op) {
        ADAPTC_MAP(exp, std::exp(p));
        ADAPTC_MAP(log, std::log(p));
        ADAPTC_MAP(sin, std::sin(p));
        ADAPTC_MAP(cos, std::cos(p));
        ADAPTC_MAP(tanh, std::tanh(p));
        ADAPTC_MAP(erf, std::erf(p));
        ADAPTC_MAP(sigmoid, T(1) / (T(1) + std::exp(-p)));
        ADAPTC_MAP(nearest, std::nearbyint(p));
        ADAPTC_MAP(direction, static_cast<T>((p > T(0)) - (p < T(0))));
        ADAPTC_MAP(magnitude, std::fabs(p));
        ADAPTC_MAP(positive, static_cast<T>(p > T(0)));
        ADAPTC_MAP(root, std::sqrt(p));
        ADAPTC_MAP(inverse_root, p == T(0) ? T(0) : T(1) / std::sqrt(p));
        ADAPTC_MAP(floor, std::floor(p));
        ADAPTC_MAP(power, power(p, scale));
        ADAPTC_MAP(larger, larger(p, q));
        ADAPTC_MAP(greatest, larger(p, o));
        default: return;
    }
#undef ADAPTC_MAP
}

template <class T>
TARGET void run_step(const Step& c, const void* first, const void* second, void* to) {
    T* out = static_cast<T*>(to) + c.out_at;
    const T* a = static_cast<const T*>(first) + c.a_at;
    const T* b = static_cast<const T*>(second) + c.b_at;
    if (c.op != Op::product) return run_map<T>(c, out, a, b);
    const Loop& l = c.loop[c.loops - 1];
#define ADAPTC_EACH(ROW) each_row<T>(c, out, a, b, [&](T* o, const T* p, const T* q) TARGET { ROW(c, l, o, p, q); })
    if (c.sums) {
        if (l.a == 1 && l.b == 1) return ADAPTC_EACH((sum_row<T, 1, 1>));
        return ADAPTC_EACH((sum_row<T, ANY, ANY>));
    }
    if (l.out == 1 && l.a == 1 && l.b == 0) return ADAPTC_EACH((write_row<T, 1, 1, 0>));
    if (l.out == 1 && l.a == 1 && l.b == 1) return ADAPTC_EACH((write_row<T, 1, 1, 1>));
    if (l.b == 0) return ADAPTC_EACH((write_row<T, ANY, ANY, 0>));
    ADAPTC_EACH((write_row<T, ANY, ANY, ANY>));
#undef ADAPTC_EACH
}

TARGET void run_steps(const Step* steps, Index count, void* const* buffers, bool wide) {
    for (Index s = 0; s < count; ++s) {
        const Step& c = steps[s];
        if (wide) {
            run_step<double>(c, buffers[c.a], buffers[c.b], buffers[c.out]);
        } else {
            run_step<float>(c, buffers[c.a], buffers[c.b], buffers[c.out]);
        }
    }
}

}  // namespace
