// The Python module: addresses, sizes and dtype codes in, nothing out. The caller checks and allocates.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "calls.h"
#include "native.h"

namespace py = pybind11;

namespace {

using adaptc::Dtype;
using adaptc::Index;
using Address = std::uintptr_t;

void check_level(int level) {
    if (level < -1 || level >= adaptc::levels()) throw py::value_error("no such instruction set on this machine");
}

void blocks_apply(Address x, Address R, Address out, Index m, Index g, Index p, Index q, Index x_stride, int data,
                  int blocks, bool transposed, int threads, int level) {
    check_level(level);
    const adaptc::Apply call{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(R),
                             reinterpret_cast<void*>(out), m, g, p, q, x_stride, static_cast<Dtype>(data),
                             static_cast<Dtype>(blocks), transposed};
    const py::gil_scoped_release release;
    adaptc::blocks_apply(call, threads, level);
}

void blocks_gradient(Address x, Address gy, Address out, Index m, Index g, Index p, Index q, Index x_stride,
                     Index gy_stride, int data, int threads, int level) {
    check_level(level);
    const adaptc::Gradient call{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(gy),
                                reinterpret_cast<float*>(out), m, g, p, q, x_stride, gy_stride,
                                static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::blocks_gradient(call, threads, level);
}

void draw(Address seed, std::uint32_t stream, std::int64_t threshold, Address out, Index m, Index k, int data,
          int threads, int level) {
    check_level(level);
    const adaptc::Draw call{reinterpret_cast<const std::uint64_t*>(seed), stream, threshold,
                            reinterpret_cast<void*>(out), m, k, static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::draw(call, threads, level);
}

void sampled(Address a, Address b, Address rows, Address cols, Address out, Index places, Index m, Index n, Index k,
             Index a_stride, Index b_stride, int data, int threads, int level) {
    check_level(level);
    const adaptc::Sampled call{reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b),
                               reinterpret_cast<const std::int64_t*>(rows), reinterpret_cast<const std::int64_t*>(cols),
                               reinterpret_cast<float*>(out), places, m, n, k, a_stride, b_stride,
                               static_cast<Dtype>(data), 0, nullptr, nullptr, nullptr};
    const py::gil_scoped_release release;
    adaptc::sampled(call, threads, level);
}

void scatter(Address x, Address c, Address rows, Address cols, Address out, Index places, Index m, Index k, Index n,
             Index x_stride, int data, int threads, int level) {
    check_level(level);
    const adaptc::Scatter call{reinterpret_cast<const void*>(x), reinterpret_cast<const float*>(c),
                               reinterpret_cast<const std::int64_t*>(rows), reinterpret_cast<const std::int64_t*>(cols),
                               reinterpret_cast<void*>(out), places, m, k, n, x_stride, static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::scatter(call, threads, level);
}

// A product of two tensors of known sizes and strides.
class Multiply {
  public:
    using Loops = std::vector<std::array<Index, 4>>;

    Multiply(const Loops& loops, int outer, int summed, int a_type, int b_type, int out_type, float scale,
             float a_sign, float b_sign, int level)
        : level_(level) {
        check_level(level);
        const int inner = static_cast<int>(loops.size()) - outer - summed;
        if (loops.size() > adaptc::LOOPS || outer < 0 || summed < 0 || inner < 0 || inner + summed < 1 ||
            (a_type == 2 && !inner)) {
            throw py::value_error("loops of a product: outer ones, summed ones, and those of a tile");
        }
        call_ = {nullptr, nullptr, nullptr, static_cast<Dtype>(a_type), static_cast<Dtype>(b_type),
                 static_cast<Dtype>(out_type), scale, a_sign, b_sign, outer, summed, inner, {}};
        int n = 0;
        for (const auto& l : loops) call_.loop[n++] = {l[0], l[1], l[2], l[3]};
    }
    void operator()(Address a, Address b, Address out, int threads) const {
        adaptc::Product call = call_;
        call.a = reinterpret_cast<const void*>(a);
        call.b = reinterpret_cast<const void*>(b);
        call.out = reinterpret_cast<void*>(out);
        const py::gil_scoped_release release;
        adaptc::product(call, threads, level_);
    }

  private:
    adaptc::Product call_{};
    int level_;
};

void copy(Address from, Address to, const std::vector<std::array<Index, 3>>& loops, bool turned, int threads, int level) {
    check_level(level);
    if (loops.size() > adaptc::LOOPS || loops.size() < (turned ? 2 : 1)) throw py::value_error("loops of a copy");
    adaptc::Copy call{reinterpret_cast<const void*>(from), reinterpret_cast<void*>(to),
                      static_cast<int>(loops.size()), turned, {}};
    int n = 0;
    for (const auto& l : loops) call.loop[n++] = {l[0], l[1], l[2], 0};
    const py::gil_scoped_release release;
    adaptc::copy(call, threads, level);
}

bool solve(Address A, const std::array<Index, 3>& A_stride, Address B, const std::array<Index, 3>& B_stride, Address out,
           const std::array<Index, 3>& sizes, int threads, int level) {
    check_level(level);
    const adaptc::Solves call{
        reinterpret_cast<const float*>(A), reinterpret_cast<const float*>(B), reinterpret_cast<float*>(out),
        sizes[0], sizes[1], sizes[2], {A_stride[0], A_stride[1], A_stride[2]}, {B_stride[0], B_stride[1], B_stride[2]}};
    const py::gil_scoped_release release;
    return adaptc::solve(call, threads, level);
}

py::tuple levels() {
    py::list names;
    for (int n = 0; n < adaptc::levels(); ++n) names.append(adaptc::level(n).name);
    return py::tuple(names);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Kernels for the CPU. Dtypes are 0 float32, 1 bfloat16, 2 complex64; level -1 is the best instruction set.";
    module.def("levels", levels, "The instruction sets that this machine runs, the best last.");
    module.def("blocks_apply", blocks_apply);
    module.def("blocks_gradient", blocks_gradient);
    module.def("sampled", sampled);
    module.def("scatter", scatter);
    module.def("copy", ::copy);
    module.def("solve", solve, "False where a matrix has no inverse.");
    module.def("draw", draw, "Uniform numbers if the threshold is below 0, else ones where the bits reach it.");

    py::class_<Multiply>(module, "Multiply", "A product of two tensors of known sizes and strides.")
        .def(py::init<const Multiply::Loops&, int, int, int, int, int, float, float, float, int>())
        .def("__call__", &Multiply::operator());

    using adaptc::Library, adaptc::Repeat, adaptc::Steps;
    py::class_<Library, std::shared_ptr<Library>>(module, "Library", "A tensor library, by the exact types it has.")
        .def(py::init<py::type, py::type>())
        .def("ready", &Library::ready, "Can tensors be looked at?");
    py::class_<Steps>(module, "Steps", "Products of small tensors, one after the other, in one call.")
        .def(py::init([](std::shared_ptr<Library> library, py::function lower, bool wide, int level) {
            check_level(level);
            return Steps(std::move(library), std::move(lower), wide, level);
        }))
        .def("__call__", &Steps::operator());
    py::class_<Repeat>(module, "Repeat", "A call like one before.")
        .def(py::init<std::shared_ptr<Library>, py::object, py::list, py::object, adaptc::Index, adaptc::Index>())
        .def("usable", &Repeat::usable, "Could all tensors be looked at?")
        .def("__call__", &Repeat::operator());
}
