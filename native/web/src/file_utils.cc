// TVM's files, which the engine reads by itself: a module is never written to one, nor read from one.
#include <tvm/ffi/error.h>

#include <string>

namespace tvm::runtime {

void LoadBinaryFromFile(const std::string& name, std::string*) {
  TVM_FFI_THROW(RuntimeError) << name << " can't be read by TVM in a page";
}

void SaveBinaryToFile(const std::string& name, const std::string&) {
  TVM_FFI_THROW(RuntimeError) << name << " can't be written by TVM in a page";
}

}  // namespace tvm::runtime
