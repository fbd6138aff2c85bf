// The Python side of calls: what a layer does before and after a program, in C++ because it costs more than small
// products do.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "native.h"
#include "tensors.h"

namespace adaptc {

using Loops = std::vector<std::tuple<Index, Index, Index, Index>>;
using Operand = std::pair<int, Index>;  // a buffer, and where it begins there
using Written = std::tuple<Operand, Operand, Operand, int, double, bool, bool, Loops>;

// A function of tensors whose sizes depend on the number of tokens: one program for each number, made when asked for.
class Steps {
  public:
    // lower(rows) -> (steps, sizes of all buffers, shapes of the given ones)
    Steps(std::shared_ptr<Library> library, pybind11::function lower, bool wide, int level)
        : library_(std::move(library)), lower_(std::move(lower)), wide_(wide), level_(level) {}

    // Runs on arguments and results; false if one is not a plain, row-major tensor of the right size.
    bool operator()(const pybind11::args& tensors);

  private:
    struct Entry {
        Program program;
        std::vector<std::vector<Index>> shapes;
    };
    Entry& entry(Index rows);

    std::shared_ptr<Library> library_;
    pybind11::function lower_;
    bool wide_;
    int level_;
    std::map<Index, Entry> entries_;
};

// A call like one before: the tensors are read where the layer holds them and compared with what they were then.
class Repeat {
  public:
    static constexpr std::size_t ROOM = 64;  // arguments

    // sources: (dictionary, key) of each argument after x, as `tensors` holds them now.
    Repeat(std::shared_ptr<Library> library, const pybind11::object& x, const pybind11::list& sources,
           pybind11::object target, Index least, Index most);

    // target(x, *tensors), or None if anything has changed. x has between least and most entries.
    pybind11::object operator()(const pybind11::object& x) const;

    bool usable() const { return usable_; }

  private:
    struct Expected {
        bool none = false, wants = false;
        Tensor tensor{};
        std::vector<Index> shape;
    };
    struct Source {
        pybind11::dict holder;
        pybind11::object key;
        Expected expected;
    };

    bool look(const pybind11::handle& object, Expected* out) const;
    bool alike(const pybind11::handle& object, const Expected& expected, bool whole) const;

    std::shared_ptr<Library> library_;
    Expected x_;
    std::vector<Source> sources_;
    pybind11::object target_;
    Index least_, most_;
    bool usable_ = true;
};

}  // namespace adaptc
