#include "calls.h"

#include <pybind11/stl.h>

#include <stdexcept>

namespace adaptc {

namespace py = pybind11;

namespace {

Step step_of(const Written& written) {
    const auto& [out, a, b, op, scale, add, sums, loops] = written;
    if (loops.size() > LOOPS) throw std::invalid_argument("a step has 1 to 12 loops");
    if (op < 0 || op >= static_cast<int>(Op::count)) throw std::invalid_argument("no such operation");
    Step step{out.first, a.first, b.first, static_cast<Op>(op), add, sums, scale, out.second, a.second, b.second, 0, {}};
    for (const auto& [extent, to, from, other] : loops) step.loop[step.loops++] = {extent, to, from, other};
    return step;
}

bool fits(const Tensor& t, const std::vector<Index>& shape) {
    if (t.ndim != static_cast<int>(shape.size())) return false;
    for (int d = 0; d < t.ndim; ++d) {
        if (t.shape[d] != shape[d]) return false;
    }
    return true;
}

// Arguments of a call, alive until it returns.
struct Held {
    PyObject* objects[Repeat::ROOM];
    std::size_t count = 0;

    void add(PyObject* object) { Py_INCREF(objects[count++] = object); }
    ~Held() {
        while (count) Py_DECREF(objects[--count]);
    }
};

}  // namespace

Steps::Entry& Steps::entry(Index rows) {
    const auto known = entries_.find(rows);
    if (known != entries_.end()) return known->second;
    using Lowered = std::tuple<std::vector<Written>, std::vector<Index>, std::vector<std::vector<Index>>>;
    auto [written, sizes, shapes] = lower_(rows).cast<Lowered>();
    std::vector<Step> steps;
    for (const Written& w : written) steps.push_back(step_of(w));
    Program program(std::move(steps), std::move(sizes), static_cast<Index>(shapes.size()), wide_, level_);
    return entries_.emplace(rows, Entry{std::move(program), std::move(shapes)}).first->second;
}

bool Steps::operator()(const py::args& tensors) {
    constexpr Index FEW = 64;
    Tensor first;
    const Index count = static_cast<Index>(tensors.size());
    if (!count || !library_->view(PyTuple_GET_ITEM(tensors.ptr(), 0), &first)) return false;
    const Entry& use = entry(first.ndim ? first.shape[0] : 0);
    const Program& program = use.program;
    if (count != program.given()) throw py::value_error("one tensor for each argument and result");
    void* few[FEW];
    std::vector<void*> many(program.buffers() > FEW ? program.buffers() : 0);
    void** buffers = many.empty() ? few : many.data();
    for (Index n = 0; n < count; ++n) {
        Tensor t;
        if (!library_->view(PyTuple_GET_ITEM(tensors.ptr(), n), &t)) return false;
        const bool right = t.device.type == CPU && t.dtype.code == FLOAT && t.dtype.bits == (wide_ ? 64 : 32) &&
                           t.dtype.lanes == 1;
        if (!right || !fits(t, use.shapes[n]) || !straight(t)) return false;
        buffers[n] = static_cast<char*>(t.data) + t.byte_offset;
    }
    program.run(buffers);
    return true;
}

Repeat::Repeat(std::shared_ptr<Library> library, const py::object& x, const py::list& sources, py::object target,
               Index least, Index most)
    : library_(std::move(library)), target_(std::move(target)), least_(least), most_(most) {
    usable_ = look(x, &x_) && !x_.none && x_.tensor.ndim > 0 && sources.size() < ROOM;
    for (const py::handle& entry : sources) {
        const auto pair = py::cast<py::tuple>(entry);
        Source source{py::cast<py::dict>(pair[0]), py::cast<py::object>(pair[1]), {}};
        PyObject* now = PyDict_GetItemWithError(source.holder.ptr(), source.key.ptr());
        usable_ = usable_ && now && look(now, &source.expected);
        sources_.push_back(std::move(source));
    }
}

bool Repeat::look(const py::handle& object, Expected* out) const {
    out->none = object.is_none();
    if (out->none) return true;
    if (!library_->view(object.ptr(), &out->tensor)) return false;
    out->shape.assign(out->tensor.shape, out->tensor.shape + out->tensor.ndim);
    out->wants = py::cast<bool>(object.attr("requires_grad"));
    return true;
}

bool Repeat::alike(const py::handle& object, const Expected& expected, bool whole) const {
    static PyObject* const name = PyUnicode_InternFromString("requires_grad");
    if (expected.none || object.is_none()) return expected.none && object.is_none();
    Tensor t;
    if (!library_->view(object.ptr(), &t)) return false;
    if (!same(t.dtype, expected.tensor.dtype) || !same(t.device, expected.tensor.device)) return false;
    if (whole && !fits(t, expected.shape)) return false;
    const auto wants = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name));
    if (!wants) throw py::error_already_set();
    return wants.is(py::bool_(expected.wants));
}

py::object Repeat::operator()(const py::object& x) const {
    if (!alike(x, x_, false)) return py::none();
    Tensor t;
    library_->view(x.ptr(), &t);
    Index entries = 1;
    for (int d = 0; d < t.ndim; ++d) entries *= t.shape[d];
    if (!t.ndim || t.shape[t.ndim - 1] != x_.shape.back() || entries < least_ || entries > most_) return py::none();
    Held arguments;
    arguments.add(x.ptr());
    for (const Source& s : sources_) {
        PyObject* now = PyDict_GetItemWithError(s.holder.ptr(), s.key.ptr());
        if (!now || !alike(now, s.expected, true)) return py::none();
        if (now != Py_None) arguments.add(now);
    }
    PyObject* found = PyObject_Vectorcall(target_.ptr(), arguments.objects, arguments.count, nullptr);
    if (!found) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

}  // namespace adaptc
