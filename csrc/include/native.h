// What the kernels compute, and the table of them that each instruction set fills.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace adaptc {

using Index = std::ptrdiff_t;

enum class Dtype : int { float32 = 0, bfloat16 = 1, complex64 = 2 };

// out[t, b*q + j] = sum_i x[t, b*p + i] R[b, i, j], or R[b, j, i] if transposed.
struct Apply {
    const void* x;
    const void* R;
    void* out;
    Index m, g, p, q, x_stride;
    Dtype data, blocks;  // of x and out; of R
    bool transposed;
};

// out[b, i, j] = sum_t x[t, b*p + i] gy[t, b*q + j], in float32.
struct Gradient {
    const void* x;
    const void* gy;
    float* out;
    Index m, g, p, q, x_stride, gy_stride;
    Dtype data;
};

struct Place {
    std::int32_t row, col;
    Index at;
};

// out[t] = sum_m a[m, rows[t]] b[m, cols[t]], in float32, for a (m, n) and b (m, k).
struct Sampled {
    const void* a;
    const void* b;
    const std::int64_t* rows;
    const std::int64_t* cols;
    float* out;
    Index places, m, n, k, a_stride, b_stride;
    Dtype data;
    Index token;         // from which on `span` tokens are added to out, or, if it is the first, written
    float* columns;      // of a, then of b: those tokens of each
    const Place* order;  // the places, so that neighbours read neighbouring columns, which stay in the cache
    float* sums;         // in that order
};

// out[m, rows[t]] += c[t] x[m, cols[t]] for all t, after out = 0.
struct Scatter {
    const void* x;
    const float* c;
    const std::int64_t* rows;
    const std::int64_t* cols;
    void* out;
    Index places, m, k, n, x_stride;
    Dtype data;
};

// 24 bits for each (row, column), as a number in [0, 1) or as a comparison with a threshold.
struct Draw {
    const std::uint64_t* seed;
    std::uint32_t stream;
    std::int64_t threshold;  // below 0: uniform
    void* out;
    Index m, k;
    Dtype data;
};

constexpr int LOOPS = 12;

struct Loop {
    Index extent, out, a, b;  // strides in entries
};

// What a step does with two entries; `greatest` takes the larger of a and what is in out. In the order of
// adaptc/codegen/strided.py.
enum class Op : int {
    product, exp, log, sin, cos, tanh, erf, sigmoid, nearest, direction, magnitude, positive, root, inverse_root, floor,
    power, larger, greatest, count
};

// out = scale * sum of a * b over the loops that `out` does not have, or out += it. The last loop is the inner one.
// Of other operations: out = op(a, b), and `scale` is the exponent of a power.
struct Step {
    int out, a, b;  // which buffers
    Op op;
    bool add, sums;  // sums: is the inner loop summed in a register?
    double scale;
    Index out_at, a_at, b_at;
    int loops;
    Loop loop[LOOPS];
};

// out = scale * sum of a * b. Loops: `outer` ones, each an output of its own; `summed` ones; `inner` ones, at most a
// tile of sums, of which the last goes along vectors: there out and a go on by 1, b by 1 or 0. Without inner loops the
// last summed one goes along vectors, a and b by 1. Complex numbers are so in a, b and out; *_sign is that of the imaginary
// parts, and there is no product without inner loops.
struct Product {
    const void* a;
    const void* b;
    void* out;
    Dtype a_type, b_type, out_type;
    float scale, a_sign, b_sign;
    int outer, summed, inner;
    Loop loop[LOOPS];
};

// out = a. turned: out goes on by 1 in the last loop, a in the one before, and both are a tile's.
struct Copy {
    const void* from;
    void* to;
    int loops;
    bool turned;
    Loop loop[LOOPS];
};

// out[g] = A[g]^-1 B[g] for A (g, n, n) and B (g, n, q) by strides in entries, out without gaps.
struct Solves {
    const float* A;
    const float* B;
    float* out;
    Index g, n, q;
    Index A_stride[3], B_stride[3];
};

// Steps over float (or, wide, double) buffers: arguments and results by address, then temporaries, then a one.
class Program {
  public:
    Program(std::vector<Step> steps, std::vector<Index> sizes, Index given, bool wide, int level);
    void run(void** addresses) const;  // `given` addresses, and room for the others
    Index given() const { return given_; }
    Index buffers() const { return static_cast<Index>(sizes_.size()); }

  private:
    std::vector<Step> steps_;
    std::vector<Index> sizes_;
    Index given_, room_ = 0;
    bool wide_;
    int level_;
};

// One instruction set. Ranges are of independent outputs: how they are cut never changes a result.
struct Level {
    const char* name;
    Index (*packed_floats)(const Apply&);
    Index (*packed_items)(const Apply&);
    void (*pack)(const Apply&, float* packed, Index first, Index last);
    void (*apply)(const Apply&, const float* packed, Index first, Index last);  // tokens
    Index (*gradient_items)(const Gradient&);
    void (*gradient)(const Gradient&, Index first, Index last);
    void (*columns)(std::uint32_t* hashes, Index k);
    void (*draw)(const Draw&, const std::uint32_t* columns, Index first, Index last);  // rows
    Index span;  // tokens that `sampled` lays beside each other
    void (*columns_of)(const Sampled&, Index first, Index last);  // tokens of a span
    void (*sampled)(const Sampled&, Index first, Index last);     // places
    void (*scatter)(const Scatter&, Index first, Index last);  // tokens
    Index (*product_items)(const Product&);
    void (*product)(const Product&, Index first, Index last);  // items
    void (*copy)(const Copy&, Index first, Index last);  // positions of all loops but a tile's
    bool (*solve)(const Solves&, Index first, Index last);  // matrices; false: one of them has no inverse
    void (*run_steps)(const Step* steps, Index count, void* const* buffers, bool wide);
};

extern const Level plain_level;
extern const Level avx2_level;
extern const Level avx512_level;
extern const Level avx512bf16_level;

int levels();                   // how many this machine runs
const Level& level(int index);  // -1: the last, which is the best

void blocks_apply(const Apply&, int threads, int level);
void blocks_gradient(const Gradient&, int threads, int level);
void draw(const Draw&, int threads, int level);
void sampled(const Sampled&, int threads, int level);
void scatter(const Scatter&, int threads, int level);
void product(const Product&, int threads, int level);
void copy(const Copy&, int threads, int level);
bool solve(const Solves&, int threads, int level);

// Uninitialised memory on a cache line.
template <class T>
class Buffer {
  public:
    explicit Buffer(Index n) : data_(static_cast<T*>(::operator new(sizeof(T) * (n > 0 ? n : 1), align()))) {}
    ~Buffer() { ::operator delete(data_, align()); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

  private:
    static constexpr std::align_val_t align() { return std::align_val_t{64}; }
    T* data_;
};

}  // namespace adaptc
