#include "bundle.h"

#include <algorithm>

#include "device_check.h"
#include "device_memory.h"
#include "files.h"
#include "host.h"
#include "text.h"

namespace minicpm {
namespace {

// What is read where a bundle holds it: one that the manifest doesn't list is refused.
constexpr const char* kOptional[] = {"tokenizer.json", "generation_config.json", "engine.json"};

void CheckSizes(const Bundle& bundle) {
  for (const char* name : kOptional) {
    if (!bundle.manifest.files.count(name) && SizeOfFile(bundle.folder + "/" + name)) {
      Fail(MINICPM_BUNDLE, bundle.folder, "/", name, " isn't in the manifest, so nothing says what it should hold; ",
           "remove it, or compile it again: minicpm-mlc compile");
    }
  }
  for (const auto& [name, entry] : bundle.manifest.files) {
    std::optional<uint64_t> size = SizeOfFile(bundle.folder + "/" + name);
    if (!size) Fail(MINICPM_BUNDLE, bundle.folder, " lacks ", name, "; ", kRepair);
    if (*size != entry.bytes) {
      Fail(MINICPM_BUNDLE, bundle.folder, "/", name, " has ", *size, " bytes, expected ", entry.bytes, "; ", kRepair);
    }
  }
}

void CheckHash(const Bundle& bundle, const std::string& name) {
  std::string path = bundle.folder + "/" + name;
  if (Sha256OfFile(path) != bundle.manifest.files.at(name).sha256) {
    Fail(MINICPM_BUNDLE, path, " is damaged: its SHA-256 isn't the manifest's; ", kRepair);
  }
}

// The manifest of the library for a device; `first` is the bundle's, which has the hash of every other file.
Manifest ManifestFor(const std::string& device, const std::string& folder, const Manifest& first) {
  if (device.empty() || device == first.device) return first;
  if (device != "cpu" || !first.has_second()) {
    Fail(MINICPM_REQUEST, folder, " has no library for ", device, ", it is for ", first.device,
         first.has_second() ? " and cpu" : "", "; leave out \"device\", or compile it again: minicpm-mlc compile --with-cpu");
  }
  if (Sha256OfFile(folder + "/" + kCpuManifest) != first.files.at(kCpuManifest).sha256) {
    Fail(MINICPM_BUNDLE, folder, "/", kCpuManifest, " is damaged: its SHA-256 isn't the manifest's; ", kRepair);
  }
  return Manifest::Load(folder, kCpuManifest);
}

void CheckFit(const Bundle& bundle) {
  CheckDevice(bundle.manifest.device);
  RefuseWrongDevice(bundle);
  std::string why = Mismatch(bundle.manifest);
  if (!why.empty()) {
    Fail(MINICPM_BUNDLE, bundle.folder, " can't run here: ", why,
         "; compile it again: minicpm-mlc compile --device cpu --cpu native, or for the device that it is to run on");
  }
  if (bundle.manifest.tvm != MINICPM_TVM) {
    Fail(MINICPM_BUNDLE, bundle.folder, " was compiled with apache-tvm ", bundle.manifest.tvm,
         ", and this engine was built with ", MINICPM_TVM, "; build it with that version, or compile the bundle again");
  }
}

}  // namespace

Bundle Bundle::Open(const std::string& folder, bool check, const std::vector<std::string>& sha256,
                    const std::string& device) {
  Manifest first = Manifest::Load(folder);
  if (!sha256.empty() && !std::count(sha256.begin(), sha256.end(), first.sha256)) {
    Fail(MINICPM_BUNDLE, folder, " has a manifest with SHA-256 ", first.sha256, ", expected ", Joined(sha256, " or "),
         "; give the bundle that this app was made for");
  }
  Bundle bundle{folder, ManifestFor(device, folder, first), ""};
  CheckFit(bundle);
  CheckSizes(bundle);
  for (const auto& [name, entry] : bundle.manifest.files) {
    if (check || name == bundle.manifest.library) CheckHash(bundle, name);
  }
  return bundle;
}

std::string Bundle::Named(const std::string& name) const {
  std::string own = manifest.part() + name;
  return manifest.files.count(own) ? own : name;
}

std::string Bundle::File(const std::string& name) const {
  std::string named = Named(name);
  if (!manifest.files.count(named)) Fail(MINICPM_BUNDLE, folder, "/manifest.json lists no ", named, "; ", kRepair);
  return folder + "/" + named;
}

std::optional<Json> Bundle::Object(const std::string& name) const {
  if (!manifest.files.count(Named(name))) return std::nullopt;
  std::string path = File(name);
  std::optional<std::string> text = ReadSmall(path);
  if (!text) Fail(MINICPM_BUNDLE, folder, " lacks ", name, "; ", kRepair);
  Json json = Json::Parse(*text, path, MINICPM_BUNDLE, "compile the checkpoint again");
  if (!json.IsObject()) json.Refuse("an object");
  return json;
}

}  // namespace minicpm
