// SPDX-License-Identifier: MIT
#include "bindings/adam_table.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/view_as_real.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace fastconv::bindings {
namespace {

using at::Tensor;
using cpu::AdamType;

std::optional<AdamType> adam_type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
    case at::kComplexFloat:
      return AdamType::kFloat32;
    case at::kDouble:
    case at::kComplexDouble:
      return AdamType::kFloat64;
    case at::kBFloat16:
      return AdamType::kBfloat16;
    default:
      return std::nullopt;
  }
}

at::ScalarType state_dtype_of(const Tensor& param) {
  return param.scalar_type() == at::kBFloat16 ? at::kFloat : param.scalar_type();
}

// False, too, for a tensor whose storage was freed, as sharded training does between steps.
bool has_memory(const Tensor& tensor) {
  return tensor.layout() == at::kStrided && (tensor.is_cpu() || tensor.is_cuda()) &&
         !at::isTensorSubclassLike(tensor) &&
         (tensor.numel() == 0 || tensor.const_data_ptr() != nullptr);
}

bool is_plain(const Tensor& tensor) {
  return has_memory(tensor) && !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.sizes() == b.sizes() &&
         (a.strides() == b.strides() || a.numel() == 0 || (a.is_contiguous() && b.is_contiguous()));
}

std::string state_problem(const char* name, const Tensor& state, const Tensor& param) {
  if (!state.defined() || !is_plain(state) || state.scalar_type() != state_dtype_of(param) ||
      state.device() != param.device() || !same_layout(state, param))
    return c10::str("expected ", name, " of dtype ", state_dtype_of(param), ", shape ",
                    param.sizes(), " and the strides of its parameter on ", param.device(),
                    ", got ", state.defined() ? state.toString() : "nothing", " ",
                    state.defined() ? state.sizes() : at::IntArrayRef{});
  return {};
}

// A complex number counts as two real ones, as in torch.
Tensor as_real(const Tensor& tensor) {
  return tensor.is_complex() ? at::view_as_real(tensor.detach()) : tensor;
}

void* data_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}

void bump_version(const Tensor& tensor) {
  if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

std::string adam_slot_problem(const AdamSlot& slot) {
  const Tensor& p = slot.param;
  if (!is_plain(p) || !adam_type_of(p.scalar_type()) || !p.is_non_overlapping_and_dense())
    return c10::str("expected a dense float32, float64, bfloat16 or complex parameter, got ",
                    p.toString(), " ", p.sizes(), " with strides ",
                    p.layout() == at::kStrided ? p.strides() : at::IntArrayRef{});
  std::string problem = state_problem("exp_avg", slot.exp_avg, p);
  if (problem.empty()) problem = state_problem("exp_avg_sq", slot.exp_avg_sq, p);
  if (problem.empty() && slot.max_exp_avg_sq.defined())
    problem = state_problem("max_exp_avg_sq", slot.max_exp_avg_sq, p);
  if (!problem.empty()) return problem;
  const Tensor& t = slot.step;
  const bool counts = t.defined() && is_plain(t) && t.numel() == 1 && t.device() == p.device();
  if (!counts || !(t.scalar_type() == at::kFloat || (p.is_cpu() && t.scalar_type() == at::kDouble)))
    return c10::str("expected a step of one ", p.is_cpu() ? "float32 or float64" : "float32",
                    " number on ", p.device(), ", got ", t.defined() ? t.toString() : "nothing");
  return {};
}

void AdamTable::clear() {
  rows_.clear();
  tensors_.clear();
  chunks_.clear();
  copied_.clear();
}

void AdamTable::add(const AdamSlot& slot) {
  Row row{slot, as_real(slot.param), {}, {}, false, false, false};
  const Tensor* all[] = {&slot.param, &slot.exp_avg, &slot.exp_avg_sq, &slot.max_exp_avg_sq,
                         &slot.step};
  for (int i = 0; i < 5; ++i) {
    row.arrays[i] = data_of(*all[i]);
    row.sizes[i] = all[i]->defined() ? all[i]->numel() : 0;
  }
  row.contiguous = slot.param.is_contiguous();
  row.step_is_double = slot.step.scalar_type() == at::kDouble;
  rows_.push_back(std::move(row));
  cpu::AdamTensor tensor{};
  tensor.param = data_of(slot.param);
  tensor.exp_avg = data_of(slot.exp_avg);
  tensor.exp_avg_sq = data_of(slot.exp_avg_sq);
  tensor.max_exp_avg_sq = data_of(slot.max_exp_avg_sq);
  tensor.size = rows_.back().array.numel();
  tensor.type = *adam_type_of(slot.param.scalar_type());
  tensors_.push_back(tensor);
}

bool AdamTable::any_overlap() const {
  std::vector<std::pair<const char*, const char*>> blocks;
  for (const Row& row : rows_) {
    const AdamSlot& s = row.slot;
    for (const Tensor* t : {&s.param, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq}) {
      if (!t->defined() || t->numel() == 0) continue;
      const char* begin = static_cast<const char*>(t->const_data_ptr());
      blocks.emplace_back(begin, begin + t->nbytes());
    }
  }
  std::sort(blocks.begin(), blocks.end());
  for (size_t i = 1; i < blocks.size(); ++i)
    if (blocks[i].first < blocks[i - 1].second) return true;
  return false;
}

void AdamTable::finish() {
  const int64_t count = static_cast<int64_t>(tensors_.size());
  chunks_.resize(cpu::adam_chunk_count(tensors_.data(), count));
  partial_sums_.resize(chunks_.size());
  cpu::adam_make_chunks(tensors_.data(), count, chunks_.data());
  elements_ = 0;
  for (const cpu::AdamTensor& tensor : tensors_) elements_ += tensor.size;
  overlapping_ = any_overlap();
}

bool AdamTable::unchanged(size_t i) const {
  const Row& row = rows_[i];
  const AdamSlot& s = row.slot;
  const Tensor* all[] = {&s.param, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq, &s.step};
  for (int k = 0; k < 5; ++k)
    if (all[k]->defined() &&
        (all[k]->const_data_ptr() != row.arrays[k] || all[k]->numel() != row.sizes[k]))
      return false;
  return row.contiguous == s.param.is_contiguous();
}

bool adam_gradient_readable(const Tensor& gradient, const Tensor& param) {
  return gradient.scalar_type() == param.scalar_type() && gradient.sizes() == param.sizes() &&
         gradient.device() == param.device() && has_memory(gradient);
}

bool AdamTable::set_gradient(size_t i, const Tensor& gradient) {
  Row& row = rows_[i];
  cpu::AdamTensor& tensor = tensors_[i];
  row.takes_part = gradient.defined();
  tensor.grad = nullptr;
  if (!row.takes_part) return true;
  const Tensor& param = row.slot.param;
  if (!adam_gradient_readable(gradient, param)) return false;
  const bool aligned =
      row.contiguous ? gradient.is_contiguous() : gradient.strides() == param.strides();
  if (aligned && !gradient.is_conj() && !gradient.is_neg() && !gradient._is_zerotensor()) {
    tensor.grad = data_of(gradient);
    return true;
  }
  Copied copied{gradient, at::empty_like(param.detach())};
  copied.copy.copy_(gradient.detach());
  tensor.grad = data_of(copied.copy);
  copied_.push_back(std::move(copied));
  return true;
}

double AdamTable::count_step(size_t i) {
  void* counter = const_cast<void*>(rows_[i].arrays[4]);
  if (rows_[i].step_is_double) return *static_cast<double*>(counter) += 1.0;
  return *static_cast<float*>(counter) += 1.0f;
}

cpu::AdamList AdamTable::list() const {
  return {tensors_.data(), chunks_.data(), static_cast<int64_t>(chunks_.size()), overlapping_};
}

bool AdamTable::look_at_gradients(const AdamGradientOptions& options, AdamOutcome* outcome,
                                  cpu::AdamGradient* gradient) {
  gradient->unscale = options.unscale;
  gradient->write_back = options.write_back;
  const bool clip = options.max_norm >= 0.0;
  if (!clip && !options.skip_nonfinite) return true;
  const double sum = cpu::adam_sum_of_squares(list(), options.unscale, partial_sums_.data()) +
                     options.other_squares;
  outcome->has_norm = true;
  outcome->norm = std::sqrt(sum);
  // A sum may overflow although every gradient is finite.
  if (options.skip_nonfinite && !std::isfinite(sum) &&
      !(options.others_finite && cpu::adam_gradients_finite(list()))) {
    outcome->stepped = false;
    return false;
  }
  if (clip) {
    // As torch.nn.utils.clip_grad_norm_: a NaN or infinite norm reaches the gradients.
    constexpr double kClipEpsilon = 1e-6;
    const double coefficient = options.max_norm / (outcome->norm + kClipEpsilon);
    outcome->factor = gradient->factor = coefficient > 1.0 ? 1.0 : coefficient;
  }
  return true;
}

double AdamTable::gradient_squares(const AdamGradientOptions& options, bool* finite) {
  const double sum = cpu::adam_sum_of_squares(list(), options.unscale, partial_sums_.data());
  *finite = std::isfinite(sum) || cpu::adam_gradients_finite(list());
  return sum;
}

void AdamTable::update(const AdamGradientOptions& options, const cpu::AdamGradient& gradient) {
  const bool norm_first = options.max_norm >= 0.0 || options.skip_nonfinite;
  last_first_ = norm_first || !last_first_;
  cpu::adam_update(list(), gradient, last_first_);
  stepped(options.write_back);
}

void AdamTable::stepped(bool write_back) {
  if (write_back)
    for (const Copied& c : copied_) c.gradient.detach().copy_(c.copy);
  for (const Row& row : rows_) {
    if (!row.takes_part) continue;
    bump_version(row.slot.param);
    bump_version(row.slot.exp_avg);
    bump_version(row.slot.exp_avg_sq);
    bump_version(row.slot.max_exp_avg_sq);
    bump_version(row.slot.step);
  }
}

void AdamTable::release_gradients() {
  copied_.clear();
  for (cpu::AdamTensor& tensor : tensors_) tensor.grad = nullptr;
}

}  // namespace fastconv::bindings
